"""Versions of a pool on top of DVC: push its content, pull exactly that content anywhere, by the hash that DVC gives.

Each call works in a DVC workspace of its own, made for it and removed after it, without git: so it runs the same on a
laptop and in a container, and runs side by side never share a workspace. What they share is the remote, which is
addressed by content. The remote is the one that is given, HEPAR_POOL_REMOTE, or the default one of the DVC repository
that the working directory lies in. Credentials are those of DVC's remotes, for S3 the usual AWS settings.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hepar.errors import DataError, StorageError
from hepar.params import REGISTERED
from hepar.pool.table import PLAN, TABLE, Pool
from hepar.registry import tracking
from hepar.runtime.artifacts import MANIFEST, dvc_version, link, read_manifest

REMOTE_VARIABLE = "HEPAR_POOL_REMOTE"
VERSION = re.compile(r"^[0-9a-f]{32}\.dir$")
OUT, POINTER = "pool", "pool.dvc"


@dataclass(frozen=True)
class Workspace:
    """A DVC workspace with one remote."""

    folder: Path
    remote: str

    def dvc(self, *arguments: str) -> str:
        """Run a command of DVC. Raises StorageError with what it said where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc" / "site")},
        )
        if "missing-files" in done.stderr:
            raise StorageError(f"the remote {self.remote} does not hold it, or not all of it")
        if done.returncode:
            said = " ".join((done.stderr.strip() or done.stdout.strip()).split())
            raise StorageError(f"dvc {arguments[0]}, remote {self.remote}: {said}")
        return done.stdout

    def point_at(self, version: str) -> None:
        """Let the workspace stand for a version whose content is not here yet."""
        out = {"md5": version, "hash": "md5", "path": OUT}
        (self.folder / POINTER).write_text(yaml.safe_dump({"outs": [out]}))


@contextmanager
def workspace(beside: Path, remote: Mapping[str, Any]) -> Iterator[Workspace]:
    """A workspace in the folder `beside`, so that files can be linked into it, with its cache inside."""
    with tempfile.TemporaryDirectory(prefix=".hepar-dvc-", dir=beside) as name:
        made = Workspace(Path(name), str(remote["url"]))
        made.dvc("init", "--no-scm")
        lines = ["[core]", "no_scm = true", "remote = origin", "analytics = false", "check_update = false", "[cache]"]
        lines += ["type = reflink,hardlink,copy", "['remote \"origin\"']"]
        lines += [f"{key} = {_quoted(str(value))}" for key, value in remote.items()]
        (made.folder / ".dvc" / "config").write_text("\n".join(lines) + "\n")
        yield made


def _quoted(value: str) -> str:
    """A value for DVC's settings, whatever is in it. Raises DataError for what DVC could not read back."""
    mark = "'" if '"' in value else '"'
    if mark in value or "%(" in value or not value.isprintable():
        raise DataError(f"the settings of a DVC remote cannot hold {value!r}: name another place")
    return f"{mark}{value}{mark}"


def remote_of(given: str) -> dict[str, Any]:
    """The settings of the remote: the one given, the environment's, or the default of the DVC repository around here.

    Raises DataError where there is none.
    """
    if url := given or os.environ.get(REMOTE_VARIABLE, ""):
        return {"url": url if "://" in url else str(Path(url).resolve())}
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(uninitialized=False) as repo:
            name = repo.config["core"].get("remote")
            settings = dict(repo.config["remote"].get(name, {})) if name else {}
    except NotDvcRepoError:
        settings = {}
    if not settings:
        raise DataError(
            f"there is no DVC remote to hold pools: give --remote, set {REMOTE_VARIABLE}, or `dvc remote add -d`"
        )
    return settings


def push(pool: Path, remote: str = "") -> str:
    """Put the content of a pool into the remote: only what it lacks. Gives the version.

    Raises StorageError where DVC fails.
    """
    read_manifest(pool, "pool")
    settings, files = remote_of(remote), [path for path in sorted(pool.rglob("*")) if path.is_file()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in files}
    try:
        with workspace(pool.resolve().parent, settings) as own:
            for path in files:
                link(path, own.folder / OUT / path.relative_to(pool))
            own.dvc("add", OUT)
            version = str(yaml.safe_load((own.folder / POINTER).read_text())["outs"][0]["md5"])
            if version != dvc_version(pool):
                raise StorageError(f"{pool} changed while it was pushed: run again")
            own.dvc("push", POINTER)
    finally:
        for path, mode in modes.items():  # linked files share their mode with DVC's cache, which protects them
            path.chmod(mode)
    return version


def pull(version: str, pool: Path, remote: str = "") -> None:
    """Bring exactly that version to the folder `pool`, whole or not at all.

    Raises DataError where it is no version or the folder holds something else, StorageError where DVC fails.
    """
    version = resolve(version)
    if pool.exists():
        if (pool / MANIFEST).is_file() and dvc_version(pool) == version:
            return
        raise DataError(f"{pool} is there already and is another version: move it away or name another folder")
    pool.parent.mkdir(parents=True, exist_ok=True)
    with workspace(pool.resolve().parent, remote_of(remote)) as own:
        own.point_at(version)
        own.dvc("pull", POINTER)
        _make_writable(own.folder / OUT)
        if (found := dvc_version(own.folder / OUT)) != version:
            raise StorageError(f"the remote gave {found} for pool {version}")
        read_manifest(own.folder / OUT, "pool")
        (own.folder / OUT).rename(pool)


def _make_writable(folder: Path) -> None:
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def resolve(revision: str) -> str:
    """The version that a revision means: a version itself, a registered model (`models:/NAME@ALIAS`), or a git revision
    whose `pool.dvc` or `dvc.lock` names one. Raises DataError where it means none."""
    if VERSION.match(revision):
        return revision
    if revision.startswith(REGISTERED):
        return tracking.pool_version(revision)
    for name in (POINTER, "dvc.lock") if shutil.which("git") else ():
        shown = subprocess.run(["git", "show", f"{revision}:./{name}"], capture_output=True, text=True, check=False)
        if shown.returncode == 0 and (version := _named_in(shown.stdout)):
            return version
    raise DataError(f"{revision} is no version of a pool, no registered model, and no git revision that names a pool")


def _named_in(text: str) -> str:
    """The version of the output `pool` in a file of DVC; empty without one."""
    values = yaml.safe_load(text)
    outs = list(values.get("outs") or [])
    for stage in (values.get("stages") or {}).values():
        outs += stage.get("outs") or []
    return next((str(out["md5"]) for out in outs if out.get("path") == OUT and "md5" in out), "")


@dataclass(frozen=True)
class Opened:
    """A pool of which only the table is here; `fetch` brings more."""

    pool: Pool
    workspace: Workspace | None

    def fetch(self, places: Sequence[str]) -> None:
        """Bring files of the pool here, by their places in it."""
        if self.workspace is not None and places:
            self.workspace.dvc("pull", *(f"{OUT}/{place}" for place in places))


@contextmanager
def opened(revision: str, remote: str = "") -> Iterator[Opened]:
    """The pool of a revision, or in a folder. Of a version the content is fetched as it is needed."""
    if Path(revision).is_dir():
        yield Opened(Pool.load(Path(revision)), None)
        return
    version = resolve(revision)
    with workspace(Path(tempfile.gettempdir()), remote_of(remote)) as own:
        own.point_at(version)
        own.dvc("pull", f"{OUT}/{TABLE}", f"{OUT}/{PLAN}")
        yield Opened(Pool.load(own.folder / OUT), own)
        shutil.rmtree(own.folder / OUT, ignore_errors=True)

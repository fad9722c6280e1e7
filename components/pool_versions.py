"""Versions of pools on DVC remotes. A version is the hash that DVC gives the folder; it can be pushed and pulled.

Each call works in a temporary DVC workspace without git, so it runs the same on a laptop and in a container, and
concurrent calls share nothing but the remote, which is addressed by content. The remote is the one given, else
HEPAR_POOL_REMOTE, else the default remote of the DVC repository around the working directory. Credentials are those of
the DVC remote, for S3 the usual AWS settings.
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
from hepar.pool.table import Pool
from hepar.registry.model_registry import pool_version
from hepar.runtime.artifacts import MANIFEST, dvc_version, link_or_copy, read_manifest

POOL_REMOTE_VARIABLE = "HEPAR_POOL_REMOTE"
VERSION = re.compile(r"^[0-9a-f]{32}\.dir$")
OUT, POINTER = "pool", "pool.dvc"


@dataclass(frozen=True)
class Workspace:
    """A DVC workspace with one remote."""

    folder: Path
    remote: str

    def dvc(self, *arguments: str) -> str:
        """Runs a DVC command and returns its output. Raises StorageError with its error message if it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc" / "site")},
        )
        if "missing-files" in done.stderr:
            raise StorageError(f"the remote {self.remote} does not hold this version, or only part of it")
        if done.returncode:
            message = " ".join((done.stderr.strip() or done.stdout.strip()).split())
            raise StorageError(f"dvc {arguments[0]}, remote {self.remote}: {message}")
        return done.stdout

    def point_at(self, version: str) -> None:
        """Writes the .dvc file of a version, whose content is then pulled."""
        out = {"md5": version, "hash": "md5", "path": OUT}
        (self.folder / POINTER).write_text(yaml.safe_dump({"outs": [out]}))


@contextmanager
def workspace(beside: Path, remote: Mapping[str, Any]) -> Iterator[Workspace]:
    """A temporary workspace with its own cache, in the folder `beside`, so that files can be hard-linked into it."""
    with tempfile.TemporaryDirectory(prefix=".hepar-dvc-", dir=beside) as name:
        created = Workspace(Path(name), str(remote["url"]))
        created.dvc("init", "--no-scm")
        lines = ["[core]", "no_scm = true", "remote = origin", "analytics = false", "check_update = false", "[cache]"]
        lines += ["type = reflink,hardlink,copy", "['remote \"origin\"']"]
        lines += [f"{key} = {_quote(str(value))}" for key, value in remote.items()]
        (created.folder / ".dvc" / "config").write_text("\n".join(lines) + "\n")
        yield created


def _quote(value: str) -> str:
    """A quoted value for a DVC config file. Raises DataError if DVC could not read it back."""
    mark = "'" if '"' in value else '"'
    if mark in value or "%(" in value or not value.isprintable():
        raise DataError(f"a DVC config file cannot hold {value!r}: choose another remote")
    return f"{mark}{value}{mark}"


def find_remote(given: str) -> dict[str, Any]:
    """DVC settings of the remote: the one given, else HEPAR_POOL_REMOTE, else the default of the DVC repository here.

    Raises DataError if there is none.
    """
    if url := given or os.environ.get(POOL_REMOTE_VARIABLE, ""):
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
            f"there is no DVC remote for pools: use --remote, set {POOL_REMOTE_VARIABLE}, or run `dvc remote add -d`"
        )
    return settings


def push(pool: Path, remote: str = "") -> str:
    """Pushes the files of a pool that the remote lacks; returns the version. Raises StorageError if DVC fails."""
    read_manifest(pool, Pool.KIND)
    settings, files = find_remote(remote), [path for path in sorted(pool.rglob("*")) if path.is_file()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in files}
    try:
        with workspace(pool.resolve().parent, settings) as scratch:
            for path in files:
                link_or_copy(path, scratch.folder / OUT / path.relative_to(pool))
            scratch.dvc("add", OUT)
            version = str(yaml.safe_load((scratch.folder / POINTER).read_text())["outs"][0]["md5"])
            if version != dvc_version(pool):
                raise StorageError(f"{pool} changed while it was pushed: push it again")
            scratch.dvc("push", POINTER)
    finally:
        for path, mode in modes.items():  # DVC makes its cache read-only, and hard links share their mode
            path.chmod(mode)
    return version


def pull(version: str, pool: Path, remote: str = "") -> None:
    """Pulls a version into the folder `pool`, completely or not at all.

    Raises DataError if there is no such version or the folder holds something else, StorageError if DVC fails.
    """
    version = resolve(version)
    if pool.exists():
        if (pool / MANIFEST).is_file() and dvc_version(pool) == version:
            return
        raise DataError(f"{pool} already exists and is not version {version}: move it or choose another folder")
    pool.parent.mkdir(parents=True, exist_ok=True)
    with workspace(pool.resolve().parent, find_remote(remote)) as scratch:
        scratch.point_at(version)
        scratch.dvc("pull", POINTER)
        _make_writable(scratch.folder / OUT)
        if (found := dvc_version(scratch.folder / OUT)) != version:
            raise StorageError(f"the remote returned version {found} instead of {version}")
        read_manifest(scratch.folder / OUT, Pool.KIND)
        (scratch.folder / OUT).rename(pool)


def _make_writable(folder: Path) -> None:
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def resolve(revision: str) -> str:
    """The version of a revision: a version, a registered model (`models:/NAME@ALIAS`), or a git revision with a pool in
    its `pool.dvc` or `dvc.lock`. Raises DataError if it is none of these."""
    if VERSION.match(revision):
        return revision
    if revision.startswith(REGISTERED):
        return pool_version(revision)
    for name in (POINTER, "dvc.lock") if shutil.which("git") else ():
        shown = subprocess.run(["git", "show", f"{revision}:./{name}"], capture_output=True, text=True, check=False)
        if shown.returncode == 0 and (version := _read_version(shown.stdout)):
            return version
    raise DataError(f"{revision} is not a pool version, a registered model, or a git revision with a pool")


def _read_version(text: str) -> str:
    """The version of the output `pool` in a .dvc or dvc.lock file; empty without one."""
    values = yaml.safe_load(text)
    outs = list(values.get("outs") or [])
    for stage in (values.get("stages") or {}).values():
        outs += stage.get("outs") or []
    return next((str(out["md5"]) for out in outs if out.get("path") == OUT and "md5" in out), "")


@dataclass(frozen=True)
class OpenedPool:
    """A pool whose table and plan are local; `fetch` pulls further files."""

    pool: Pool
    workspace: Workspace | None

    def fetch(self, paths: Sequence[str]) -> None:
        """Pulls files, by their paths relative to the pool; does nothing for a local folder."""
        if self.workspace is not None and paths:
            self.workspace.dvc("pull", *(f"{OUT}/{path}" for path in paths))


@contextmanager
def open_pool(revision: str, remote: str = "") -> Iterator[OpenedPool]:
    """The pool in a folder or of a revision, of which only table and plan are pulled."""
    if Path(revision).is_dir():
        yield OpenedPool(Pool.load(Path(revision)), None)
        return
    version = resolve(revision)
    with workspace(Path(tempfile.gettempdir()), find_remote(remote)) as scratch:
        scratch.point_at(version)
        scratch.dvc("pull", f"{OUT}/{Pool.TABLE}", f"{OUT}/{Pool.PLAN}")
        yield OpenedPool(Pool.load(scratch.folder / OUT), scratch)
        shutil.rmtree(scratch.folder / OUT, ignore_errors=True)

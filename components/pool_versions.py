"""Versions of pools on DVC remotes. A version is the hash that DVC gives the folder; it can be pushed and pulled.

A push works in a temporary DVC workspace without git, so it runs the same on a laptop and in a container; a pull reads
the remote itself and trusts nothing in it (`remote_pool`). Concurrent calls share nothing but the remote, which is
addressed by content. The remote is the one given, else HEPAR_STORE, else the default remote of the DVC repository
around the working directory. Credentials are those of the DVC remote, for S3 the usual AWS settings.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.remote_pool import RemotePool
from hepar.errors import DataError, NotConfigured, StorageError, one_line
from hepar.params import REGISTERED
from hepar.pool.table import Pool
from hepar.registry.model_registry import pool_version
from hepar.runtime.artifacts import MANIFEST, dvc_version, link_or_copy, read_manifest
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.redaction import redact
from hepar.runtime.scratch import scratch_folder
from hepar.runtime.stored_files import VERSION, read_stored

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
        if done.returncode:
            message = one_line(done.stderr.strip() or done.stdout.strip())
            raise StorageError(redact(f"dvc {arguments[0]}, remote {self.remote}: {message}"))
        return done.stdout


@contextmanager
def workspace(beside: Path, remote: Mapping[str, Any]) -> Iterator[Workspace]:
    """A temporary workspace with its own cache, in the folder `beside`, so that files can be hard-linked into it."""
    with scratch_folder("dvc", beside) as name:
        created = Workspace(name, str(remote["url"]))
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
        raise DataError(f"a DVC config file cannot hold {redact(repr(value))}: choose another remote")
    return f"{mark}{value}{mark}"


def find_remote(given: str) -> dict[str, Any]:
    """DVC settings of the remote: the one given, else HEPAR_STORE, else the default of the DVC repository here.

    Raises NotConfigured if there is none.
    """
    if url := given or os.environ.get(STORE_VARIABLE, ""):
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
        raise NotConfigured(
            f"no DVC remote is configured for pools: pass --remote, set {STORE_VARIABLE}, or `dvc remote add -d`"
        )
    return settings


def push(pool: Path, remote: str = "") -> str:
    """Pushes the files of a pool that the remote lacks; returns the version. Raises StorageError if DVC fails."""
    read_manifest(pool, Pool.KIND)
    if read_stored(pool).files:
        raise DataError(f"{pool} is by reference: `hepar fetch {pool}` fetches what it has in the store")
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

    Raises DataError if there is no such version or the folder holds something else, StorageError if the remote fails or
    holds anything but this version of a pool.
    """
    version = resolve(version)
    if os.path.lexists(pool):
        if (pool / MANIFEST).is_file() and dvc_version(pool) == version:
            return
        raise DataError(f"{pool} already exists and is not version {version}: move it or choose another folder")
    settings = find_remote(remote)
    pool.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder("pull", pool.parent.resolve()) as scratch:
        RemotePool.open(version, settings, scratch).fetch_all(scratch / OUT)
        try:
            (scratch / OUT).rename(pool)
        except OSError as error:
            raise StorageError(f"{pool} cannot be created: {error.strerror}") from None


def resolve(revision: str) -> str:
    """The version of a revision: a version, a registered model (`models:/NAME@ALIAS`), or a git revision with a pool in
    its `pool.dvc` or `dvc.lock`. Raises DataError for anything else."""
    if VERSION.fullmatch(revision):
        return revision
    if revision.startswith(REGISTERED):
        if not VERSION.fullmatch(version := pool_version(revision)):
            raise DataError(f"{revision} names {version!r}, which is not a pool version")
        return version
    is_option = revision.startswith("-")  # of git
    for name in (POINTER, "dvc.lock") if shutil.which("git") and not is_option else ():
        shown = subprocess.run(["git", "show", f"{revision}:./{name}"], capture_output=True, text=True, check=False)
        if shown.returncode == 0 and (version := _read_version(shown.stdout)):
            return version
    raise DataError(f"{revision} is not a pool version, a registered model, or a git revision with a pool")


def _read_version(text: str) -> str:
    """The version of the output `pool` in a .dvc or dvc.lock file; empty without one."""
    try:
        values = yaml.safe_load(text)
        outs = list(values.get("outs") or [])
        for stage in (values.get("stages") or {}).values():
            outs += stage.get("outs") or []
        versions = (str(out.get("md5")) for out in outs if out.get("path") == OUT)
        return next((version for version in versions if VERSION.fullmatch(version)), "")
    except (yaml.YAMLError, AttributeError, TypeError):  # a file of another program
        return ""


@dataclass(frozen=True)
class OpenedPool:
    """A pool whose table and plan are local; `fetch` pulls further files."""

    pool: Pool
    remote: RemotePool | None

    def fetch(self, paths: Sequence[str]) -> None:
        """Pulls files, by their paths relative to the pool; does nothing for a local folder."""
        if self.remote is not None:
            self.remote.fetch(paths, self.pool.folder)


@contextmanager
def open_pool(revision: str, remote: str = "") -> Iterator[OpenedPool]:
    """The pool in a folder or of a revision, of which only table and plan are pulled."""
    if Path(revision).is_dir():
        yield OpenedPool(Pool.load(Path(revision)), None)
        return
    version = resolve(revision)
    with scratch_folder("pool") as scratch:
        opened = RemotePool.open(version, find_remote(remote), scratch)
        opened.fetch(Pool.REQUIRED, scratch / OUT)
        yield OpenedPool(opened.load(scratch / OUT), opened)

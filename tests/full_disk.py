"""A disk with little room: a small tmpfs where it may be mounted, else a limit on the size of each file."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hepar.errors import StorageError

BALLAST = ".ballast"
DISK_KIB = 64 * 1024
FULL = r"(No space left on device|File too large|database or disk is full|disk I/O error|unable to open database)"


@dataclass(frozen=True)
class SmallDisk:
    """A disk with `folder` on it."""

    folder: Path
    mounted: bool

    @contextmanager
    def room(self, kib: int) -> Iterator[None]:
        """Leave only so much room on the disk, or in each file if there is no disk of our own."""
        if not self.mounted:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, hard))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return
        ballast = self.folder / BALLAST
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(self.folder).free - kib * 1024)))
        try:
            yield
        finally:
            ballast.unlink()

    def outcome(self, kib: float, write: Callable[[], object]) -> str:
        """The sentence with which `write` fails in so little room; empty if it succeeds.

        The limit of a tmpfs is not exact: each processor may use some pages more.
        """
        message = ""
        with self.room(int(kib)):
            try:
                write()
            except StorageError as error:
                message = str(error)
        assert not message or re.search(FULL, message), message
        return message

    def left_behind(self) -> list[str]:
        """Names of everything on the disk, at any depth."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.name != BALLAST)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """Mount a small tmpfs at the new folder; skip the test if neither that nor a limit on files is possible."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    disk = SmallDisk(folder, mounted)
    try:
        if not mounted and not _limits_hold(disk):
            pytest.skip("this machine allows neither a small tmpfs nor a limit on the size of files")
        yield disk
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _limits_hold(disk: SmallDisk) -> bool:
    probe = disk.folder / "probe"
    try:
        with disk.room(0):
            probe.write_bytes(b"1")
    except OSError:
        return True
    finally:
        probe.unlink(missing_ok=True)
    return False

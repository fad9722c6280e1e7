"""When an artifact was sealed: the time of its manifest, set once every other file is in place or verified.

A file that has not changed since then need not be hashed again. The file system keeps the time of each file's last
change; it counts writes, links and renames, and a program cannot set it. The seal is a whole millisecond. A copy gives
the manifest the time of the copy, which is not, or its files a later one than the manifest: their content is then
hashed once. So the seal needs no file of its own, which would enter DVC's hash of the folder.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

RESOLUTION_NS = 10**6


def touch(manifest: Path) -> int | None:
    """Break the seal and return the file system's time now, in nanoseconds; None if the folder is read-only."""
    try:
        os.utime(manifest)
        return manifest.stat().st_mtime_ns
    except OSError:
        return None


def seal(manifest: Path, at_ns: int | None) -> None:
    """Seal an artifact whose other files are as listed at a time that `touch` gave."""
    if at_ns is not None:
        with suppress(OSError):
            rounded_ns = at_ns // RESOLUTION_NS * RESOLUTION_NS
            os.utime(manifest, ns=(rounded_ns, rounded_ns))


def sealed_ns(manifest: Path) -> int:
    """When an artifact was sealed, in nanoseconds; 0 if nobody knows."""
    time_ns = manifest.stat().st_mtime_ns
    return 0 if time_ns % RESOLUTION_NS else time_ns

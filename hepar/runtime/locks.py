"""Advisory locks on files and folders. The kernel releases those of a process that dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder for this process; returns False if another holds the lock.

    Also True on a file system without locks, where nothing can be known.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is still the one at `path`: it may have been renamed before it was locked."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

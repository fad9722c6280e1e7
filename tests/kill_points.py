"""Actions that are killed before their n-th change to the file system."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.utime")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def is_finished(action: Callable[[], object], kill_before: int) -> bool:
    """Run an action in a forked process that dies by SIGKILL before its n-th change; returns whether it had fewer."""
    child = os.fork()
    if child == 0:
        _arm(kill_before)
        try:
            action()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def _arm(kill_before: int) -> None:
    changes = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal changes
        is_write = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & WRITING)
        if event in CHANGES or is_write:
            changes += 1
            if changes == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def tree(folder: Path) -> dict[str, str]:
    """The files below a folder and their text; hidden ones at its top and those beside artifacts are left out."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }

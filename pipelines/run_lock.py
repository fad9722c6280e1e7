"""One run at a time in a working directory, whose stages do not outlive it.

`hepar run` holds one lock while it lives; the child process that runs the stages holds another. A run that is killed
releases the first at once. Its child notices, lets the stages save their checkpoints, and ends; the next run waits for
that. A single stage has `python -m pipelines.run_lock` as such a child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import psutil

from hepar.errors import HeparError
from hepar.runtime.device import SHUTDOWN_SECONDS
from hepar.runtime.locks import try_lock

RUN_LOCK, STAGES_LOCK = ".run.lock", ".stages.lock"
GRACE_SECONDS = 10  # beyond SHUTDOWN_SECONDS, for the child to end after its stages
POLL_SECONDS = 0.2


@contextmanager
def only_run(workdir: Path, option: str = "--workdir") -> Iterator[tuple[int, int]]:
    """Lock a working directory for this run; yields the descriptors that its child process inherits.
    `option` is the one that names the directory.

    The first is for `end_with_parent`; the second need only stay open. Raises HeparError if another run is working in
    the directory, or if the stages of a killed run do not end.
    """
    own, stages = (_open(workdir / name) for name in (RUN_LOCK, STAGES_LOCK))
    lifeline, kept_open = os.pipe()
    try:
        if not try_lock(own):
            raise HeparError(f"another run is working in {workdir}: wait until it ends, or choose another {option}")
        _wait_for_stages(stages, workdir)
        yield lifeline, stages
    finally:
        for descriptor in (own, stages, lifeline, kept_open):
            os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise HeparError(f"the working directory {path.parent} cannot be locked: {error.strerror}") from None


def _wait_for_stages(descriptor: int, workdir: Path) -> None:
    end, told = time.monotonic() + SHUTDOWN_SECONDS + GRACE_SECONDS, False
    while not try_lock(descriptor):
        if time.monotonic() > end:
            raise HeparError(f"stages of a killed run are still working in {workdir}: stop them, then try again")
        if not told:
            print(f"waiting for the stages of a killed run in {workdir} to end", file=sys.stderr)
            told = True
        time.sleep(POLL_SECONDS)


def end_with_parent(lifeline: int) -> None:
    """Let this process stop its children and end as soon as the parent that holds the other end has died."""

    def watch() -> None:
        os.read(lifeline, 1)  # returns when the other end is closed
        _stop_children()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _stop_children() -> None:
    """Send SIGTERM to each process that this one started, and SIGKILL if it does not end in time."""
    end, told = time.monotonic() + SHUTDOWN_SECONDS, set[int]()
    while children := [child for child in psutil.Process().children(recursive=True) if child.is_running()]:
        late = time.monotonic() > end
        for child in children:
            with suppress(psutil.NoSuchProcess):
                if late:
                    child.kill()
                elif child.pid not in told:
                    child.terminate()
                    told.add(child.pid)
        psutil.wait_procs(children, timeout=POLL_SECONDS)


def guarded(command: Sequence[str], held: tuple[int, int]) -> list[str]:
    """A command line that runs `command` and stops it when this process dies; `held` is what `only_run` yields."""
    return [sys.executable, "-m", "pipelines.run_lock", *map(str, held), *command]


def main() -> None:
    """Run a command until it ends, or until the process that holds the other end of the lifeline has died."""
    lifeline, stages, *command = sys.argv[1:]
    end_with_parent(int(lifeline))
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # the command gets it too, and is waited for
    code = subprocess.call(command, pass_fds=[int(stages)])
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()

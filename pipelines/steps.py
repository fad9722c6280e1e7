"""A stage as a step: a command of `hepar` in a folder, known to be finished by the artifact that it writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hepar.errors import ArtifactError, HeparError, Preempted, one_line
from hepar.runtime.artifacts import read_manifest
from hepar.runtime.commit import COMMIT_VARIABLE, git_commit
from hepar.runtime.device import catch_sigterm
from pipelines.places import absolute_variables
from pipelines.run_lock import guarded

HEPAR = str(Path(sys.executable).with_name("hepar"))
MAX_REASON = 300  # characters of the last line of a log
_running = set[subprocess.Popen[bytes]]()


@dataclass(frozen=True)
class Step:
    """A stage: the words of its command, and the artifact by which it is known to be finished."""

    name: str
    words: tuple[str, ...]
    result: Path
    kind: str

    @property
    def is_finished(self) -> bool:
        """Whether the artifact is there. Its files are not looked at: the stage that reads them does."""
        try:
            read_manifest(self.result, self.kind)
        except ArtifactError:
            return False
        return True


def run_step(
    step: Step,
    folder: Path,
    held: tuple[int, int],
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> None:
    """Run a step in `folder`; `held` are the descriptors of `run_lock.only_run`. It prints to `log`, if that is given.

    Raises Preempted if SIGTERM arrives or the stage was stopped and can resume, HeparError naming the stage if it
    fails, with the last line of its log.
    """
    # idle threads may spin without holding up others, since stages run one after another
    own = {COMMIT_VARIABLE: git_commit(), "GOMP_SPINCOUNT": "100000"}
    variables = {**os.environ, **absolute_variables(), **own, **(environment or {})}
    with ExitStack() as stack:
        output = stack.enter_context(log.open("a")) if log is not None else None
        child = subprocess.Popen(
            guarded([HEPAR, *step.words], held),
            cwd=folder,
            env=variables,
            stdout=output,
            stderr=output,
            pass_fds=held,
            start_new_session=True,  # so that a signal reaches the command and what it has started
        )
        _running.add(child)
        try:
            with catch_sigterm(partial(_stop, child)) as stopped:
                code = child.wait()
                if stopped() or code == os.EX_TEMPFAIL:
                    raise Preempted(f"{step.name} was stopped: run the same command again to resume")
        finally:
            if child.poll() is None:  # interrupted from the keyboard
                _stop(child)
                child.wait()
            _running.discard(child)
    if code != 0:
        raise HeparError(f"{step.name} ended with exit code {code}{_last_line(log)}")


def stop_steps() -> None:
    """Send SIGTERM to all steps that run, also in other threads; once to each, so that it can save and end."""
    for child in set(_running):
        _running.discard(child)
        _stop(child)


def say(text: str) -> None:
    """Print a line with the time of day to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _stop(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)


def _last_line(log: Path | None) -> str:
    lines = log.read_text(errors="replace").split("\n") if log is not None else []
    last = next((one_line(line) for line in reversed(lines) if line.strip()), "")
    return f": {last[:MAX_REASON]} (see {log})" if last else ""

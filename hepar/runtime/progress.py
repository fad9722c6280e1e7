"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere, and a status file for watchers.

If HEPAR_PROGRESS names a folder, each stage keeps its status there in `<stage>.json`: state, seconds, done, total,
message. `hepar run` reads these files while the stages run in other processes or containers.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hepar.errors import HeparError, Preempted, StorageError
from hepar.runtime.artifacts import write_json
from hepar.runtime.environment import EPHEMERAL_VARIABLE
from hepar.runtime.redaction import redact

FOLDER_VARIABLE = "HEPAR_PROGRESS"
LINE_SECONDS = 10.0
FILE_SECONDS = 0.5
RATE_SECONDS = 1.0  # a rate over less says nothing


@dataclass
class StageStatus:
    """Status of one stage: `state` is running, done or failed.

    `user_error` is true if the user's input is at fault, `preempted` if the stage was stopped and can be resumed.
    """

    stage: str
    state: str = "running"
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    message: str = ""
    user_error: bool = False
    preempted: bool = False


class Stage:
    """A running stage: counts its steps and shows them."""

    def __init__(self, name: str) -> None:
        self.status = StageStatus(name)
        self._began = time.monotonic()
        self._last_line = self._last_file = -1e9
        self._what = ""
        self._quiet = os.environ.get("RANK", "0") != "0"  # of the processes of one training only the first reports
        self._console = Console(stderr=True, quiet=self._quiet)
        self._bar: Progress | None = None
        # steps done, and when: the rate excludes the steps that a resumed run skipped
        self._counted_from = 0, self._began

    @contextmanager
    def counting(self, total: int, what: str) -> Iterator[Stage]:
        """Count `total` steps of one kind of work within the stage."""
        self.status.done, self.status.total, self.status.message, self._what = 0, total, what, what
        self._counted_from = 0, time.monotonic()
        if not self._console.is_terminal:
            yield self
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[facts]}"), console=self._console) as bar:
            bar.add_task(f"{self.status.stage}: {what}", total=total, facts="")
            self._bar = bar
            try:
                yield self
            finally:
                self._bar = None

    def advance(self, to: int | None = None, **facts: float | str) -> None:
        """Count one more step, or set the count to `to`. `facts` are shown beside the bar."""
        status, now = self.status, time.monotonic()
        if status.done == 0 and to is not None and to > 1:
            self._counted_from = to, now  # a resumed run did not take these steps
        status.done = status.done + 1 if to is None else to
        shown = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
        )
        if shown:
            status.message = _listed(self._what, shown)
        rate = self._rate(now)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=status.done, facts=_listed(shown, rate))
        elif not self._quiet and (now - self._last_line >= LINE_SECONDS or status.done == status.total):
            self._last_line = now
            done = f"{status.stage}: {status.done}/{status.total} {status.message}".rstrip()
            print(_listed(done, rate), file=sys.stderr, flush=True)
        if now - self._last_file >= FILE_SECONDS:
            self.publish()

    def _rate(self, now: float) -> str:
        """Steps per second since the counting began or was resumed; empty in the first `RATE_SECONDS`."""
        done, since = self._counted_from
        if now - since < RATE_SECONDS or self.status.done == done:
            return ""
        return f"{(self.status.done - done) / (now - since):.2f}/s"

    def log(self, text: str) -> None:
        """Print a line, without disturbing the bar."""
        self._console.print(f"{self.status.stage}: {text}", markup=False, highlight=False)

    def publish(self) -> None:
        """Write the status file if HEPAR_PROGRESS is set. On a full disk the older one stays: it is not a result."""
        folder = os.environ.get(FOLDER_VARIABLE)
        if not folder or self._quiet:
            return
        self.status.seconds = round(time.monotonic() - self._began, 3)
        self._last_file = time.monotonic()
        with suppress(StorageError):
            write_json(Path(folder) / f"{self.status.stage}.json", asdict(self.status))


def _listed(*texts: str) -> str:
    """Texts with commas between those that are not empty."""
    return ", ".join(filter(None, texts))


_current: ContextVar[Stage | None] = ContextVar("stage", default=None)


@contextmanager
def stage(name: str, *lists: Path) -> Iterator[Stage]:
    """Run a stage: its status is published at the start, when it ends and when it fails.

    In a container, where its log and the files `lists` would be lost, a failure leaves them in the store.
    """
    running = Stage(name)
    token = _current.set(running)
    running.publish()
    try:
        with _recorded(name, lists):
            yield running
        running.status.state = "done"
    except BaseException as error:
        running.status.state = "failed"
        running.status.message = redact(str(error)) or type(error).__name__
        running.status.user_error = isinstance(error, HeparError)
        running.status.preempted = isinstance(error, Preempted)
        raise
    finally:
        running.publish()
        _current.reset(token)


@contextmanager
def _recorded(name: str, lists: tuple[Path, ...]) -> Iterator[None]:
    if not os.environ.get(EPHEMERAL_VARIABLE):
        yield
        return
    import hepar.runtime.failure_record  # imports this module

    with hepar.runtime.failure_record.recorded(name, *lists):
        yield


def current_stage() -> Stage:
    """The stage that is running, or a new one named `hepar` outside of any."""
    return _current.get() or Stage("hepar")

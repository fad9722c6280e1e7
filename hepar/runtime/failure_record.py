"""What a failing step leaves in the store: the reason, the end of its log, and files such as a quarantine list.

They lie below `failures/RUN/STEP/TIME/`, where RUN is the id of the KFP run; `failures/RUN/last.json` names the last of
them, for the notification. A step that is killed, as for lack of memory, leaves nothing: the pod's events tell why.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from hepar.errors import HeparError, Preempted, one_line
from hepar.runtime.execution import KFP_RUN_VARIABLE, execution_facts
from hepar.runtime.object_store import Store
from hepar.runtime.redaction import redact
from hepar.runtime.scratch import scratch_folder

FOLDER, LAST = "failures", "last.json"
REASON_FILE, LOG_FILE = "reason.json", "log.txt"
WITHOUT_RUN = "local"  # stands for the id of a run that has none
LOG_WRITES = 400  # of the log that are kept; a line takes one or two


@dataclass(frozen=True)
class StepFailure:
    """Why a step failed. `user_error` is true if the input is at fault; `place` is where log and files are."""

    step: str
    reason: str
    user_error: bool
    place: str
    facts: Mapping[str, str]  # image and KFP run, where known


@contextlib.contextmanager
def recorded(step: str, *files: Path) -> Iterator[None]:
    """Run a step; if it fails, leave in the store what is known, with those of the `files` that exist, and say where.

    The error passes on. One that comes from the store itself cannot be left there, which is said too.
    """
    log: deque[str] = deque(maxlen=LOG_WRITES)
    stdout: Any = _Copied(sys.stdout, log)
    stderr: Any = _Copied(sys.stderr, log)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            yield
        except Preempted:
            raise
        except Exception as error:
            log.append(traceback.format_exc())
            print(f"hepar: {step}: {redact(one_line(error)) or type(error).__name__}", file=sys.stderr)
            _leave(step, error, redact("".join(log)), files)
            raise


def last_failure(run: str) -> StepFailure | None:
    """The last failure of a KFP run; None if it left none, or if there is no store.

    Raises StorageError if the store fails.
    """
    if not run or (store := Store.of_environment()) is None:
        return None
    text = store.get_text(f"{FOLDER}/{run}/{LAST}")
    return None if text is None else StepFailure(**json.loads(text))


def _leave(step: str, error: Exception, log: str, files: tuple[Path, ...]) -> None:
    try:
        if (store := Store.of_environment()) is None:
            return
        run = os.environ.get(KFP_RUN_VARIABLE) or WITHOUT_RUN
        folder = f"{FOLDER}/{run}/{step}/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        reason = redact(one_line(error)) or type(error).__name__
        failure = StepFailure(step, reason, isinstance(error, HeparError), store.address(folder), execution_facts())
        with scratch_folder("failure") as scratch:
            text = json.dumps(asdict(failure), indent=1, ensure_ascii=False) + "\n"
            (scratch / REASON_FILE).write_text(text, encoding="utf-8")
            (scratch / LOG_FILE).write_text(log, encoding="utf-8", errors="replace")
            for file in (scratch / LOG_FILE, *(file for file in files if file.is_file()), scratch / REASON_FILE):
                store.put(f"{folder}/{file.name}", file)
            store.put(f"{FOLDER}/{run}/{LAST}", scratch / REASON_FILE)
        print(f"hepar: reason, log and lists are in {store.address(folder)}", file=sys.stderr)
    except (HeparError, OSError) as problem:
        print(f"hepar: the reason could not be left in the store: {redact(one_line(problem))}", file=sys.stderr)


class _Copied(io.TextIOBase):
    """A text stream whose last writes are kept."""

    def __init__(self, stream: TextIO, kept: deque[str]) -> None:
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        self._kept.append(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

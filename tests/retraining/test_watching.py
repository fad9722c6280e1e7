"""The loop: one line a look, waits that grow while nothing changes, and signals that end it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from hepar.errors import Preempted, StorageError
from hepar.retraining.watching import Backoff, Seen, Stopped, watch_source


def test_waits_double_until_something_changes() -> None:
    backoff = Backoff(1, 5)
    waits = [backoff.after(changed) for changed in (False, False, False, False, False, True, False, False)]
    assert waits == [1, 2, 4, 5, 5, 1, 2, 4]


def watched(*found: Seen | BaseException) -> list[str]:
    """The lines of a loop over these looks, without their times; Ctrl-C ends it."""
    queue, lines = list(found), list[str]()

    def look_once(stopped: Stopped) -> Seen:
        item = queue.pop(0) if queue else KeyboardInterrupt()
        if isinstance(item, BaseException):
            raise item
        return item

    watch_source(look_once, Backoff(0.001, 0.004), lines.append)
    return [line.partition("Z ")[2] or line for line in lines]


def test_one_line_a_look_and_a_failure_does_not_end_it() -> None:
    lines = watched(
        Seen("no\nreason", False), StorageError("the server\nis away"), SystemExit(1), Seen("trained", True)
    )
    assert lines == [
        "no reason; next look in 0 s",
        "failed: the server is away; next look in 0 s",
        "the training failed with exit code 1; next look in 0 s",
        "trained; next look in 0 s",
        "stopped",
    ]


def test_a_training_that_was_stopped_ends_it_with_its_own_error() -> None:
    with pytest.raises(Preempted, match="resume"):
        watched(Preempted("run it again to resume"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_at_once(number: int) -> None:
    inherited = signal.getsignal(signal.SIGINT)  # ignored in a job that a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        wait_for_signal(number)
    finally:
        signal.signal(signal.SIGINT, inherited)


def wait_for_signal(number: int) -> None:
    before, lines = signal.getsignal(number), list[str]()
    threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
    began = time.monotonic()
    watch_source(lambda stopped: Seen("no reason", False), Backoff(50, 60), lines.append)
    assert time.monotonic() - began < 20
    assert [line.partition("Z ")[2] or line for line in lines] == ["no reason; next look in 50 s", "stopped"]
    assert signal.getsignal(number) == before


def test_a_bug_is_not_taken_for_a_failed_look() -> None:
    with pytest.raises(ZeroDivisionError):
        watched(ZeroDivisionError())

"""Looking again and again, less often while nothing changes, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hepar.errors import HeparError, Preempted, one_line
from hepar.runtime.device import catch_sigterm

POLL_SECONDS = 0.2  # how soon a signal ends the wait


@dataclass
class Backoff:
    """The seconds to wait: the first after a change, doubled after each look without one, up to the longest."""

    shortest: float
    longest: float
    now: float = field(init=False)

    def __post_init__(self) -> None:
        self.now = self.shortest

    def after(self, changed: bool) -> float:
        """The seconds to wait after a look."""
        seconds = self.shortest if changed else self.now
        self.now = min(2 * seconds, self.longest)
        return seconds


@dataclass(frozen=True)
class Seen:
    """One look as a line tells it, and whether it found anything that the look before had not."""

    text: str
    changed: bool


Stopped = Callable[[], bool]  # whether SIGTERM has arrived


def watch_source(look_once: Callable[[Stopped], Seen], backoff: Backoff, say: Callable[[str], None]) -> None:
    """Look until SIGTERM or SIGINT arrives, and say each look in one line; a look or a training that fails is said too.

    Returns at once while waiting, and after SIGTERM at the end of a look, which asks before it trains. A training that
    SIGTERM has stopped raises Preempted.
    """
    with catch_sigterm() as stopped:
        try:
            while not stopped():
                seen = _one_look(look_once, stopped)
                seconds = backoff.after(seen.changed)
                again = "" if stopped() else f"; next look in {seconds:.0f} s"
                say(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {one_line(seen.text)}{again}")
                _wait(seconds, stopped)
        except KeyboardInterrupt:
            pass
    say("stopped")


def _one_look(look_once: Callable[[Stopped], Seen], stopped: Stopped) -> Seen:
    try:
        return look_once(stopped)
    except Preempted:
        raise
    except HeparError as error:
        return Seen(f"failed: {error}", changed=False)
    except SystemExit as ended:  # a training that failed has printed why
        return Seen(f"the training failed with exit code {ended.code}", changed=False)


def _wait(seconds: float, stopped: Stopped) -> None:
    end = time.monotonic() + seconds
    while not stopped() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, POLL_SECONDS))

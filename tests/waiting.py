"""Waiting for what another process or thread does."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 60.0
POLL_SECONDS = 0.02


def wait_until(holds: Callable[[], bool]) -> None:
    """Return as soon as `holds()`; it must within a minute."""
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, f"after {SECONDS:.0f} s it does not hold"
        time.sleep(POLL_SECONDS)

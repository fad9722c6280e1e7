"""SIGTERM in a submission: work is interrupted at once, but no record of it is left half-written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hepar.runtime.device import catch_sigterm


class Interrupted(BaseException):
    """SIGTERM has arrived. It is no Exception, so that no client of a server takes it for a request that failed."""


class Interruption:
    """SIGTERM within `caught`: it raises Interrupted at once where that is allowed, else it is noted.

    `before` tells whether it has arrived already.
    """

    def __init__(self, before: Callable[[], bool]) -> None:
        self._before = before
        self._caught: Callable[[], bool] = lambda: False
        self._allowed = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signal as long as the context lasts."""
        with catch_sigterm(self._arrive) as self._caught:
            yield

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Raise Interrupted when the signal arrives in this context, or if it has arrived before."""
        self._allowed = True
        try:
            self.check()
            yield
        finally:
            self._allowed = False

    def put_off(self) -> None:
        """Only note the signal for the rest of the context."""
        self._allowed = False

    def check(self) -> None:
        """Raise Interrupted if the signal has arrived."""
        if self._before() or self._caught():
            raise Interrupted

    def _arrive(self) -> None:
        if self._allowed:
            self._allowed = False  # what cleans up is not interrupted again
            raise Interrupted

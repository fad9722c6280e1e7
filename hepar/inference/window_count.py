"""How far the prediction of a scan has come, counted in windows."""

from __future__ import annotations

from collections.abc import Callable

OnWindow = Callable[[int, int], None]  # windows predicted, and all, as far as they are known


class WindowCount:
    """Counts predicted windows. How many there will be is known bit by bit: what is not yet planned is guessed."""

    def __init__(self, on_window: OnWindow | None = None) -> None:
        self._on_window = on_window
        self._done = self._planned = self._guessed = 0

    def plan(self, windows: int, guessed: int = 0) -> None:
        """Some windows will be predicted next, and perhaps as many as are `guessed` after them."""
        self._planned, self._guessed = self._planned + windows, guessed

    def advance(self) -> None:
        """One more window is predicted."""
        self._done += 1
        if self._on_window is not None:
            self._on_window(self._done, self._planned + self._guessed)

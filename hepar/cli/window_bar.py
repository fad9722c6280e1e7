"""The progress of a prediction on the command line: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from hepar.cli.messages import print_message
from hepar.runtime.progress import LINE_SECONDS

if TYPE_CHECKING:
    from hepar.inference.window_count import OnWindow


@contextmanager
def window_bar(name: str) -> Iterator[OnWindow]:
    """Show how many windows of a scan are predicted, on stderr."""
    console, last_line = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TextColumn("windows"), console=console, transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    def print_line(done: int, total: int) -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= LINE_SECONDS:
            last_line = time.monotonic()
            print_message(f"{name}: {done}/{total} windows")

    yield print_line

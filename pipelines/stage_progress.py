"""Progress of a local run: the stages report their status to files in a folder, which are shown as a table or lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hepar.runtime.progress import LINE_SECONDS, StageStatus

STAGES = (  # and the check before them
    "check",
    "ingest",
    "train-liver-CT",
    "train-liver-MR",
    "pseudo-label",
    "assemble-pool",
    "train-universal",
    "evaluate",
    "register",
)
POLL_SECONDS = 0.5


def read_statuses(folder: Path) -> list[StageStatus]:
    """The stages that have started, in pipeline order."""
    paths = (folder / f"{name}.json" for name in STAGES)
    return [StageStatus(**json.loads(path.read_text())) for path in paths if path.is_file()]


def show_while(running: Callable[[], bool], folder: Path) -> None:
    """Show the stages' progress until `running` returns false: a live table on a terminal, lines elsewhere."""
    console = Console()
    if not console.is_terminal:
        _print_lines(running, folder)
        return
    with Live(console=console, refresh_per_second=2) as live:
        while running():
            live.update(_table(folder))
            time.sleep(POLL_SECONDS)
        live.update(_table(folder))


def _print_lines(running: Callable[[], bool], folder: Path) -> None:
    """One line for each stage when it starts, every few seconds, and when it ends."""
    shown: dict[str, tuple[str, float]] = {}
    alive = True
    while alive:
        alive = running()
        for status in read_statuses(folder):
            state, seconds = shown.get(status.stage, ("", 0.0))
            if status.state != state or status.seconds - seconds >= LINE_SECONDS:
                shown[status.stage] = (status.state, status.seconds)
                print(f"{status.stage:16} {status.state:8} {status.seconds:6.0f} s  {_steps(status)}", flush=True)
        time.sleep(POLL_SECONDS if alive else 0)


def _table(folder: Path) -> Table:
    table = Table("stage", "state", "seconds", "progress")
    started = {status.stage: status for status in read_statuses(folder)}
    for name in STAGES:
        if name in started:
            status = started[name]
            table.add_row(name, status.state, f"{status.seconds:.0f}", _steps(status))
        else:
            table.add_row(name, "", "", "")
    return table


def _steps(status: StageStatus) -> str:
    count = f"{status.done}/{status.total} " if status.total else ""
    return count + status.message

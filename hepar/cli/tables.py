"""Tables on standard output: for people, as CSV or as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hepar.cli.options import TableFormat
from hepar.runtime.csv_cells import frame_to_csv

if TYPE_CHECKING:
    import pandas as pd

MAX_CHARACTERS = 400  # width of a table


def print_frame(frame: pd.DataFrame, format: TableFormat) -> None:
    """Print a data frame in the given format; missing numbers are empty in a table."""
    if format == TableFormat.CSV:
        print(frame_to_csv(frame), end="")
    elif format == TableFormat.JSON:
        print(frame.to_json(orient="records", indent=2))
    else:
        table = Table(*map(str, frame.columns))
        for row in frame.itertuples(index=False):
            table.add_row(*map(_cell, row))
        print_table(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def print_table(table: Table) -> None:
    """Print a table without truncating its cells, however narrow the terminal is."""
    console = Console()
    needed = console.measure(table, options=console.options.update(width=MAX_CHARACTERS)).maximum
    Console(width=max(console.width, needed)).print(table)

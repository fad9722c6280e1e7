"""Options that commands share, and how they print tables."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

WIDEST = 400  # of a table, in characters


class TableFormat(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


ParamsFile = Annotated[Path, typer.Option("--params", help="The params file; it may extend another.")]
Source = Annotated[
    str,
    typer.Option(
        help="A table of cases, a folder or zip of a known layout, s3://BUCKET/PREFIX, dicomweb+https://HOST/PATH,"
        " or 'phantoms'."
    ),
]
Layout = Annotated[
    str | None, typer.Option(help="How the source is laid out; overrides ingest.layout.", show_default="auto")
]
SplitFrom = Annotated[
    str | None,
    typer.Option(
        help="A table of official splits (case_id or patient_id, split), or an earlier cohort; overrides"
        " ingest.split_from.",
        show_default="none: by a hash of the patient",
    ),
]
CohortFolder = Annotated[Path, typer.Option("--cohort", help="The cohort, written by 'hepar ingest'.")]
PseudoFolder = Annotated[Path, typer.Option("--pseudo", help="The pseudo-labels, written by 'hepar pseudo-label'.")]
PoolFolder = Annotated[Path, typer.Option("--pool", help="The pool, written by 'hepar assemble-pool'.")]
CtTeacher = Annotated[Path, typer.Option("--teacher-ct", help="The CT liver teacher.")]
MrTeacher = Annotated[Path, typer.Option("--teacher-mr", help="The MR liver teacher.")]
ModelFolder = Annotated[Path, typer.Option("--model", help="The universal model.")]
ReportFolder = Annotated[Path, typer.Option("--report", help="The report, written by 'hepar evaluate'.")]

PARAMS, COHORT, PSEUDO, POOL = Path("params.yaml"), Path("cohort"), Path("pseudo"), Path("pool")
TEACHER_CT, TEACHER_MR, UNIVERSAL = Path("models/liver-ct"), Path("models/liver-mr"), Path("models/universal")
REPORT, REGISTRATION = Path("report"), Path("registration")
CALIBRATION, REVIEWS = Path("calibration"), Path("reviews")


def print_table(frame: Any, format: TableFormat) -> None:
    """Print a data frame as a table for people, as CSV or as JSON."""
    if format == TableFormat.CSV:
        print(frame.to_csv(index=False), end="")
    elif format == TableFormat.JSON:
        print(frame.to_json(orient="records", indent=2))
    else:
        table = Table(*map(str, frame.columns))
        for row in frame.itertuples(index=False):
            table.add_row(*map(_cell, row))
        print_whole(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3f}"
    return str(value)


def print_whole(table: Table) -> None:
    """Print a table without cutting its cells, however narrow the terminal is."""
    console = Console()
    needed = console.measure(table, options=console.options.update(width=WIDEST)).maximum
    Console(width=max(console.width, needed)).print(table)

"""Options that commands share, and the default places of params file and artifacts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hepar.params import Params  # pydantic is slow to import


class TableFormat(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


SOURCE_HELP = (
    "A table of cases, a folder or zip in a known layout, s3://BUCKET/PREFIX, dicomweb+https://HOST/PATH or"
    " 'phantoms'; overrides the key source of the params file."
)
ParamsFile = Annotated[Path, typer.Option("--params", help="Params file; it may extend another.")]
Source = Annotated[str | None, typer.Option(help=SOURCE_HELP)]
Layout = Annotated[str | None, typer.Option(help="Layout of the source; overrides ingest.layout.")]
SplitFrom = Annotated[
    str | None,
    typer.Option(
        help="A table of official splits (case_id or patient_id, split) or an earlier cohort; overrides"
        " ingest.split_from."
    ),
]
CohortFolder = Annotated[Path, typer.Option("--cohort", help="Cohort folder, written by 'hepar ingest'.")]
PseudoFolder = Annotated[Path, typer.Option("--pseudo", help="Pseudo-label folder, written by 'hepar pseudo-label'.")]
PoolFolder = Annotated[Path, typer.Option("--pool", help="Pool folder, written by 'hepar assemble-pool'.")]
CtTeacher = Annotated[Path, typer.Option("--teacher-ct", help="CT liver teacher, a model folder.")]
MrTeacher = Annotated[Path, typer.Option("--teacher-mr", help="MR liver teacher, a model folder.")]
UniversalModel = Annotated[Path, typer.Option("--model", help="Universal model, a model folder.")]
ReportFolder = Annotated[Path, typer.Option("--report", help="Report folder, written by 'hepar evaluate'.")]

PARAMS, COHORT, PSEUDO, POOL = Path("params.yaml"), Path("cohort"), Path("pseudo"), Path("pool")
TEACHER_CT, TEACHER_MR, UNIVERSAL = Path("models/liver-ct"), Path("models/liver-mr"), Path("models/universal")
REPORT, REGISTRATION = Path("report"), Path("registration")
CALIBRATION, REVIEWS = Path("calibration"), Path("reviews")


def load_with_options(
    path: Path, source: str | None = None, layout: str | None = None, split_from: str | None = None
) -> Params:
    """The params of a file, in which given options override the keys of the same name."""
    from hepar.params import load_params

    params = load_params(path)
    options = {"layout": layout, "split_from": split_from}
    given = {name: value for name, value in options.items() if value is not None}
    updates: dict[str, object] = {"ingest": params.ingest.model_copy(update=given)}
    if source is not None:
        updates["source"] = source
    return params.model_copy(update=updates)

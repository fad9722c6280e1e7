"""Options that commands share, and the default places of params file and artifacts."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hepar.errors import ParamsError

if TYPE_CHECKING:
    from hepar.params import Params  # pydantic is slow to import


class TableFormat(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class UnevenSlices(StrEnum):
    """What to do with DICOM slices that are tilted or unevenly spaced."""

    REFUSE = "refuse"
    RESAMPLE = "resample"


SOURCE_HELP = (
    "A table of cases, a folder or zip in a known layout, s3://BUCKET/PREFIX, dicomweb+https://HOST/PATH or"
    " 'phantoms'; overrides `source` in the params file."
)
Whole = Annotated[
    bool, typer.Option("--whole", help="Predict all windows of a scan, not only those that matter to its liver.")
]
Uneven = Annotated[
    UnevenSlices, typer.Option("--uneven-slices", help="What to do with slices that are tilted or unevenly spaced.")
]
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
ScoredCohort = Annotated[
    Path | None,
    typer.Option(
        "--cohort",
        help="Cohort folder that the report scores, for a champion that was scored on other test patients. Without one,"
        " it is taken from HEPAR_STORE, if the version names it.",
        show_default="cohort, if it exists, even if HEPAR_STORE is set",
    ),
]
PseudoFolder = Annotated[Path, typer.Option("--pseudo", help="Pseudo-label folder, written by 'hepar pseudo-label'.")]
PoolFolder = Annotated[Path, typer.Option("--pool", help="Pool folder, written by 'hepar assemble-pool'.")]
CtTeacher = Annotated[Path, typer.Option("--teacher-ct", help="Model folder of the CT liver teacher.")]
MrTeacher = Annotated[Path, typer.Option("--teacher-mr", help="Model folder of the MR liver teacher.")]
UniversalModel = Annotated[Path, typer.Option("--model", help="Model folder of the universal model.")]
ReportFolder = Annotated[Path, typer.Option("--report", help="Report folder, written by 'hepar evaluate'.")]

PARAMS, COHORT, PSEUDO, POOL = Path("params.yaml"), Path("cohort"), Path("pseudo"), Path("pool")
TEACHER_CT, TEACHER_MR, UNIVERSAL = Path("models/liver-ct"), Path("models/liver-mr"), Path("models/universal")
REPORT, REGISTRATION = Path("report"), Path("registration")
CALIBRATION, REVIEWS = Path("calibration"), Path("reviews")


def scored_cohort(given: Path | None) -> Path | None:
    """The folder that `--cohort` gives, else the default one if it exists."""
    return given or (COHORT if COHORT.is_dir() else None)


def load_with_options(
    path: Path, source: str | None = None, layout: str | None = None, split_from: str | None = None
) -> Params:
    """The params of a file, in which given options override the keys of the same name.

    Raises ParamsError if one is an address with a user name or password.
    """
    from hepar.params import load_params
    from hepar.runtime.redaction import CREDENTIALS_RULE, has_credentials, redact_address

    for name, value in {"source": source, "split-from": split_from}.items():
        if value is not None and has_credentials(value):
            raise ParamsError(f"--{name} is {redact_address(value)}: {CREDENTIALS_RULE}")

    params = load_params(path)
    options = {"layout": layout, "split_from": split_from}
    given = {name: value for name, value in options.items() if value is not None}
    updates: dict[str, object] = {"ingest": params.ingest.model_copy(update=given)}
    if source is not None:
        updates["source"] = source
    return params.model_copy(update=updates)

"""A CSV or Parquet table of cases, with paths of volumes that SimpleITK reads."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.errors import ParserWarning

from hepar.cases import LabelState, Modality, Split, parse_enum
from hepar.errors import DataError
from hepar.ingest.sources.s3 import SCHEME
from hepar.ingest.sources.source import SourceCase, VolumeFile

REQUIRED = ("case_id", "modality", "image", "liver_state", "tumour_state")
OPTIONAL = {
    "patient_id": "",  # the case's own id
    "sequence": "",
    "liver": "",
    "tumour": "",
    "split": "",  # by a hash of the patient
    "source": "table",
    "licence": "",
    "spacing_known": "yes",
}
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # ids name folders


def read_table(path: Path, locate_s3: Callable[[str], Path] | None = None) -> list[SourceCase]:
    """The cases of a table. Paths are relative to the table, or `s3://` addresses, which `locate_s3` makes local.

    An empty cell of an optional column means the same as a missing column. Raises DataError naming table, case, column
    and value if a column is missing or a value is invalid.
    """
    frame = read_frame(path)
    if len(frame.columns) == 1 and ";" in str(frame.columns[0]):
        raise DataError(f"{path}: cells are separated by semicolons, must be separated by commas")
    if missing := [name for name in REQUIRED if name not in frame.columns]:
        raise DataError(f"{path}: column {missing[0]} is missing; columns are {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise DataError(f"{path} lists no case")
    rows = frame.to_dict(orient="records")

    for number, row in enumerate(rows, start=1):
        if empty := [name for name in REQUIRED if not row[name]]:
            raise DataError(f"{path}, row {number}: {empty[0]} is empty")
    cells = [{**OPTIONAL, **{str(key): value for key, value in row.items() if value}} for row in rows]
    return [_case(path, row, partial(locate, path, locate_s3=locate_s3)) for row in cells]


def locate(table: Path, cell: str, locate_s3: Callable[[str], Path] | None) -> Path:
    """The local path of a file that a cell of a table names."""
    if locate_s3 is not None and cell.startswith(SCHEME):
        return locate_s3(cell)
    return Path(os.path.normpath(table.parent / cell))


def read_frame(path: Path) -> pd.DataFrame:
    """A table with every cell as text, an empty one as "". Raises DataError if it cannot be read."""
    try:
        frame = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (ValueError, OSError, ParserWarning) as error:
        raise DataError(f"{path} cannot be read as a table: {str(error).strip()}") from None
    return frame.dropna(how="all").fillna("").astype(str)  # spreadsheets leave rows of nothing but commas


def _read_csv(path: Path) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)  # raised for rows longer than the header
        return pd.read_csv(path, dtype=str, index_col=False)


def _read_parquet(path: Path) -> pd.DataFrame:
    """A Parquet table whose integers stay integers beside empty cells: patient 1 never becomes 1.0."""
    return pd.read_parquet(path, dtype_backend="numpy_nullable").convert_dtypes().astype("string")


def _case(table: Path, row: dict[str, Any], find: Callable[[str], Path]) -> SourceCase:
    case_id = row["case_id"]
    if not SAFE_ID.fullmatch(case_id):
        raise DataError(f"{table}: case id {case_id!r} must consist of letters, digits, dots, dashes and underscores")
    states = {
        name: parse_enum(LabelState, row[name], case_id=case_id, column=name)
        for name in ("liver_state", "tumour_state")
    }
    for name, state in states.items():
        structure = name.removesuffix("_state")
        if state == LabelState.PSEUDO:
            raise DataError(f"case {case_id}: {name} is pseudo, but pseudo-labels are made by the pipeline, not read")
        if (state == LabelState.MANUAL) != bool(row[structure]):
            given = repr(row[structure]) if row[structure] else "empty"
            raise DataError(f"case {case_id}: {name} is {state} but column {structure} is {given}")
    return SourceCase(
        case_id=case_id,
        patient_id=row["patient_id"] or case_id,
        modality=parse_enum(Modality, row["modality"], case_id=case_id, column="modality"),
        sequence=row["sequence"],
        image=VolumeFile(find(row["image"])),
        liver=VolumeFile(find(row["liver"])) if row["liver"] else None,
        tumour=VolumeFile(find(row["tumour"])) if row["tumour"] else None,
        liver_state=states["liver_state"],
        tumour_state=states["tumour_state"],
        split=parse_enum(Split, row["split"], case_id=case_id, column="split") if row["split"] else None,
        source=row["source"],
        licence=row["licence"],
        distances_known=row["spacing_known"].lower() in ("yes", "true", "1"),
    )

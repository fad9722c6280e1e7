"""A CSV or Parquet table of cases, with paths of volumes that SimpleITK reads."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from pandas.errors import ParserWarning

from hepar.cases import NOMINAL, STRUCTURES, LabelState, Modality, Split, parse_enum, parse_flag
from hepar.errors import DataError, Refusal, one_line
from hepar.ingest.sources.source import SourceCase, VolumeFile, refused_case
from hepar.runtime.csv_cells import original_text
from hepar.runtime.s3_client import SCHEME

REQUIRED = ("case_id", "modality", "image", "liver_state", "tumour_state")
OPTIONAL = {
    "patient_id": "",  # without the column each case is a patient, see `_patient`
    "sequence": "",
    "liver": "",
    "tumour": "",
    "split": "",  # by a hash of the patient
    "source": "table",
    "licence": "",
    "spacing_known": "yes",
}
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # ids name folders
MAX_NAME_BYTES = 255  # of a file or folder, on most file systems
VALID_ROW = "every row of a table is valid"


def read_table(path: Path, locate_s3: Callable[[str], Path] | None = None) -> list[SourceCase]:
    """The cases of a table. Paths are relative to the table, or `s3://` addresses, which `locate_s3` makes local.

    An empty cell of an optional column means the same as a missing column, but that of `patient_id` is invalid. A row
    with an invalid cell becomes a case that is refused. Raises DataError if the table cannot be read, is empty or lacks
    a column.
    """
    frame = read_frame(path)
    if len(frame.columns) == 1 and ";" in str(frame.columns[0]):
        raise DataError(f"{path}: columns are separated by semicolons but must be separated by commas")
    if missing := [name for name in REQUIRED if name not in frame.columns]:
        raise DataError(f"{path}: column {missing[0]} is missing; columns are {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise DataError(f"{path} lists no cases")
    rows = [{str(key): value for key, value in row.items()} for row in frame.to_dict(orient="records")]
    find = partial(locate, path, locate_s3=locate_s3)
    return [_case_or_refusal(path, number, row, find) for number, row in enumerate(rows, start=1)]


def _case_or_refusal(table: Path, number: int, row: Mapping[str, str], find: Callable[[str], Path]) -> SourceCase:
    """The case of a row, or a case that is refused since a cell is invalid."""
    case_id = row["case_id"] if SAFE_ID.fullmatch(row["case_id"]) else f"row-{number}"
    try:
        if empty := [name for name in REQUIRED if not row[name]]:
            raise DataError(f"row {number}: {empty[0]} is empty")
        case = _case({**OPTIONAL, **{key: value for key, value in row.items() if value}}, _patient(row), find)
        return replace(case, roots=_roots(table.parent, case))
    except DataError as error:
        return refused_case(case_id, table, Refusal(VALID_ROW, str(error).removeprefix(f"case {case_id}: ")))


def _roots(folder: Path, case: SourceCase) -> tuple[Path, ...]:
    """The folders in which the files of a row lie: that of the table, and those of volumes that it names elsewhere."""
    named = [volume.path for volume in (case.image, case.liver, case.tumour) if isinstance(volume, VolumeFile)]
    outside = {path.parent for path in named if not path.is_relative_to(folder)}
    return (folder, *sorted(outside | {folder.resolve() for folder in outside}))


def _patient(row: Mapping[str, str]) -> str:
    """The patient of a row: that of `patient_id`, or the case itself in a table without this column.

    Raises DataError if the column exists and the cell is empty: such scans of one patient would get different splits.
    """
    patient = row.get("patient_id", row["case_id"])
    if not patient:
        raise DataError(
            f"case {row['case_id']}: patient_id is empty; without the column patient_id each case is a patient"
        )
    return patient


def locate(table: Path, cell: str, locate_s3: Callable[[str], Path] | None) -> Path:
    """The local path of a file that a cell of a table names."""
    if locate_s3 is not None and cell.startswith(SCHEME):
        return locate_s3(cell)
    return Path(os.path.normpath(table.parent / cell))


def read_frame(path: Path) -> pd.DataFrame:
    """A table with every cell as text without surrounding spaces, an empty one as "".

    `NA`, `null` and the like are texts, as a patient may be called. Rows of nothing but empty cells, as spreadsheets
    leave them, are dropped. In a CSV, the apostrophe of an inert cell is taken off. Raises DataError if it cannot be
    read.
    """
    try:
        frame = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
        frame = frame.fillna("").astype(str)
    except Exception as error:  # whatever a damaged file does to the parser
        raise DataError(f"{path} cannot be read as a table: {one_line(error)}") from None
    frame = frame.set_axis([str(name).strip() for name in frame.columns], axis="columns")
    if len(twice := frame.columns[frame.columns.duplicated()]):
        raise DataError(f"{path}: column {twice[0]} occurs twice")
    frame = frame.apply(lambda column: column.str.strip())
    filled: pd.DataFrame = frame[(frame != "").any(axis="columns")]
    return filled


def _read_csv(path: Path) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ParserWarning)  # raised for rows longer than the header
        return pd.read_csv(path, dtype=str, index_col=False, keep_default_na=False).map(original_text)


def _read_parquet(path: Path) -> pd.DataFrame:
    """A Parquet table whose integers stay integers beside empty cells: patient 1 never becomes 1.0."""
    return pd.read_parquet(path, dtype_backend="numpy_nullable").convert_dtypes().astype("string")


def _case(row: Mapping[str, str], patient_id: str, find: Callable[[str], Path]) -> SourceCase:
    """The case of a row with a value in every column. Raises DataError naming case, column and value."""
    case_id = row["case_id"]
    if not SAFE_ID.fullmatch(case_id):
        raise DataError(
            f"case id {case_id!r} must consist of at most 128 letters, digits, dots, dashes and underscores"
        )
    for name in ("image", *STRUCTURES):
        _check_path(row[name], case_id, name)
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
    distances_known = parse_flag(row["spacing_known"], case_id, "spacing_known", NOMINAL)
    return SourceCase(
        case_id=case_id,
        patient_id=patient_id,
        modality=parse_enum(Modality, row["modality"], case_id=case_id, column="modality"),
        sequence=row["sequence"],
        image=VolumeFile(find(row["image"]), distances_known),
        liver=VolumeFile(find(row["liver"]), distances_known) if row["liver"] else None,
        tumour=VolumeFile(find(row["tumour"]), distances_known) if row["tumour"] else None,
        liver_state=states["liver_state"],
        tumour_state=states["tumour_state"],
        split=parse_enum(Split, row["split"], case_id=case_id, column="split") if row["split"] else None,
        source=row["source"],
        licence=row["licence"],
        distances_known=distances_known,
    )


def _check_path(cell: str, case_id: str, column: str) -> None:
    """Raise DataError naming case and column if no file can have the name in a cell."""
    if not cell.isprintable():
        raise DataError(f"case {case_id}: {column} holds a control character")
    longest = max(len(os.fsencode(part)) for part in cell.split("/"))
    if longest > MAX_NAME_BYTES:
        raise DataError(f"case {case_id}: {column} holds a name of {longest} bytes, more than {MAX_NAME_BYTES}")

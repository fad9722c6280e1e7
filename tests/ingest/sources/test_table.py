"""A table of cases: rows that spreadsheets leave, and the errors of tables that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hepar.errors import DataError
from hepar.ingest.sources.table import read_table

HEADER = "case_id,modality,image,liver_state,tumour_state"
ROW = "a,CT,a.nii.gz,unknown,absent"


def written(folder: Path, *lines: str) -> Path:
    path = folder / "cohort.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_of_nothing_but_commas_are_skipped(tmp_path: Path) -> None:
    (case,) = read_table(written(tmp_path, HEADER, ROW, ",,,,"))
    assert case.case_id == "a"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((HEADER, ROW, ",CT,b.nii.gz,unknown,absent"), r"cohort\.csv, row 2: case_id is empty$"),
        ((HEADER, ROW + ",more"), r"cohort\.csv cannot be read as a table: "),
        ((HEADER.replace(",", ";"), ROW.replace(",", ";")), "separated by semicolons, must be separated by commas$"),
    ],
    ids=["empty cell", "longer row", "semicolons"],
)
def test_a_faulty_table_is_refused_naming_the_fault(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_table(written(tmp_path, *lines))

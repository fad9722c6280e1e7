"""CSV for spreadsheets: formulas are inert, texts such as `NA` stay texts, numbers stay numbers."""

from __future__ import annotations

import pandas as pd
import pytest

from hepar.evaluation.report_folder import Report
from hepar.runtime.csv_cells import frame_from_csv, frame_to_csv

FRAME = pd.DataFrame(
    {
        "case_id": ["=cmd|' /C calc'!A0", "NA", "-7", ""],
        "patient_id": ["null", "None", "nan", "'=1"],
        "dice": [0.5, None, -1.5, 2.0],
        "known": [True, False, True, True],
    }
)


def test_a_table_survives_a_round_trip() -> None:
    pd.testing.assert_frame_equal(frame_from_csv(frame_to_csv(FRAME), ("case_id", "patient_id")), FRAME)


def test_no_text_is_a_formula_and_negative_numbers_stay_numbers() -> None:
    lines = frame_to_csv(FRAME).splitlines()
    assert lines[1].startswith("'=cmd")
    assert lines[3] == "'-7,nan,-1.5,True"


def test_an_empty_table_keeps_its_columns() -> None:
    assert frame_to_csv(pd.DataFrame(columns=["a", "b"])) == "a,b\n"


@pytest.mark.parametrize("name", ["NA", "null", "=1"])
def test_a_report_keeps_the_names_of_cases(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    report = Report(tmp_path_factory.mktemp("report"))
    cases = pd.DataFrame({"case_id": [name], "patient_id": [name], "dice": [0.5]})
    report.save({}, {}, cases, pd.DataFrame({"case_id": [name], "lesion": [1]}))
    (row,) = pd.read_csv(report.folder / Report.CASES, dtype=str, keep_default_na=False).to_dict("records")
    assert row["case_id"] == ("'=1" if name == "=1" else name)

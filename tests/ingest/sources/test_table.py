"""A table of cases: rows that spreadsheets leave, rows that are refused, patients, and what is no table."""

from __future__ import annotations

import pickle
from pathlib import Path

import pandas as pd
import pytest

from hepar.errors import DataError
from hepar.ingest.building import build_case
from hepar.ingest.quarantine import Refused
from hepar.ingest.sources.s3 import Buckets
from hepar.ingest.sources.table import read_frame, read_table
from hepar.runtime.csv_cells import frame_to_csv

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
        ((HEADER, ROW + ",more"), r"cohort\.csv cannot be read as a table: "),
        (
            (HEADER.replace(",", ";"), ROW.replace(",", ";")),
            "columns are separated by semicolons but must be separated by commas$",
        ),
    ],
    ids=["longer row", "semicolons"],
)
def test_a_faulty_table_is_refused_naming_the_fault(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_table(written(tmp_path, *lines))


@pytest.mark.parametrize(
    ("row", "case_id", "value"),
    [
        (",CT,b.nii.gz,unknown,absent", "row-2", "row 2: case_id is empty"),
        ("../b,CT,b.nii.gz,unknown,absent", "row-2", "case id '../b' must consist of at most 128 letters"),
        ("b,,b.nii.gz,unknown,absent", "b", "row 2: modality is empty"),
        ("b,PET,b.nii.gz,unknown,absent", "b", "modality is 'PET' but must be one of CT, MR"),
        ("b,CT,b.nii.gz,pseudo,absent", "b", "liver_state is pseudo, but pseudo-labels are made by the pipeline"),
        ("b,CT,b.nii.gz,manual,absent", "b", "liver_state is manual but column liver is empty"),
        ("b,CT,b\0.nii.gz,unknown,absent", "b", "image holds a control character"),
        (f"b,CT,{'b' * 300}.nii.gz,unknown,absent", "b", "image holds a name of 307 bytes, more than 255"),
        ("b,CT,s3:///b.nii.gz,unknown,absent", "b", "s3:///b.nii.gz is not an S3 address"),
    ],
)
def test_a_bad_row_is_refused_and_the_others_are_read(row: str, case_id: str, value: str, tmp_path: Path) -> None:
    table = written(tmp_path, HEADER, ROW, row, f"c{ROW[1:]}")
    good, bad, last = read_table(table, Buckets(tmp_path).path)
    assert (good.case_id, good.fault, last.case_id, last.fault) == ("a", None, "c", None)
    assert bad.case_id == case_id
    assert bad.fault is not None
    assert bad.fault.rule == "every row of a table is valid"
    assert bad.fault.value.startswith(value)
    refused = build_case(pickle.loads(pickle.dumps(bad)), tmp_path)  # cases are sent to other processes
    assert isinstance(refused, Refused)
    assert refused.value == bad.fault.value


@pytest.mark.parametrize(("cell", "known"), [("TRUE", True), ("0", False), ("approximate", False), ("y", None)])
def test_a_voxel_size_is_known_or_nominal_and_any_other_word_is_refused(
    cell: str, known: bool | None, tmp_path: Path
) -> None:
    (case,) = read_table(written(tmp_path, f"{HEADER},spacing_known", f"{ROW},{cell}"))
    if known is None:
        assert case.fault is not None
        assert case.fault.value == "spacing_known is 'y' but must be one of yes, true, 1, no, false, 0, approximate"
    else:
        assert (case.fault, case.distances_known) == (None, known)


@pytest.mark.parametrize("patient", ["NA", "null", "None", "nan", "N/A", "-", "007"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_patient_may_have_any_name(suffix: str, patient: str, tmp_path: Path) -> None:
    table = written(tmp_path, f"{HEADER},patient_id", f"{ROW},{patient}")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    if suffix == ".parquet":
        table = tmp_path / "cohort.parquet"
        pd.DataFrame(rows[1:2], columns=rows[0]).to_parquet(table)
    assert read_table(table)[0].patient_id == patient


def test_spaces_around_a_cell_make_no_other_patient(tmp_path: Path) -> None:
    table = written(tmp_path, f"{HEADER}, patient_id", f"{ROW},P1 ", f"b{ROW[1:]}, P1")
    assert [case.patient_id for case in read_table(table)] == ["P1", "P1"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("empty", ["", "  ", None, float("nan")])
def test_a_row_without_its_patient_is_refused(empty: object, suffix: str, tmp_path: Path) -> None:
    table = tmp_path / f"cohort{suffix}"
    frame = pd.DataFrame([ROW.split(","), f"b{ROW[1:]}".split(",")], columns=HEADER.split(","))
    frame["patient_id"] = ["P1", empty]
    frame.to_csv(table, index=False) if suffix == ".csv" else frame.to_parquet(table)
    first, second = read_table(table)
    assert (first.patient_id, first.fault) == ("P1", None)
    assert second.fault is not None
    assert second.fault.value == "patient_id is empty; without the column patient_id each case is a patient"


def test_in_a_table_without_patients_each_case_is_one(tmp_path: Path) -> None:
    cases = read_table(written(tmp_path, HEADER, ROW, f"b{ROW[1:]}"))
    assert [(case.patient_id, case.fault) for case in cases] == [("a", None), ("b", None)]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0\0", b"PAR1 and no more"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_file_that_is_no_table_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / f"cohort{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=rf"cohort\{suffix}"):
        read_table(tmp_path / f"cohort{suffix}")


def test_lists_in_a_parquet_table_refuse_their_row(tmp_path: Path) -> None:
    frame = pd.DataFrame([ROW.split(",")], columns=HEADER.split(","))
    frame["modality"] = [["CT", "MR"]]
    frame.to_parquet(tmp_path / "cohort.parquet")
    (case,) = read_table(tmp_path / "cohort.parquet")
    assert case.fault is not None
    assert "modality is" in case.fault.value


def test_texts_of_a_table_that_hepar_wrote_come_back_without_their_mark(tmp_path: Path) -> None:
    written = pd.DataFrame({"case_id": ["a", "b", "c", "d"], "patient_id": ["-7", "=1+1", "'@x", "O'Hara"]})
    (tmp_path / "cases.csv").write_text(frame_to_csv(written))
    assert read_frame(tmp_path / "cases.csv")["patient_id"].tolist() == ["-7", "=1+1", "'@x", "O'Hara"]

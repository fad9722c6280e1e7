"""Cases and cohorts: the table is read back as written, and every patient belongs to one split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hepar.cases import Case, Cohort, LabelState, Modality, Split, cases_frame, check_patients, parse_enum
from hepar.errors import DataError

CT = Case(
    case_id="ct-1",
    patient_id="p1",
    source="table",
    modality=Modality.CT,
    sequence="portal-venous",
    image="volumes/ct-1/image.nii.gz",
    liver="volumes/ct-1/liver.nii.gz",
    tumour="",
    liver_state=LabelState.MANUAL,
    tumour_state=LabelState.UNKNOWN,
    split=Split.TRAIN,
    spacing_mm=(5.0, 0.78125, 0.75),
    size=(40, 512, 500),
    licence="CC0-1.0",
    image_sha256="ab",
    header='{"voxel_type": "16-bit signed integer"}',
)
MR = replace(
    CT,
    case_id="mr-1",
    patient_id="p2",
    modality=Modality.MR,
    liver="",
    tumour="volumes/mr-1/tumour.nii.gz",
    liver_state=LabelState.UNKNOWN,
    tumour_state=LabelState.MANUAL,
    split=Split.VAL,
    distances_known=False,
)
HEALTHY = replace(CT, case_id="ct-2", patient_id="p3", tumour_state=LabelState.ABSENT, split=Split.TEST)
CASES = (CT, HEALTHY, MR)


def test_a_cohort_is_read_back_as_written(tmp_path: Path) -> None:
    Cohort(tmp_path, CASES).save()
    loaded = Cohort.load(tmp_path)
    assert loaded == Cohort(tmp_path, CASES)
    assert isinstance(loaded.cases[0].tumour_state, LabelState)
    assert isinstance(loaded.cases[0].size, tuple)


def test_the_table_does_not_depend_on_the_order_of_cases(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Cohort(tmp_path / "a", CASES).save()
    Cohort(tmp_path / "b", CASES[::-1]).save()
    assert (tmp_path / "a" / Cohort.TABLE).read_bytes() == (tmp_path / "b" / Cohort.TABLE).read_bytes()


def test_an_empty_cohort_keeps_its_columns(tmp_path: Path) -> None:
    Cohort(tmp_path, ()).save()
    assert len(Cohort.load(tmp_path)) == 0
    assert "liver_state" in cases_frame(()).columns


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a cohort: cases\.parquet is missing"):
        Cohort.load(tmp_path)


def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path) -> None:
    Cohort(tmp_path, CASES).save()
    table = bytearray((tmp_path / Cohort.TABLE).read_bytes())
    table[4:40] = b"\xff" * 36  # the header of the first page, of which Arrow complains in two lines
    (tmp_path / Cohort.TABLE).write_bytes(table)
    with pytest.raises(DataError, match=r"cases\.parquet is damaged or was written by another version") as refused:
        Cohort.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_an_invalid_label_state_is_refused_with_case_and_column(tmp_path: Path) -> None:
    frame = cases_frame(CASES)
    frame.loc[frame.case_id == "mr-1", "liver_state"] = "maybe"
    frame.to_parquet(tmp_path / Cohort.TABLE)
    message = "case mr-1: liver_state is 'maybe' but must be one of manual, pseudo, unknown, absent"
    with pytest.raises(DataError, match=message):
        Cohort.load(tmp_path)


def test_cases_are_selected_by_modality_and_split() -> None:
    cohort = Cohort(Path("nowhere"), CASES)
    assert cohort.select() == CASES
    assert cohort.select(Modality.CT) == (CT, HEALTHY)
    assert cohort.select(splits=[Split.VAL, Split.TEST]) == (HEALTHY, MR)
    assert cohort.select(Modality.CT, [Split.TEST]) == (HEALTHY,)
    assert cohort.select(Modality.MR, []) == ()


def test_paths_of_a_cohort_are_relative_to_its_folder() -> None:
    assert Cohort(Path("data"), CASES).file(CT.image) == Path("data/volumes/ct-1/image.nii.gz")


def test_a_patient_in_two_splits_is_refused_with_both_cases() -> None:
    again = replace(CT, case_id="ct-9", split=Split.TEST)
    message = "patient p1: ct-1 is in train but ct-9 is in test; a patient belongs to one split"
    with pytest.raises(DataError, match=message):
        check_patients([CT, MR, again])


def test_a_patient_may_have_several_scans_in_one_split() -> None:
    check_patients([CT, replace(CT, case_id="ct-9"), MR])
    check_patients([])


def test_a_repeated_case_id_is_refused() -> None:
    with pytest.raises(DataError, match="case ct-1: the id is used twice"):
        check_patients([CT, MR, CT])


@pytest.mark.parametrize("state", list(LabelState))
def test_every_label_state_survives_the_table(tmp_path: Path, state: LabelState) -> None:
    Cohort(tmp_path, (replace(CT, tumour_state=state),)).save()
    assert pd.read_parquet(tmp_path / Cohort.TABLE).tumour_state.tolist() == [state.value]
    assert Cohort.load(tmp_path).cases[0].tumour_state is state


@pytest.mark.parametrize("value", ["", "Manual", "background", None, 0])
def test_an_unknown_spelling_of_a_label_state_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="case ct-1: liver_state is "):
        parse_enum(LabelState, value, case_id="ct-1", column="liver_state")

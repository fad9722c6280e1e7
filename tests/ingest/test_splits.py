"""Splits: by a hash of the patient, by the source, by an official table; and what cannot be trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from phantom_folder import PhantomFolder, ingest, quarantine, refusal

from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.ingest.sources.source import SourceCase
from hepar.ingest.sources.table import read_table
from hepar.ingest.splits import assign_official_splits, assign_splits, read_splits, split_of
from hepar.params import Params, SplitParams

SPLIT = SplitParams(test=0.2, val=0.1)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_source_without_one_of_the_modalities_is_refused(source: PhantomFolder, tiny: Params, modality: str) -> None:
    source.rewrite([row for row in source.rows() if row["modality"] != modality])
    assert refusal(source, tiny.ingest).startswith(f"the cohort has no {modality} case, but modalities is CT, MR: ")


@pytest.mark.parametrize("modality", Modality)
def test_scans_of_a_modality_that_is_not_learned_are_left_out(
    source: PhantomFolder, tiny: Params, modality: Modality
) -> None:
    rows = source.rows()
    assert {row["modality"] for row in rows} == {"CT", "MR"}
    unlabelled = {"liver": "", "liver_state": "unknown"}  # no teacher of the other modality could be trained
    source.rewrite([row if row["modality"] == modality else {**row, **unlabelled} for row in rows])
    cohort = ingest(source, tiny.ingest, [modality])
    expected = [row["case_id"] for row in rows if row["modality"] == modality]
    assert [case.case_id for case in Cohort.load(cohort)] == sorted(expected)
    assert Cohort.load(cohort).modalities == (modality,)
    assert quarantine(cohort) == []


def test_a_source_without_any_tumour_is_refused(source: PhantomFolder, tiny: Params) -> None:
    source.rewrite([{**row, "tumour": "", "tumour_state": "unknown"} for row in source.rows()])
    assert refusal(source, tiny.ingest).startswith("the cohort has no training case with a manual tumour")


@pytest.mark.parametrize(
    ("split", "message"),
    [("train", "no CT test case"), ("test", "no CT training case with a manual liver")],
)
def test_a_source_that_cannot_be_split_is_refused(
    source: PhantomFolder, tiny: Params, split: str, message: str
) -> None:
    source.rewrite([{**row, "split": split} for row in source.rows()])
    assert message in refusal(source, tiny.ingest)


def test_a_patient_that_the_source_puts_in_two_splits_is_refused(source: PhantomFolder, tiny: Params) -> None:
    source.rewrite([{**row, "patient_id": "p1"} for row in source.rows()])
    assert "patient p1: phantom-ct-0000 is in test but " in refusal(source, tiny.ingest)


def test_the_split_of_a_patient_stays_as_the_cohort_grows(source: PhantomFolder) -> None:
    rows = source.rows()
    columns = [name for name in rows[0] if name != "split"]
    splits = []
    for length in (4, 8):
        source.rewrite(rows[:length], columns)
        listed = read_table(source.folder / "cohort.csv")
        assert all(case.split is None for case in listed)
        splits.append({case.case_id: split_of(case.patient_id, SPLIT) for case in listed})
    assert splits[0].items() <= splits[1].items()


def scan_of(patient: str) -> SourceCase:
    return SourceCase(
        case_id=f"{patient}-1",
        patient_id=patient,
        modality=Modality.CT,
        sequence="",
        image=Path("image.nii.gz"),
        liver=None,
        tumour=None,
        liver_state=LabelState.MANUAL,
        tumour_state=LabelState.UNKNOWN,
        split=None,
        source="table",
        licence="",
        distances_known=True,
    )


def test_patients_fall_into_splits_by_the_given_shares() -> None:
    splits = [split_of(f"p{number}", SPLIT) for number in range(2000)]
    assert splits.count(Split.TEST) / 2000 == pytest.approx(0.2, abs=0.03)
    assert splits.count(Split.VAL) / 2000 == pytest.approx(0.1, abs=0.03)


def test_all_scans_of_a_patient_share_its_split_whatever_they_are() -> None:
    for number in range(50):
        scan = scan_of(f"p{number}")
        others = (replace(scan, modality=Modality.MR), replace(scan, liver_state=LabelState.UNKNOWN))
        assert {case.split for case in assign_splits([scan, *others], SPLIT)} == {split_of(scan.patient_id, SPLIT)}


def test_a_split_of_the_source_precedes_the_hash() -> None:
    for split in Split:
        (case,) = assign_splits([replace(scan_of("p1"), split=split)], SPLIT)
        assert case.split == split


@pytest.mark.parametrize("patient", ["NA", "null", "None", "nan"])
def test_two_scans_of_a_patient_with_a_strange_name_never_meet_in_two_splits(
    patient: str, source: PhantomFolder, tmp_path: Path
) -> None:
    rows = [{**row, "patient_id": patient, "split": ""} for row in source.rows()]
    source.rewrite(rows)
    for test in (0.1, 0.5, 0.9):
        listed = assign_splits(read_table(source.folder / "cohort.csv"), SplitParams(test=test, val=0.05))
        assert {case.patient_id for case in listed} == {patient}
        assert len({case.split for case in listed}) == 1
    (tmp_path / "split.csv").write_text(f"patient_id,split\n{patient},val\n")
    assert read_splits(str(tmp_path / "split.csv")).patients == {patient: Split.VAL}


@pytest.mark.parametrize("column", ["case_id", "patient_id"])
def test_an_official_split_has_precedence(column: str, source: PhantomFolder, tiny: Params, tmp_path: Path) -> None:
    before = {case.case_id: case.split for case in Cohort.load(ingest(source, tiny.ingest))}
    moved = next(
        row for row in source.rows() if before[row["case_id"]] == Split.TRAIN and row["liver_state"] == "unknown"
    )
    assert moved["case_id"] != moved["patient_id"]
    (tmp_path / "split.csv").write_text(f"{column},split\n{moved[column]},val\nsomebody-else,test\n")
    params = tiny.ingest.model_copy(update={"split_from": str(tmp_path / "split.csv")})
    after = {case.case_id: case.split for case in Cohort.load(ingest(source, params))}
    changed = {case_id for case_id in before if before[case_id] != after[case_id]}
    patients = {row["case_id"]: row["patient_id"] for row in source.rows()}
    assert moved["case_id"] in changed
    assert {patients[case_id] for case_id in changed} == {moved["patient_id"]}
    assert {after[case_id] for case_id in changed} == {Split.VAL}


def test_the_splits_of_an_earlier_cohort_are_kept(source: PhantomFolder, tiny: Params, tmp_path: Path) -> None:
    earlier = ingest(source, tiny.ingest).rename(tmp_path / "earlier")
    other = SplitParams(test=0.9, val=0.05)
    params = tiny.ingest.model_copy(update={"split": other, "split_from": str(earlier)})
    splits = {case.case_id: case.split for case in Cohort.load(ingest(source, params))}
    assert splits == {case.case_id: case.split for case in Cohort.load(earlier)}


def test_new_and_renamed_scans_of_a_known_patient_get_its_split(tmp_path: Path) -> None:
    held_out = next(f"p{number}" for number in range(99) if split_of(f"p{number}", SPLIT) == Split.TRAIN)
    (tmp_path / "split.csv").write_text(f"case_id,patient_id,split\na,{held_out},test\n{held_out},b,val\nc,,train\n")
    official = read_splits(str(tmp_path / "split.csv"))
    named = replace(scan_of("somebody"), case_id=held_out)  # a case may be called as another case's patient
    scans = [replace(scan_of(held_out), case_id="a"), scan_of(held_out), named, replace(scan_of("new"), case_id="d")]
    splits = [case.split for case in assign_official_splits(scans, official)]
    assert splits == [Split.TEST, Split.TEST, Split.VAL, None]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("case_id,patient_id,split\nx,p,test\ny,p,train\n", "p is in both test and train"),
        ("case_id,patient_id,split\n,p,test\n", "case_id is empty in a row with split 'test'"),
        ("case_id,split\nphantom-ct-0000,testing\n", "split is 'testing'"),
        ("case_id,split\nx,test\nx,train\n", "x is in both test and train"),
        ("case_id,part\nx,test\n", "needs a column split and a column case_id or patient_id"),
        ("patient_id,split\n,test\n", "patient_id is empty in a row with split 'test'"),
        ("case_id,split\nx,test\n", "names no case or patient of the source"),
    ],
)
def test_a_faulty_split_table_is_named(
    content: str, words: str, source: PhantomFolder, tiny: Params, tmp_path: Path
) -> None:
    (tmp_path / "split.csv").write_text(content)
    with pytest.raises(DataError) as caught:
        ingest(source, tiny.ingest.model_copy(update={"split_from": str(tmp_path / "split.csv")}))
    assert words in str(caught.value)

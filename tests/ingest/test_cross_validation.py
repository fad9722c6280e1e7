"""Folds of a table by construction: who is tested, validated on, trained on, and never seen."""

import csv
import re
from collections import Counter
from io import StringIO

import pytest
import real_folds
from conftest import ROOT

from hepar.cases import Split
from hepar.errors import DataError
from hepar.ingest.cross_validation import (
    TUMOUR,
    TUMOUR_FREE,
    assign_folds,
    read_patients,
    split_fold,
    splits_as_csv,
    table_of,
)
from hepar.ingest.sources.table import read_table
from hepar.params import SplitParams

FOLDS = 4
RULE = SplitParams(test=0.2, val=0.1)
COLUMNS = "case_id,patient_id,modality,image,liver,tumour,liver_state,tumour_state,split"
KINDS = {  # liver and tumour state of each scan of a patient, and how many such patients are in train, val and test
    ("CT", ("manual manual",)): (7, 2, 3),
    ("CT", ("manual absent",)): (3, 0, 1),
    ("CT", ("manual manual", "unknown manual")): (1, 0, 0),
    ("CT", ("manual unknown", "manual unknown")): (1, 0, 0),
    ("CT", ("unknown manual",)): (3, 0, 0),
    ("CT", ("unknown unknown",)): (2, 0, 0),
    ("MR", ("manual absent",)): (4, 2, 3),
    ("MR", ("unknown absent",)): (4, 0, 0),
}


def table_text(reverse=False):
    lines = []
    for kind, ((modality, scans), counts) in enumerate(KINDS.items()):
        for split, number in ((s, n) for s, count in zip(Split, counts, strict=True) for n in range(count)):
            for scan, states in enumerate(scans):
                case = f"{split}-{kind}-{number}-{scan}"
                files = [
                    f"{case}/{name}.nii.gz" if state == "manual" else ""
                    for name, state in zip(("liver", "tumour"), states.split(), strict=True)
                ]
                image = f"{case}/image.nii.gz"
                lines.append(",".join([case, case[:-2], modality, image, *files, *states.split(), split]))
    return "\n".join([COLUMNS, *(lines[::-1] if reverse else lines)]) + "\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "scans" / "cohort.csv"
    path.parent.mkdir()
    path.write_text(table_text())
    return path


@pytest.fixture
def patients(table):
    return read_patients(table, RULE)


def all_splits(patients, folds=FOLDS):
    fold_of = assign_folds(patients, folds)
    return {fold: split_fold(patients, fold_of, fold, folds) for fold in range(1, folds + 1)}


def test_each_labelled_patient_is_tested_once_and_others_are_always_trained_on(patients):
    tested = Counter(name for splits in all_splits(patients).values() for name, s in splits.items() if s == Split.TEST)
    labelled = {p.patient_id for p in patients if p.split != Split.TEST and "-5-" not in p.patient_id}
    assert len(labelled) == 27
    assert tested == Counter(labelled)
    unknown = {splits[f"train-5-{number}"] for splits in all_splits(patients).values() for number in (0, 1)}
    assert unknown == {Split.TRAIN}


def test_strata_are_dealt_evenly(patients):
    fold_of = assign_folds(patients, FOLDS)
    strata = {patient.stratum for patient in patients if patient.patient_id in fold_of}
    for stratum in strata:
        sizes = Counter(fold_of[p.patient_id] for p in patients if p.patient_id in fold_of and p.stratum == stratum)
        counts = [sizes[fold] for fold in range(1, FOLDS + 1)]
        assert max(counts) - min(counts) <= 1, stratum
    for modality in ("CT", "MR"):
        members = Counter(
            fold_of[p.patient_id] for p in patients if p.patient_id in fold_of and modality in p.modalities
        )
        assert max(members.values()) - min(members.values()) <= 1


def test_all_scans_of_a_patient_are_in_one_split_and_none_of_the_test_split_is_anywhere(patients, table):
    kept = [patient for patient in patients if patient.split != Split.TEST]
    rows = list(csv.DictReader(StringIO(table_of(kept, str(table)))))
    assert not [row for row in rows if row["patient_id"].startswith("test-")]
    for splits in all_splits(patients).values():
        assert set(splits) == {patient.patient_id for patient in kept}
        split_of = {row["case_id"]: row["split"] for row in csv.DictReader(StringIO(splits_as_csv(patients, splits)))}
        assert set(split_of) == {row["case_id"] for row in rows}
        by_patient = {(row["patient_id"], split_of[row["case_id"]]) for row in rows}
        assert len(by_patient) == len(kept)


def test_validation_has_a_tumour_and_a_tumour_free_patient_and_leaves_one_of_each_for_training(patients):
    for splits in all_splits(patients).values():
        of = {split: [p for p in patients if splits.get(p.patient_id) == split] for split in Split}
        assert all(patient.is_fully_labelled for patient in of[Split.VAL])
        for split in (Split.TRAIN, Split.VAL):
            found = {(p.modalities[0], p.finding) for p in of[split] if p.is_fully_labelled}
            assert found == {("CT", TUMOUR), ("CT", TUMOUR_FREE), ("MR", TUMOUR_FREE)}
        # 2 of 19 CT and 2 of 10 MR patients are for validation in the table; about 14 and 7 are left beside the test
        assert Counter(p.modalities[0] for p in of[Split.VAL])["CT"] == 2
        assert 1 <= Counter(p.modalities[0] for p in of[Split.VAL])["MR"] <= 2


def test_validation_comes_from_the_next_fold_where_it_has_the_label(patients):
    fold_of = assign_folds(patients, FOLDS)
    for fold, splits in all_splits(patients).items():
        for finding, modality in ((TUMOUR, "CT"), (TUMOUR_FREE, "MR")):
            chosen = [p for p in patients if splits.get(p.patient_id) == Split.VAL and p.finding == finding]
            assert {fold_of[p.patient_id] for p in chosen if modality in p.modalities} == {fold % FOLDS + 1}


def test_a_larger_validation_split_is_filled_from_the_next_fold(tmp_path):
    path = tmp_path / "cohort.csv"
    path.write_text(re.sub(r"^(train-0-[0-4]-0,.*),train$", r"\1,val", table_text(), flags=re.MULTILINE))
    patients = read_patients(path, RULE)
    fold_of = assign_folds(patients, FOLDS)
    for fold, splits in all_splits(patients).items():  # 7 of 19 CT patients are for validation, which is 5 of 14
        following = [
            p.patient_id
            for p in patients
            if fold_of.get(p.patient_id) == fold % FOLDS + 1 and p.is_fully_labelled and p.finding == TUMOUR
        ]
        assert len(following) >= 2
        assert [splits[name] for name in following] == [Split.VAL] * len(following)


def test_the_last_tumour_free_patient_is_trained_on(tmp_path):
    text = "\n".join(line for line in table_text().splitlines() if "train-1-1" not in line and "train-1-2" not in line)
    path = tmp_path / "cohort.csv"
    path.write_text(text + "\n")
    seen = [splits["train-1-0"] for splits in all_splits(read_patients(path, RULE)).values()]
    assert Counter(seen) == {Split.TEST: 1, Split.TRAIN: FOLDS - 1}


def test_folds_do_not_depend_on_the_order_of_rows(patients, tmp_path):
    path = tmp_path / "reversed.csv"
    path.write_text(table_text(reverse=True))
    assert all_splits(read_patients(path, RULE)) == all_splits(patients)


def test_the_table_of_folds_names_the_same_files_from_anywhere(patients, table, tmp_path):
    moved = tmp_path / "elsewhere" / "table.csv"
    moved.parent.mkdir()
    moved.write_text(table_of(patients, str(table)))

    def files(path):
        return {case.case_id: (case.image.path, case.liver and case.liver.path) for case in read_table(path)}

    assert files(moved) == files(table)


def test_a_patient_in_two_splits_and_a_single_fold_are_refused(table, patients):
    with pytest.raises(DataError, match="folds is 1"):
        assign_folds(patients, 1)
    table.write_text(table_text().replace("unknown,manual,train\n", "unknown,manual,test\n", 1))
    with pytest.raises(DataError, match="train-2-0 is in the splits test, train"):
        read_patients(table, RULE)


def test_without_a_split_in_the_table_the_rule_of_ingest_holds(table):
    table.write_text("\n".join(line.rpartition(",")[0] + "," for line in table_text().splitlines()[1:]))
    table.write_text(COLUMNS + "\n" + table.read_text())
    shares = Counter(patient.split for patient in read_patients(table, SplitParams(test=0.9999, val=0.0)))
    assert set(shares) == {Split.TEST}


def test_what_a_run_prepares_never_names_a_patient_of_the_test_split(table, tmp_path, monkeypatch):
    out = tmp_path / "out"
    given = ["--source", str(table), "--params", str(ROOT / "params" / "tiny.yaml"), "--out", str(out), "--fold", "2"]
    monkeypatch.setattr("sys.argv", ["real_folds.py", *given])
    monkeypatch.setattr(real_folds, "run_steps", lambda fold, wanted: None)
    options = real_folds.parsed()
    for fold in real_folds.make_folds(options):
        real_folds.run_fold(fold, options)
    written = [path.read_text() for path in out.rglob("*") if path.is_file()]
    assert len(written) == 1 + 2 * FOLDS  # the table, and params and split of each fold
    assert not [text for text in written if re.search(r"\btest-\d", text)]

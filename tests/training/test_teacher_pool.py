"""Which cases a liver teacher is trained on, and how patients are assigned to folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_pool import Toy, toy_pool

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.training.folds import assign_folds, without_fold
from hepar.training.teacher_pool import teacher_cases


def test_a_teacher_is_not_trained_on_patients_with_a_scan_that_it_has_to_label(case: Case) -> None:
    other = replace(case, case_id="b", patient_id="q")
    unlabelled = replace(case, case_id="c", liver_state=LabelState.UNKNOWN)
    unlabelled_mr = replace(unlabelled, case_id="d", patient_id="q", modality=Modality.MR)  # for the MR teacher
    chosen = teacher_cases(Cohort(Path(), (case, other, unlabelled, unlabelled_mr)), Modality.CT)
    assert [case.case_id for case in chosen] == ["b"]


@pytest.mark.slow
def test_the_teacher_of_a_run_has_seen_exactly_its_own_patients(by_kfp: Path) -> None:
    seen = ModelFolder(by_kfp / "models" / "liver-ct").load_patients()
    cohort = Cohort.load(by_kfp / "cohort")
    assert seen == {hash_patient(case.patient_id) for case in teacher_cases(cohort, Modality.CT)}


def test_folds_divide_the_patients_and_keep_every_validation_patient(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a")])
    training = tuple(replace(pool.entries[0], patient_id=f"p{n // 2}") for n in range(14))
    validation = replace(pool.entries[0], patient_id="v", split=Split.VAL)
    folds = assign_folds(training, 3)
    assert sorted(list(folds.values()).count(n) for n in range(3)) == [2, 2, 3]
    kept = without_fold(replace(pool, entries=(*training, validation)), folds, 1)
    assert {entry.patient_id for entry in kept.entries} == {name for name, n in folds.items() if n != 1} | {"v"}
    one_patient = replace(pool, entries=(*training[:2], validation))
    with pytest.raises(DataError, match=r"^leaving out fold 1 leaves no training patient"):
        without_fold(one_patient, assign_folds(training[:2], 2), 0)

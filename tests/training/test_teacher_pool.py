"""Which cases a liver teacher is trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hepar.cases import Case, Cohort, LabelState, Modality
from hepar.errors import DataError
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.params import Params
from hepar.training.teacher_pool import teacher_cases, teacher_pool


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


def test_without_a_case_to_train_on_a_teacher_is_refused(case: Case, tiny: Params, tmp_path: Path) -> None:
    unlabelled = replace(case, case_id="c", liver_state=LabelState.UNKNOWN)
    cohort = Cohort(tmp_path, (case, unlabelled))
    with pytest.raises(DataError, match=r"^no CT teacher can be trained: no training patient has a manual liver"):
        teacher_pool(cohort, Modality.CT, tiny.preprocessing, tmp_path / "pool")

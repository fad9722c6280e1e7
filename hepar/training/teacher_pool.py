"""The pool of a liver teacher: manual livers of one modality."""

from __future__ import annotations

from pathlib import Path

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.imaging.preprocessing import make_preprocessing_plan
from hepar.params import PreprocessingParams
from hepar.pool.building import PoolBuilder, PoolSettings
from hepar.pool.table import Pool
from hepar.runtime.progress import current_stage


def teacher_pool(cohort: Cohort, modality: Modality, preprocessing: PreprocessingParams, folder: Path) -> Pool:
    """Build the pool of a liver teacher in `folder`. Raises DataError if it has no training case."""
    cases = teacher_cases(cohort, modality)
    if not any(case.split == Split.TRAIN for case in cases):
        raise DataError(
            f"no {modality} teacher can be trained: no training patient has a manual liver in every {modality} scan,"
            " and a teacher must not predict pseudo-labels of patients it was trained on"
        )
    plan = make_preprocessing_plan(cohort.cases, preprocessing)
    builder, entries = PoolBuilder(folder, cohort.folder, PoolSettings(plan, "ignored", 0.0)), []
    with current_stage().counting(len(cases), "preprocessing") as count:
        for case in cases:
            entries.append(builder.add(case, use_tumour=False))
            count.advance()
    return Pool(folder, plan, tuple(entries))


def teacher_cases(cohort: Cohort, modality: Modality) -> list[Case]:
    """Training and validation cases with a manual liver, without patients who also have a scan of unknown liver.

    The teacher predicts the pseudo-label of such a scan, so it must not see that patient.
    """
    cases = cohort.select(modality, (Split.TRAIN, Split.VAL))
    unlabelled = {case.patient_id for case in cases if case.liver_state == LabelState.UNKNOWN}
    return [case for case in cases if case.liver_state == LabelState.MANUAL and case.patient_id not in unlabelled]

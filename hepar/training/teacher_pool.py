"""Who teaches a liver teacher: which cases, in which folds, and how bright their livers are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.imaging.preprocessing import make_preprocessing_plan
from hepar.params import PreprocessingParams
from hepar.pool.building import Rules, write_entry
from hepar.pool.table import Pool, PoolEntry
from hepar.runtime.artifacts import MANIFEST
from hepar.runtime.progress import current
from hepar.training.fit import Recipe, fit_model

MIN_DEVIATION = 0.1  # of livers' medians, in units of prepared images: a few cases may agree by chance


def teaching_pool(cohort: Cohort, modality: Modality, preprocessing: PreprocessingParams, folder: Path) -> Pool:
    """The manual livers that a teacher of a modality may learn from, prepared in `folder`.

    Raises DataError where none is left.
    """
    chosen = teaching_cases(cohort, modality)
    if not any(case.split == Split.TRAIN for case in chosen):
        raise DataError(
            f"no {modality} training patient has manual livers alone: every one has a scan that waits for a"
            " pseudo-label, which a teacher may not label that has seen the patient"
        )
    rules, entries = Rules(make_preprocessing_plan(cohort.cases, preprocessing), "ignored", 0.0), []
    with current().counting(len(chosen), "preparing") as count:
        for case in chosen:
            entries.append(write_entry(folder, case, cohort.folder, rules, use_tumour=False))
            count.advance()
    return Pool(folder, rules.plan, tuple(entries))


def teaching_cases(cohort: Cohort, modality: Modality) -> list[Case]:
    """Cases with a manual liver, of patients without a scan of that modality whose liver is unknown."""
    cases = cohort.select(modality, (Split.TRAIN, Split.VAL))
    waiting = {case.patient_id for case in cases if case.liver_state == LabelState.UNKNOWN}
    return [case for case in cases if case.liver_state == LabelState.MANUAL and case.patient_id not in waiting]


def fold_of(entries: Sequence[PoolEntry], folds: int) -> dict[str, int]:
    """The fold of each patient: in the order of their hashes they take turns, so that folds differ by one at most."""
    patients = sorted({entry.patient_id for entry in entries}, key=lambda name: hashlib.sha256(name.encode()).digest())
    return {patient: number % folds for number, patient in enumerate(patients)}


def without_fold(pool: Pool, fold: Mapping[str, int], number: int) -> Pool:
    """The pool without the training patients of a fold. Raises DataError where none is left."""
    kept = tuple(e for e in pool.entries if e.split != Split.TRAIN or fold[e.patient_id] != number)
    if not any(entry.split == Split.TRAIN for entry in kept):
        raise DataError(f"leaving out fold {number + 1} leaves no training patient: there is one patient only")
    return Pool(pool.folder, pool.plan, kept)


def fit_folds(
    pool: Pool, fold: Mapping[str, int], place: Path, recipe: Recipe, origin: Mapping[str, str]
) -> list[Path]:
    """A teacher for each fold, which it has not seen, in folders below `place`; one that is finished there is kept."""
    folds, teachers = len(set(fold.values())), []
    for number in range(folds):
        teacher = place / f"fold-{number + 1}"
        if not (teacher / MANIFEST).is_file():
            current().say(f"{pool.entries[0].modality} fold {number + 1} of {folds}")
            seen = without_fold(pool, fold, number)
            own = replace(recipe, liver_intensity=liver_intensity(seen))
            fit_model(seen, teacher, own, {**origin, "fold": f"{number + 1}/{folds}"})
        teachers.append(teacher)
    return teachers


def liver_intensity(pool: Pool) -> tuple[float, float]:
    """Mean and standard deviation, over the cases of a pool, of the median value of the prepared image in the liver."""
    medians = []
    for entry in pool.entries:
        arrays = pool.arrays(entry).loaded()
        inside = np.asarray(arrays.image)[arrays.liver > 0]
        if inside.size:
            medians.append(float(np.median(inside.astype(np.float32))))
    return float(np.mean(medians)), max(float(np.std(medians)), MIN_DEVIATION)

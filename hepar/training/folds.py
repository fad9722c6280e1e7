"""Cross-validation over patients: several liver teachers, each trained without one fold."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hepar.cases import Modality, Split
from hepar.errors import DataError, ParamsError
from hepar.inference.model_folder import ModelFolder
from hepar.pool.table import Pool, PoolEntry
from hepar.runtime.artifacts import MANIFEST, sha256_json, write_artifact
from hepar.runtime.progress import current_stage
from hepar.runtime.unfinished import checkpoint_folder
from hepar.training.distributed import refuse_torchrun
from hepar.training.ensemble import save_ensemble
from hepar.training.fit import EXECUTION_SETTINGS, Recipe, fit_model
from hepar.training.liver_intensities import liver_intensities


@dataclass(frozen=True)
class Fold:
    """Of the ensemble of `total` teachers of a modality the one without the patients of fold `number`, from 1."""

    modality: Modality
    number: int
    total: int

    @property
    def label(self) -> str:
        """Such as 2/3."""
        return f"{self.number}/{self.total}"

    def check(self, folds: int) -> None:
        """Raise ParamsError unless it is one of `folds`, the folds that the params ask for."""
        if self.total != folds:
            raise ParamsError(
                f"train_liver.folds is {folds}, but the pipeline has the steps of {self.total}: compile it with {folds}"
            )
        if folds == 1:
            raise ParamsError("train_liver.folds is 1, so there is one teacher of all patients, and no fold of it")
        if not 1 <= self.number <= folds:
            raise ParamsError(f"fold is {self.number}, must be 1 to {folds}, which is train_liver.folds")


def assign_teacher_folds(entries: Sequence[PoolEntry], folds: int) -> dict[str, int]:
    """The fold, from 0, of each patient; in the order of their hashed ids, so fold sizes differ by one at most."""
    patients = sorted({entry.patient_id for entry in entries}, key=lambda name: hashlib.sha256(name.encode()).digest())
    return {patient: number % folds for number, patient in enumerate(patients)}


def without_fold(pool: Pool, fold_by_patient: Mapping[str, int], fold: int) -> Pool:
    """The pool without the training patients of a fold. Raises DataError if no training patient remains."""
    kept = tuple(e for e in pool.entries if e.split != Split.TRAIN or fold_by_patient[e.patient_id] != fold)
    if not any(entry.split == Split.TRAIN for entry in kept):
        raise DataError(f"leaving out fold {fold + 1} leaves no training patient: there is only one patient")
    return Pool(pool.folder, pool.plan, kept)


def fit_folds(
    pool: Pool, fold_by_patient: Mapping[str, int], teachers: Path, recipe: Recipe, origin: Mapping[str, str]
) -> list[Path]:
    """Train one teacher per fold, without the patients of that fold; returns their model folders, in `teachers`.

    A teacher that is already there is kept.
    """
    folds, models = len(set(fold_by_patient.values())), []
    for fold in range(folds):
        model = teachers / f"fold-{fold + 1}"
        if not (model / MANIFEST).is_file():
            current_stage().log(f"{pool.entries[0].modality} fold {fold + 1} of {folds}")
            _fit_without(pool, fold_by_patient, fold, model, recipe, origin)
        models.append(model)
    return models


def fit_fold(pool: Pool, model: Path, recipe: Recipe, origin: Mapping[str, str], fold: Fold) -> None:
    """Train the teacher of one fold and write the model folder `model`, which `ensemble.gather` reads.

    With fewer patients than folds there are only as many folds as patients; the folder of a further one says so.
    """
    fold_by_patient = assign_teacher_folds(pool.select(Split.TRAIN), fold.total)
    folds = len(set(fold_by_patient.values()))
    if fold.number > folds:
        reason = f"{folds} {fold.modality} patients make {folds} folds"
        current_stage().log(f"{reason}, so nothing is trained for fold {fold.number}")
        with write_artifact(model, ModelFolder.KIND, {**origin, ModelFolder.FOLD: f"{fold.number}/{folds}"}) as folder:
            ModelFolder(folder).save_untrained(reason)
        return
    notes = {ModelFolder.ENSEMBLE_INTENSITY: json.dumps(recipe.liver_intensity)}
    _fit_without(pool, fold_by_patient, fold.number - 1, model, recipe, origin, notes)


def fit_ensemble(pool: Pool, model: Path, recipe: Recipe, origin: Mapping[str, str], folds: int) -> None:
    """Train one teacher per fold and write them as an ensemble into the model folder `model`.

    An interrupted run keeps the teachers that it has finished. Raises ParamsError under `torchrun`.
    """
    refuse_torchrun("train_liver.folds")
    fold_by_patient = assign_teacher_folds(pool.select(Split.TRAIN), folds)
    training = recipe.training.model_dump(mode="json", exclude=EXECUTION_SETTINGS)
    settings = [training, recipe.network.model_dump(mode="json")]
    key = sha256_json([settings, dict(origin), folds, [entry.arrays.sha256 for entry in pool.entries]])
    teachers = checkpoint_folder(model, key)
    members = list(map(ModelFolder, fit_folds(pool, fold_by_patient, teachers, recipe, origin)))
    save_ensemble(members, model, origin, recipe.liver_intensity)
    shutil.rmtree(teachers, ignore_errors=True)


def _fit_without(
    pool: Pool,
    fold_by_patient: Mapping[str, int],
    fold: int,
    model: Path,
    recipe: Recipe,
    origin: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Train the teacher that leaves out one fold, from 0, as `fit_model` does."""
    pool_of_fold = without_fold(pool, fold_by_patient, fold)
    recipe_of_fold = replace(recipe, liver_intensity=liver_intensities(pool_of_fold))
    folds = len(set(fold_by_patient.values()))
    origin_of_fold = {**origin, ModelFolder.FOLD: f"{fold + 1}/{folds}"}
    fit_model(pool_of_fold, model, recipe_of_fold, origin_of_fold, notes)

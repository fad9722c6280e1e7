"""Cross-validation over patients: several liver teachers, each trained without one fold."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hepar.cases import Split
from hepar.errors import DataError
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.pool.table import Pool, PoolEntry
from hepar.runtime.artifacts import MANIFEST, read_manifest, sha256_json, write_artifact
from hepar.runtime.progress import current_stage
from hepar.runtime.unfinished import checkpoint_folder
from hepar.training.distributed import refuse_torchrun
from hepar.training.fit import EXECUTION_SETTINGS, Recipe, fit_model
from hepar.training.liver_intensities import liver_intensities


def assign_folds(entries: Sequence[PoolEntry], folds: int) -> dict[str, int]:
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
            training_pool = without_fold(pool, fold_by_patient, fold)
            fold_recipe = replace(recipe, liver_intensity=liver_intensities(training_pool))
            fit_model(training_pool, model, fold_recipe, {**origin, "fold": f"{fold + 1}/{folds}"})
        models.append(model)
    return models


def fit_ensemble(pool: Pool, model: Path, recipe: Recipe, origin: Mapping[str, str], folds: int) -> None:
    """Train one teacher per fold and write them as an ensemble into the model folder `model`.

    An interrupted run keeps the teachers that it has finished. Raises ParamsError under `torchrun`.
    """
    refuse_torchrun("train_liver.folds")
    fold_by_patient = assign_folds(pool.select(Split.TRAIN), folds)
    training = recipe.training.model_dump(mode="json", exclude=EXECUTION_SETTINGS)
    settings = [training, recipe.network.model_dump(mode="json")]
    key = sha256_json([settings, dict(origin), folds, [entry.arrays.sha256 for entry in pool.entries]])
    teachers = checkpoint_folder(model, key)
    members = list(map(ModelFolder, fit_folds(pool, fold_by_patient, teachers, recipe, origin)))
    hashes = [read_manifest(member.folder, ModelFolder.KIND).hash for member in members]
    taken = {ModelFolder.member_name(number): digest for number, digest in enumerate(hashes, start=1)}
    first, *others = members
    spec = first.load_spec().model_copy(
        update={"origin": dict(origin), "liver_intensity": dict(recipe.liver_intensity)}
    )
    with write_artifact(model, ModelFolder.KIND, {**origin, **taken}) as folder:
        ensemble = ModelFolder(folder)
        ensemble.save(first.load_weights(), spec, [member.load_weights() for member in others])
        shutil.copyfile(first.folder / ModelFolder.HISTORY, folder / ModelFolder.HISTORY)
        ensemble.save_patients(hash_patient(entry.patient_id) for entry in pool.entries)
    shutil.rmtree(teachers, ignore_errors=True)

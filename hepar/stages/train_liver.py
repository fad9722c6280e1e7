"""Stage 2: a liver teacher of one modality, trained on the manual livers of the cohort.

Patients with another scan of that modality that needs a pseudo-label are left out, so that no teacher predicts labels
of a patient it has seen. With `train_liver.folds` above 1 the model is an ensemble of one teacher per fold.
"""

from __future__ import annotations

from pathlib import Path

from hepar.cases import Cohort, Modality
from hepar.inference.model_folder import ModelFolder
from hepar.params import NetworkParams, PreprocessingParams, TrainLiverParams
from hepar.runtime.artifacts import read_manifest
from hepar.runtime.progress import stage
from hepar.runtime.scratch import scratch_folder
from hepar.training.fit import Recipe, fit_model
from hepar.training.folds import fit_ensemble
from hepar.training.teacher_pool import liver_intensity, teacher_cases, teacher_pool


def run(
    cohort: Path,
    model: Path,
    modality: Modality,
    preprocessing: PreprocessingParams,
    network: NetworkParams,
    params: TrainLiverParams,
    experiment: str,
) -> None:
    """Train on the manual livers of `modality` and write the model folder `model`. Test patients are never read.

    The training is recorded in the MLflow experiment `experiment`.
    """
    with stage(f"train-liver-{modality}"), scratch_folder("teacher-pool") as scratch:
        role = ModelFolder.teacher_role(modality)
        origin = {Cohort.KIND: read_manifest(cohort, Cohort.KIND).hash, ModelFolder.ROLE: role}
        cases = Cohort.load(cohort)
        cases.verify(teacher_cases(cases, modality))
        pool = teacher_pool(cases, modality, preprocessing, scratch)
        recipe = Recipe(network, params.training, (modality,), experiment, liver_intensity(pool))
        if params.folds == 1:
            fit_model(pool, model, recipe, origin)
        else:
            fit_ensemble(pool, model, recipe, origin, params.folds)

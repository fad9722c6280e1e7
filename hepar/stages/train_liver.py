"""Stage 2: a liver teacher of one modality, trained on the manual livers of the cohort.

Patients with another scan of that modality that needs a pseudo-label are left out, so that no teacher predicts labels
of a patient it has seen. With `train_liver.folds` above 1 the model is an ensemble of one teacher per fold.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hepar.cases import Cohort, Modality
from hepar.params import NetworkParams, PreprocessingParams, TrainLiverParams
from hepar.runtime.artifacts import read_manifest
from hepar.runtime.progress import stage
from hepar.training.fit import Recipe, fit_model
from hepar.training.folds import fit_ensemble
from hepar.training.teacher_pool import liver_intensity, teacher_pool


def run(
    cohort: Path,
    model: Path,
    modality: Modality,
    preprocessing: PreprocessingParams,
    network: NetworkParams,
    params: TrainLiverParams,
) -> None:
    """Train on the manual livers of `modality` and write the model folder `model`. Test patients are never read."""
    with stage(f"train-liver-{modality}"), tempfile.TemporaryDirectory(prefix="hepar-") as scratch:
        origin = {Cohort.KIND: read_manifest(cohort, Cohort.KIND).hash, "role": f"liver teacher {modality}"}
        pool = teacher_pool(Cohort.load(cohort), modality, preprocessing, Path(scratch))
        recipe = Recipe(network, params.training, (modality,), liver_intensity(pool))
        if params.folds == 1:
            fit_model(pool, model, recipe, origin)
        else:
            fit_ensemble(pool, model, recipe, origin, params.folds)

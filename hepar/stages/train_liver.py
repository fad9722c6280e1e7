"""Stage 2: a liver teacher of one modality, trained on the manual livers of the cohort.

Patients with another scan of that modality that needs a pseudo-label are left out, so that no teacher predicts labels
of a patient it has seen. With `train_liver.folds` above 1 the model is an ensemble of one teacher per fold. If the
cohort has no scan of the modality nothing is trained, and the model folder says so.
"""

from __future__ import annotations

from pathlib import Path

from hepar.cases import Cohort, Modality
from hepar.inference.model_folder import ModelFolder
from hepar.params import NetworkParams, PreprocessingParams, TrainLiverParams
from hepar.runtime.artifacts import read_manifest, write_artifact
from hepar.runtime.progress import current_stage, stage
from hepar.runtime.scratch import scratch_folder
from hepar.training.fit import Recipe, fit_model
from hepar.training.folds import fit_ensemble
from hepar.training.liver_intensities import liver_intensities
from hepar.training.teacher_pool import teacher_cases, teacher_pool


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
        if modality not in cases.modalities:
            reason = f"the cohort has no {modality} scan"
            current_stage().log(f"{reason}, so no {modality} teacher is trained")
            with write_artifact(model, ModelFolder.KIND, origin) as folder:
                ModelFolder(folder).save_untrained(reason)
            return
        cases.verify(teacher_cases(cases, modality))
        pool = teacher_pool(cases, modality, preprocessing, scratch)
        recipe = Recipe(network, params.training, (modality,), experiment, liver_intensities(pool), inputs=(cohort,))
        if params.folds == 1:
            fit_model(pool, model, recipe, origin)
        else:
            fit_ensemble(pool, model, recipe, origin, params.folds)

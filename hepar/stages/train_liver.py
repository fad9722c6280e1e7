"""Stage 2: a liver teacher of one modality, trained on the manual livers of the cohort.

Patients with another scan of that modality that needs a pseudo-label are left out, so that no teacher predicts labels
of a patient it has seen. With `train_liver.folds` above 1 the model is an ensemble of one teacher per fold, which are
trained here one after the other, or each by a step of its own. If the cohort has no scan of the modality nothing is
trained, and the model folder says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hepar.cases import Cohort, Modality
from hepar.inference.model_folder import ModelFolder
from hepar.params import NetworkParams, PreprocessingParams, TrainLiverParams
from hepar.runtime.artifacts import read_manifest, write_artifact
from hepar.runtime.progress import current_stage, stage
from hepar.runtime.scratch import scratch_folder
from hepar.training.fit import Recipe, fit_model
from hepar.training.folds import Fold, fit_ensemble, fit_fold
from hepar.training.liver_intensities import liver_intensities
from hepar.training.teacher_pool import teacher_cases, teacher_pool


def run(
    cohort: Path,
    model: Path,
    teacher: Modality | Fold,
    preprocessing: PreprocessingParams,
    network: NetworkParams,
    params: TrainLiverParams,
    experiment: str,
) -> None:
    """Train on the manual livers of a modality and write the model folder `model`. Test patients are never read.

    `teacher` is the modality, or one fold of it: then only its member is trained, for `ensemble.gather`. The
    training is recorded in the MLflow experiment `experiment`. Raises ParamsError for a fold that there is not.
    """
    fold = teacher if isinstance(teacher, Fold) else None
    modality = teacher.modality if isinstance(teacher, Fold) else teacher
    name = f"train-liver-{modality}" + ("" if fold is None else f"-fold-{fold.number}")
    with stage(name), scratch_folder("teacher-pool") as scratch:
        role = ModelFolder.teacher_role(modality)
        origin = {Cohort.KIND: read_manifest(cohort, Cohort.KIND).hash, ModelFolder.ROLE: role}
        cases = Cohort.load(cohort)
        if fold is not None:
            fold.check(params.folds)
        if modality not in cases.modalities:
            _save_untrained(model, modality, origin if fold is None else {**origin, ModelFolder.FOLD: fold.label})
            return
        cases.verify(teacher_cases(cases, modality))
        pool = teacher_pool(cases, modality, preprocessing, scratch)
        recipe = Recipe(network, params.training, (modality,), experiment, liver_intensities(pool), inputs=(cohort,))
        if fold is not None:
            fit_fold(pool, model, recipe, origin, fold)
        elif params.folds == 1:
            fit_model(pool, model, recipe, origin)
        else:
            fit_ensemble(pool, model, recipe, origin, params.folds)


def _save_untrained(model: Path, modality: Modality, parents: Mapping[str, str]) -> None:
    reason = f"the cohort has no {modality} scan"
    current_stage().log(f"{reason}, so no {modality} teacher is trained")
    with write_artifact(model, ModelFolder.KIND, parents) as folder:
        ModelFolder(folder).save_untrained(reason)

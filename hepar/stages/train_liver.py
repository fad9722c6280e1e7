"""Stage 2: a liver teacher of one modality, from the cases whose liver was drawn by hand.

A patient of whom another scan of that modality waits for a pseudo-label is left out, so that no teacher labels a
patient whose label it has seen. With `train_liver.folds` there are several teachers in one model folder, an ensemble.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hepar.cases import Cohort, Modality, Split
from hepar.inference.patients import hash_patient, write_patients
from hepar.inference.prediction import add_member, load_weights, read_spec, save_model
from hepar.params import NetworkParams, PreprocessingParams, TrainLiverParams
from hepar.pool.table import Pool
from hepar.runtime.artifacts import read_manifest, sha256_json, writing
from hepar.runtime.progress import stage
from hepar.training.checkpoint import checkpoint_folder
from hepar.training.distributed import refuse_torchrun
from hepar.training.fit import HISTORY, HOW_IT_RUNS, KIND, Recipe, fit_model
from hepar.training.teacher_pool import fit_folds, fold_of, liver_intensity, teaching_pool


def run(
    cohort: Path,
    model: Path,
    modality: Modality,
    preprocessing: PreprocessingParams,
    network: NetworkParams,
    params: TrainLiverParams,
) -> None:
    """Train on the cohort's manual livers of `modality` and write the folder `model`. Test patients are never read."""
    with stage(f"train-liver-{modality}"), tempfile.TemporaryDirectory(prefix="hepar-") as scratch:
        origin = {"cohort": read_manifest(cohort, "cohort").hash, "role": f"liver teacher {modality}"}
        pool = teaching_pool(Cohort.load(cohort), modality, preprocessing, Path(scratch))
        recipe = Recipe(network, params.training, (modality,), liver_intensity(pool))
        if params.folds == 1:
            fit_model(pool, model, recipe, origin)
        else:
            _fit_folds(pool, model, recipe, origin, params.folds)


def _fit_folds(pool: Pool, model: Path, recipe: Recipe, origin: dict[str, str], folds: int) -> None:
    """One teacher a fold; those that an interrupted run has finished are kept."""
    refuse_torchrun("train_liver.folds")
    fold = fold_of(pool.select(Split.TRAIN), folds)
    settings = [recipe.training.model_dump(mode="json", exclude=HOW_IT_RUNS), recipe.network.model_dump(mode="json")]
    key = sha256_json([settings, origin, folds, [entry.sha256 for entry in pool.entries]])
    place = checkpoint_folder(model, key)
    members = fit_folds(pool, fold, place, recipe, origin)
    spec = read_spec(members[0]).model_copy(update={"origin": origin, "liver_intensity": recipe.liver_intensity})
    with writing(model, KIND, origin) as folder:
        save_model(folder, load_weights(members[0]), spec)
        for number, member in enumerate(members[1:], start=1):
            add_member(folder, load_weights(member), number)
        (folder / HISTORY).write_bytes((members[0] / HISTORY).read_bytes())
        write_patients(folder, map(hash_patient, {entry.patient_id for entry in pool.entries}))
    shutil.rmtree(place, ignore_errors=True)

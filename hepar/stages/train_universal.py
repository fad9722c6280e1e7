"""Stage 5: one model for liver and tumour in CT and MR, trained on the partially labelled pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hepar.cases import Modality
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder
from hepar.params import REGISTERED, NetworkParams, TrainingParams, TrainUniversalParams
from hepar.pool.table import Pool
from hepar.registry.model_registry import downloaded_model
from hepar.runtime.artifacts import dvc_version, read_manifest
from hepar.runtime.progress import current_stage, stage
from hepar.training.fit import Recipe, fit_model
from hepar.training.taught import taught_structures


def run(
    pool: Path,
    teachers: Mapping[Modality, Path],
    model: Path,
    network: NetworkParams,
    params: TrainUniversalParams,
    experiment: str,
) -> None:
    """Train on the pool, from the weights of `params.warm_start`, and write the model folder `model`.

    The training is recorded in the MLflow experiment `experiment`. A pool of one modality gets half the steps, so that
    each modality has as many patches as beside the other; one that teaches no liver starts from random weights, because
    a liver teacher would bring livers into it.
    """
    with (
        stage("train-universal"),
        _warm_start_folder(params.warm_start, teachers) as warm_start,
        _verified_pool(pool) as loaded,
    ):
        origin = {ModelFolder.POOL: read_manifest(pool, Pool.KIND).hash, ModelFolder.ROLE: ModelFolder.UNIVERSAL}
        training = _budgeted(params.training, len({entry.modality for entry in loaded.entries}))
        livers_are_taught = "liver" in taught_structures(loaded, training)
        if warm_start is not None and _is_liver_teacher(warm_start) and not livers_are_taught:
            current_stage().log(f"no warm start from {params.warm_start}: it knows livers, and this pool teaches none")
            warm_start = None
        if warm_start is not None:
            origin[ModelFolder.WARM_START] = read_manifest(warm_start, ModelFolder.KIND).hash
        modalities = tuple(sorted({entry.modality for entry in loaded.entries}))
        inputs = (pool, *teachers.values())
        recipe = Recipe(network, training, modalities, experiment, warm_start=warm_start, inputs=inputs)
        # DVC hashes compressed bytes, which differ between builds of a codec, so its version is not part of the model
        fit_model(loaded, model, recipe, origin, notes={ModelFolder.POOL_VERSION: dvc_version(pool)})


@contextmanager
def _verified_pool(folder: Path) -> Iterator[Pool]:
    """The pool with its arrays on this disk, checked."""
    pool = Pool.load(folder)
    pool.verify()
    with pool.local() as here:
        yield here


def _budgeted(training: TrainingParams, modalities: int) -> TrainingParams:
    """The training with steps, warm-up and intervals for the modalities of the pool; given are those for both."""
    return training.scaled(modalities / len(Modality))


def _is_liver_teacher(model: Path) -> bool:
    return ModelFolder(model).load_spec().taught == ("liver",)


@contextmanager
def _warm_start_folder(warm_start: str, teachers: Mapping[Modality, Path]) -> Iterator[Path | None]:
    """The model folder of a warm start: of a registered model, or of the teacher of a modality; None for `none`.

    Raises ArtifactError if there is no such teacher.
    """
    if warm_start == "none":
        yield None
    elif warm_start.startswith(REGISTERED):
        with downloaded_model(warm_start) as folder:
            yield folder
    elif (teacher := teachers.get(Modality(warm_start))) is not None:
        yield teacher
    else:
        raise ArtifactError(f"train_universal.warm_start is {warm_start}, but there is no {warm_start} teacher")

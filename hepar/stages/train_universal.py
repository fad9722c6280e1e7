"""Stage 5: one model for liver and tumour in CT and MR, trained on the partially labelled pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hepar.cases import Modality
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder
from hepar.params import REGISTERED, NetworkParams, TrainUniversalParams
from hepar.pool.table import Pool
from hepar.registry.model_registry import downloaded_model
from hepar.runtime.artifacts import dvc_version, read_manifest
from hepar.runtime.progress import stage
from hepar.training.fit import Recipe, fit_model


def run(
    pool: Path,
    teachers: Mapping[Modality, Path],
    model: Path,
    network: NetworkParams,
    params: TrainUniversalParams,
    experiment: str,
) -> None:
    """Train on the pool, from the weights of `params.warm_start`, and write the model folder `model`.

    The training is recorded in the MLflow experiment `experiment`.
    """
    with stage("train-universal"), _warm_start_folder(params.warm_start, teachers) as warm_start:
        origin = {ModelFolder.POOL: read_manifest(pool, Pool.KIND).hash, ModelFolder.ROLE: ModelFolder.UNIVERSAL}
        if warm_start is not None:
            origin[ModelFolder.WARM_START] = read_manifest(warm_start, ModelFolder.KIND).hash
        loaded = Pool.load(pool)
        loaded.verify()
        modalities = tuple(sorted({entry.modality for entry in loaded.entries}))
        recipe = Recipe(network, params.training, modalities, experiment, warm_start=warm_start)
        # DVC hashes compressed bytes, which differ between builds of a codec, so its version is not part of the model
        fit_model(loaded, model, recipe, origin, notes={ModelFolder.POOL_VERSION: dvc_version(pool)})


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

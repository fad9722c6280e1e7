"""Stage 5: one model for CT and MR, liver and tumour, from the mixed-label pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hepar import tracking
from hepar.artifacts import dvc_version, read_manifest
from hepar.cases import Modality
from hepar.errors import ArtifactError
from hepar.inference import load_weights
from hepar.params import REGISTERED, NetworkParams, TrainUniversalParams
from hepar.pool import Pool
from hepar.progress import stage
from hepar.training.fit import Recipe, fit_model


def run(
    pool: Path,
    teachers: Mapping[Modality, Path],
    model: Path,
    network: NetworkParams,
    params: TrainUniversalParams,
) -> None:
    """Train on the pool, from the weights of the model that `params.warm_start` names, and write `model`."""
    with stage("train-universal"):
        origin = {
            "pool": read_manifest(pool, "pool").hash,
            "pool version": dvc_version(pool),
            "role": "universal",
        }
        start = None
        if params.warm_start != "none":
            with _folder_of(params.warm_start, teachers) as folder:
                origin["warm start"] = read_manifest(folder, "model").hash
                start = load_weights(folder)
        assembled = Pool.load(pool)
        modalities = tuple(sorted({entry.modality for entry in assembled.entries}))
        fit_model(assembled, model, Recipe(network, params.training, modalities), origin, start)


@contextmanager
def _folder_of(warm_start: str, teachers: Mapping[Modality, Path]) -> Iterator[Path]:
    """The model folder that a name stands for: a teacher's modality, or a registered model."""
    if warm_start.startswith(REGISTERED):
        with tracking.downloaded_model(warm_start) as folder:
            yield folder
        return
    found = teachers.get(Modality(warm_start))
    if found is None:
        raise ArtifactError(f"train_universal.warm_start is {warm_start}, but no such teacher is given")
    yield found

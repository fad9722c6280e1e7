"""Stage 5: one model for CT and MR, liver and tumour, from the mixed-label pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hepar.cases import Modality
from hepar.errors import ArtifactError
from hepar.params import REGISTERED, NetworkParams, TrainUniversalParams
from hepar.pool.table import Pool
from hepar.registry import tracking
from hepar.runtime.artifacts import dvc_version, read_manifest
from hepar.runtime.progress import stage
from hepar.training.fit import Recipe, fit_model


def run(
    pool: Path,
    teachers: Mapping[Modality, Path],
    model: Path,
    network: NetworkParams,
    params: TrainUniversalParams,
) -> None:
    """Train on the pool, from the weights of the model that `params.warm_start` names, and write `model`."""
    with stage("train-universal"), _folder_of(params.warm_start, teachers) as start:
        origin = {"pool": read_manifest(pool, "pool").hash, "role": "universal"}
        if start is not None:
            origin["warm start"] = read_manifest(start, "model").hash
        assembled = Pool.load(pool)
        modalities = tuple(sorted({entry.modality for entry in assembled.entries}))
        recipe = Recipe(network, params.training, modalities)
        # DVC's hash is of compressed bytes, which builds of a codec change: it is noted beside the model, not in it
        fit_model(assembled, model, recipe, origin, start, notes={"pool version": dvc_version(pool)})


@contextmanager
def _folder_of(warm_start: str, teachers: Mapping[Modality, Path]) -> Iterator[Path | None]:
    """The model folder that a name stands for: a teacher's modality, or a registered model; None for `none`."""
    if warm_start == "none":
        yield None
        return
    if warm_start.startswith(REGISTERED):
        with tracking.downloaded_model(warm_start) as folder:
            yield folder
        return
    found = teachers.get(Modality(warm_start))
    if found is None:
        raise ArtifactError(f"train_universal.warm_start is {warm_start}, but no such teacher is given")
    yield found

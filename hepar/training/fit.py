"""From a pool to a finished model folder: what the teachers and the universal model have in common."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hepar.cases import Modality
from hepar.errors import HeparError
from hepar.inference.patients import FILE as PATIENTS
from hepar.inference.patients import hash_patient, patients_seen, write_patients
from hepar.inference.prediction import ModelSpec, load_weights, save_model
from hepar.networks import build_network
from hepar.params import NetworkParams, TrainingParams
from hepar.pool.table import Pool
from hepar.registry.tracking import TrainingRun
from hepar.runtime.artifacts import read_manifest, sha256_json, writing
from hepar.runtime.device import use_threads
from hepar.runtime.progress import current, stage
from hepar.training import distributed
from hepar.training.checkpoint import checkpoint_folder
from hepar.training.loop import Trainer

KIND = "model"
HISTORY = "history.csv"
HOW_IT_RUNS = {"processes", "threads", "workers", "cache_gib", "checkpoint_every"}  # a run may go on with others


@dataclass(frozen=True)
class Recipe:
    """How a model is made from a pool."""

    network: NetworkParams
    training: TrainingParams
    modalities: tuple[Modality, ...]
    liver_intensity: tuple[float, float] | None = None  # of a teacher's manual livers, see ModelSpec


def fit_model(
    pool: Pool,
    model: Path,
    recipe: Recipe,
    origin: Mapping[str, str],
    start: Path | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Train a network and write the folder `model`, with the history of its losses and scores.

    On a machine with several GPUs one process works on each. Under `torchrun` every process calls this, and the first
    writes. `start` is the folder of a model of the same network to begin with. `origin` becomes part of the model,
    `notes` of its manifest alone. A killed run leaves a checkpoint that the next run with the same data and settings
    resumes from; `model` appears only when it is whole.
    """
    processes = distributed.wanted_processes(recipe.training)
    work = (current().status.stage, pool, model, recipe, dict(origin), start, dict(notes or {}))
    if processes > 1 and not distributed.is_launched():
        if unused := torch.cuda.device_count() - processes if recipe.training.processes == 0 else 0:
            current().say(f"{unused} of the GPUs stay idle: training.batch_size is {recipe.training.batch_size}")
        distributed.launch(processes, _fit_in_stage, *work)
    else:
        _fit(*work)


def _fit_in_stage(name: str, *work: Any) -> None:
    """A process that was launched for the training says of itself in which stage it works."""
    with stage(name):
        _fit(name, *work)


def _fit(
    name: str,
    pool: Pool,
    model: Path,
    recipe: Recipe,
    origin: dict[str, str],
    start: Path | None,
    notes: dict[str, str],
) -> None:
    training = recipe.training
    use_threads(distributed.threads_each(training.threads))
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        network = build_network(recipe.network.name, recipe.network.config, training.patch_zyx)
    seen = {hash_patient(entry.patient_id) for entry in pool.entries}
    if start is not None:
        seen |= _warm(network, start)
    spec = ModelSpec(
        network=recipe.network,
        plan=pool.plan,
        patch_zyx=training.patch_zyx,
        modalities=recipe.modalities,
        liver_intensity=recipe.liver_intensity,
        origin=origin,
    )
    settings = training.model_dump(mode="json", exclude=HOW_IT_RUNS)
    key = sha256_json([spec.model_dump(mode="json"), settings, [entry.sha256 for entry in pool.entries]])
    checkpoints = checkpoint_folder(model, key)
    with distributed.joined() as device:
        network = distributed.synchronised(network, device)
        if distributed.rank() > 0:
            Trainer(network, pool, training, checkpoints, device, lambda step, metrics: None).run(current())
            return
        with TrainingRun(name, spec, training, checkpoints) as tracked:
            trained = Trainer(network, pool, training, checkpoints, device, tracked.log).run(current())
            with writing(model, KIND, origin | notes) as folder:
                save_model(folder, trained.weights, spec, trained.snapshots)
                trained.history.to_csv(folder / HISTORY, index=False)
                write_patients(folder, seen)
            tracked.made(read_manifest(model, KIND).hash)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _warm(network: nn.Module, start: Path) -> frozenset[str]:
    """Load the weights of a model, and tell whose labels it has seen; of an imported one nobody knows."""
    try:
        network.load_state_dict(load_weights(start))
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise HeparError(f"the weights of train_universal.warm_start are of another network: {why}") from None
    return patients_seen(start) if (start / PATIENTS).is_file() else frozenset()

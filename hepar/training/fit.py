"""From a pool to a finished model folder: what the teachers and the universal model have in common."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hepar.artifacts import read_manifest, sha256_json, writing
from hepar.cases import Modality
from hepar.compute import pick_device, use_threads
from hepar.inference import ModelSpec, save_model
from hepar.networks import build_network
from hepar.params import NetworkParams, TrainingParams
from hepar.pool import Pool
from hepar.progress import current
from hepar.tracking import TrainingRun
from hepar.training.checkpoint import checkpoint_folder
from hepar.training.loop import Trainer

KIND = "model"
HISTORY = "history.csv"


@dataclass(frozen=True)
class Recipe:
    """How a model is made from a pool."""

    network: NetworkParams
    training: TrainingParams
    modalities: tuple[Modality, ...]


def fit_model(
    pool: Pool,
    model: Path,
    recipe: Recipe,
    origin: Mapping[str, str],
    start: Mapping[str, Tensor] | None = None,
) -> None:
    """Train a network and write the folder `model`, with the history of its losses and scores.

    `start` holds the weights to begin with, of the same network. A killed run leaves a checkpoint that the next run
    with the same data and settings resumes from; `model` appears only when it is whole.
    """
    use_threads(recipe.training.threads)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        network = build_network(recipe.network.name, recipe.network.config, recipe.training.patch_zyx)
    if start is not None:
        network.load_state_dict(start)
    spec = ModelSpec(
        network=recipe.network,
        plan=pool.plan,
        patch_zyx=recipe.training.patch_zyx,
        modalities=recipe.modalities,
        origin=dict(origin),
    )
    training = recipe.training.model_dump(mode="json")
    key = sha256_json([spec.model_dump(mode="json"), training, [entry.sha256 for entry in pool.entries]])
    checkpoints = checkpoint_folder(model, key)
    with TrainingRun(current().status.stage, spec, recipe.training) as tracked:
        trainer = Trainer(network, pool, recipe.training, checkpoints, pick_device(), tracked.log)
        trained = trainer.run(current())
        with writing(model, KIND, dict(origin)) as folder:
            save_model(folder, trained.weights, spec)
            trained.history.to_csv(folder / HISTORY, index=False)
        tracked.made(read_manifest(model, KIND).hash)
    shutil.rmtree(checkpoints, ignore_errors=True)

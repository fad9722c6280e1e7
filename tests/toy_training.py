"""A tiny training on toy cases, for tests and the scripts that they run in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from toy_pool import Toy

from hepar.cases import Modality, Split
from hepar.networks import build_network
from hepar.params import Params, TrainingParams
from hepar.pool.table import Pool
from hepar.runtime.progress import Stage
from hepar.training.loop import Trained, Trainer

TINY = Path(__file__).parents[1] / "params" / "tiny.yaml"
CPU = torch.device("cpu")
PATCH = (16, 32, 32)
TOYS = [
    Toy("ct-1", shape=PATCH, liver=((8, 16, 16), 7.0), lesions=(((8, 14, 18), 3.0),)),
    Toy("mr-1", Modality.MR, shape=PATCH, liver=((8, 18, 14), 6.5), lesions=(((8, 18, 12), 3.0),)),
    Toy("ct-2", split=Split.VAL, shape=PATCH, liver=((8, 15, 16), 7.0), lesions=(((8, 15, 13), 3.0),)),
]


def toy_settings(tiny: Params, **changes: Any) -> TrainingParams:
    """Training settings of `params/tiny.yaml` for patches of the toys, with some changes."""
    values = {**tiny.train_universal.training.model_dump(), "patch_zyx": PATCH, "validate_every": 4, **changes}
    return TrainingParams.model_validate(values)


def discard_metrics(step: int, metrics: dict[str, float]) -> None:
    """An `on_metrics` that does nothing."""


def toy_trainer(
    pool: Pool, tiny: Params, checkpoints: Path, on_metrics: Any = discard_metrics, seed: int = 3, **changes: Any
) -> Trainer:
    """A trainer of the tiny network, whose initial weights depend on `seed` alone."""
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(tiny.network.name, tiny.network.config, tiny.train_universal.training.patch_zyx)
    return Trainer(network, pool, toy_settings(tiny, **changes), checkpoints, CPU, on_metrics)


def train(trainer: Trainer) -> Trained:
    return trainer.run(Stage("train"))


def equal_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

"""The state of a training: everything that changes from step to step, and that a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hepar.params import TrainingParams

Weights = dict[str, Tensor]
HistoryRow = tuple[int, str, str, str, float]  # step, split, modality, metric, value


@dataclass
class TrainingState:
    """Weights, their exponential moving average (EMA), optimiser, and the progress of the training.

    Validation scores the EMA, and the EMA is what a training returns.
    """

    network: nn.Module
    ema: AveragedModel
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    best: Weights  # the EMA with the best validation score
    snapshots: list[Weights] = field(default_factory=list)  # the EMA at the steps of `params.snapshots`
    step: int = 0
    validated: int = 0  # step of the last validation
    best_score: float = -1.0
    validations_since_best: int = 0
    history: list[HistoryRow] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last one in the history

    @classmethod
    def initial(cls, network: nn.Module, params: TrainingParams, device: torch.device) -> Self:
        """The state before the first step of a network that is on `device`."""
        ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay)).eval()
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
        )
        scaler = torch.amp.GradScaler(device.type, enabled=params.precision == "fp16")
        return cls(network, ema, optimiser, scaler, best=copy.deepcopy(ema.module.state_dict()))

    def ema_weights(self) -> Weights:
        """A copy of the EMA as it is now."""
        return copy.deepcopy(self.ema.module.state_dict())

    def add_to_history(self, split: str, modality: str, metrics: Mapping[str, float]) -> None:
        """Append metrics of this step; `modality` is empty for those over all modalities."""
        self.history.extend((self.step, split, modality, name, value) for name, value in metrics.items())

    def keep_if_best(self, score: float | None) -> None:
        """Keep the EMA if no earlier one scored better, or if there is nothing to score (None)."""
        if score is None:
            self.best = self.ema_weights()
            return
        self.validations_since_best = 0 if score > self.best_score else self.validations_since_best + 1
        if score >= self.best_score:
            self.best_score = score
            self.best = self.ema_weights()

    def to_checkpoint(self) -> dict[str, Any]:
        """The state as `torch.save` takes it."""
        return {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "best": self.best,
            "snapshots": self.snapshots,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "validated": self.validated,
            "best_score": self.best_score,
            "validations_since_best": self.validations_since_best,
            "history": self.history,
            "losses": self.losses,
        }

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over the state in a checkpoint of `to_checkpoint`."""
        self.network.load_state_dict(checkpoint["network"])
        self.ema.load_state_dict(checkpoint["ema"])
        self.optimiser.load_state_dict(checkpoint["optimiser"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.best, self.snapshots = checkpoint["best"], checkpoint["snapshots"]
        self.step = checkpoint["step"]
        self.validated = checkpoint["validated"]
        self.best_score = checkpoint["best_score"]
        self.validations_since_best = checkpoint["validations_since_best"]
        self.history = [tuple(row) for row in checkpoint["history"]]
        self.losses = checkpoint["losses"]

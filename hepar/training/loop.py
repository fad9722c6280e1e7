"""The training loop: a network, a pool, and what comes out of it.

Everything random is a function of (seed, step), so a run that resumes from a checkpoint goes on as if it had never
stopped. The exponential moving average of the weights is what is validated and kept.
"""

from __future__ import annotations

import copy
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import current_thread, main_thread

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hepar.cases import LabelState, Modality, Split
from hepar.errors import HeparError, Preempted
from hepar.inference import sliding_window
from hepar.params import TrainingParams
from hepar.pool import Pool, PoolEntry
from hepar.progress import Stage
from hepar.training.augmentation import augment
from hepar.training.checkpoint import load_checkpoint, save_checkpoint
from hepar.training.losses import LIVER, TUMOUR, masked_loss
from hepar.training.sampling import PatchSampler

MEMORY_BYTES = 8 * 2**30  # prepared arrays are kept in memory up to it, else patches are read from disk
POLYNOMIAL_POWER = 0.9
VALIDATION_OVERLAP = 0.25
LOG_POINTS = 50  # training losses kept in the history
OnMetrics = Callable[[int, dict[str, float]], None]
Row = tuple[int, str, str, str, float]
COLUMNS = ["step", "split", "modality", "metric", "value"]


@dataclass
class Progressing:
    """The part of a training's state that a checkpoint adds to weights and optimiser."""

    step: int = 0
    best_score: float = -1.0
    validations_since_best: int = 0
    history: list[Row] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last one that was logged


@dataclass(frozen=True)
class Trained:
    """The weights that validated best, and the losses and scores on the way (columns `COLUMNS`)."""

    weights: dict[str, Tensor]
    history: pd.DataFrame


def learning_rate(step: int, params: TrainingParams) -> float:
    """Linear warm-up, then polynomial or cosine decay to zero."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    remaining = 1 - (step - params.warmup_steps) / max(params.steps - params.warmup_steps, 1)
    if params.schedule == "cosine":
        return float(params.learning_rate * (1 - np.cos(np.pi * remaining)) / 2)
    return float(params.learning_rate * remaining**POLYNOMIAL_POWER)


Batch = tuple[Tensor, Tensor, Tensor]


def make_batch(sampler: PatchSampler, number: int, params: TrainingParams, device: torch.device) -> Batch:
    """Image b c d h w, targets and weights b r d h w of a batch by its number, augmented."""
    patches = sampler.batch(number, params.batch_size)
    image = torch.from_numpy(np.stack([patch.image[None] for patch in patches])).to(device)
    y = torch.from_numpy(np.stack([patch.y for patch in patches])).to(device)
    m = torch.from_numpy(np.stack([patch.m for patch in patches])).to(device)
    rng = np.random.default_rng([params.seed, number, 1])
    is_mr = [patch.modality == Modality.MR for patch in patches]
    image, y, m = augment(image, y, m, params.augmentation, rng, is_mr)
    return image.contiguous(memory_format=torch.channels_last_3d), y, m


def batches(sampler: PatchSampler, first: int, params: TrainingParams, device: torch.device) -> Iterator[Batch]:
    """The batches of the steps from `first` on, `accumulate` a step, cut ahead by threads where there are workers."""
    numbers = range(first * params.accumulate, params.steps * params.accumulate)
    if params.workers == 0:
        for number in numbers:
            yield make_batch(sampler, number, params, device)
        return
    with ThreadPoolExecutor(params.workers) as executor:
        ahead: deque[Future[Batch]] = deque()
        for number in numbers:
            ahead.append(executor.submit(make_batch, sampler, number, params, device))
            if len(ahead) > 2 * params.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


@contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came, as the scheduler of a cluster sends it some time before it kills; for the main thread."""
    came: list[int] = []
    if current_thread() is not main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)


class Trainer:
    """Trains one network on one pool."""

    def __init__(
        self,
        network: nn.Module,
        pool: Pool,
        params: TrainingParams,
        checkpoints: Path,
        device: torch.device,
        on_metrics: OnMetrics,
    ) -> None:
        self.network = network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if params.gradient_checkpointing:
            setattr(network, "gradient_checkpointing", True)  # noqa: B010, a module types its attributes as tensors
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay))
        self.best: dict[str, Tensor] = copy.deepcopy(self.ema.module.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay
        )
        self.pool, self.params, self.device = pool, params, device
        self.checkpoints, self.on_metrics = checkpoints, on_metrics
        self.sampler = PatchSampler(
            pool, pool.select(Split.TRAIN), params.patch_zyx, params.sampling, params.seed, MEMORY_BYTES
        )
        self.at = Progressing()

    def run(self, stage: Stage) -> Trained:
        """Train to the last step, from the last checkpoint where there is one.

        Raises HeparError on a NaN loss and where the memory is too small, and Preempted, with a checkpoint saved, on
        SIGTERM.
        """
        self._resume()
        log_every = max(1, self.params.steps // LOG_POINTS)
        with stage.counting(self.params.steps, "training") as count, sigterm() as told_to_stop, self._enough_memory():
            of_all = batches(self.sampler, self.at.step, self.params, self.device)
            while self.at.step < self.params.steps and not self._is_stale():
                self.at.losses.append(self._step(list(islice(of_all, self.params.accumulate))))
                self.at.step += 1
                count.advance(self.at.step, loss=self.at.losses[-1])
                if self.at.step % log_every == 0:
                    self._log("train", "", {"loss": float(np.mean(self.at.losses))})
                    self.at.losses.clear()
                if self.at.step % self.params.validate_every == 0 or self.at.step == self.params.steps:
                    self._validate()
                if self.at.step % self.params.checkpoint_every == 0 or told_to_stop():
                    self._save()
                if told_to_stop():
                    raise Preempted(f"stopped by SIGTERM at step {self.at.step}, which is saved: run again to go on")
        return Trained(self.best, pd.DataFrame(self.at.history, columns=COLUMNS))

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU the allocator's words tell
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise HeparError(
                f"out of memory at step {self.at.step + 1}: lower training.batch_size ({self.params.batch_size}) or"
                f" patch_zyx ({self.params.patch_zyx}), or set gradient_checkpointing"
            ) from None

    def _is_stale(self) -> bool:
        """Whether as many validations as `patience` were no better than the best."""
        return 0 < self.params.patience <= self.at.validations_since_best

    def _step(self, parts: Sequence[Batch]) -> float:
        """One step of the optimiser on the mean gradient of some batches; the mean of their losses."""
        self.network.train()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.at.step, self.params)
        self.optimiser.zero_grad(set_to_none=True)
        value = 0.0
        for image, y, m in parts:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.precision == "bf16"):
                output = self.network(image)
            scales = output if isinstance(output, list) else [output]
            loss = masked_loss(scales, y, m, self.params.nesting_weight, self.params.bce_weights).total / len(parts)
            value += float(loss.detach())
            if not np.isfinite(value):
                raise HeparError(
                    f"the loss is {value} at step {self.at.step + 1}: lower learning_rate"
                    f" ({self.params.learning_rate}) or clip_norm ({self.params.clip_norm})"
                )
            loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.params.clip_norm)
        self.optimiser.step()
        self.ema.update_parameters(self.network)
        return value

    def _log(self, split: str, modality: str, metrics: dict[str, float]) -> None:
        self.at.history.extend((self.at.step, split, modality, name, value) for name, value in metrics.items())
        prefix = f"{split}/{modality}/" if modality else f"{split}/"
        self.on_metrics(self.at.step, {prefix + name: value for name, value in metrics.items()})

    def _validate(self) -> None:
        """Score the moving average on validation patients; keep its weights if none were better."""
        entries = self._validation_entries()
        scores: list[float] = []
        for modality in sorted({entry.modality for entry in entries}):
            dice = self._dice([entry for entry in entries if entry.modality == modality])
            scores.extend(dice.values())
            self._log("val", str(modality), dice)
        score = float(np.mean(scores)) if scores else self.at.best_score
        if scores:
            self.at.validations_since_best = 0 if score > self.at.best_score else self.at.validations_since_best + 1
        if score >= self.at.best_score:
            self.at.best_score = score
            self.best = copy.deepcopy(self.ema.module.state_dict())

    def _validation_entries(self) -> list[PoolEntry]:
        chosen: list[PoolEntry] = []
        for modality in sorted({entry.modality for entry in self.pool.entries}):
            members = [
                entry
                for entry in self.pool.select(Split.VAL)
                if entry.modality == modality and entry.liver_state == LabelState.MANUAL
            ]
            chosen.extend(members[: self.params.validation_cases])
        return chosen

    def _dice(self, entries: Sequence[PoolEntry]) -> dict[str, float]:
        """Mean Dice per structure over the cases that have one by hand; structures without any are left out."""
        self.ema.module.eval()
        liver, tumour = [], []
        for entry in entries:
            arrays = self.pool.arrays(entry).loaded()
            image = np.asarray(arrays.image, np.float32)
            predicted = sliding_window(self.ema.module, image, self.params.patch_zyx, VALIDATION_OVERLAP, self.device)
            liver.append(_overlap(predicted[LIVER] > 0.5, arrays.liver > 0))
            if entry.tumour_state == LabelState.MANUAL and arrays.tumour.any():
                tumour.append(_overlap(predicted[TUMOUR] > 0.5, arrays.tumour > 0))
        means = {"liver_dice": liver, "tumour_dice": tumour}
        return {name: float(np.mean(values)) for name, values in means.items() if values}

    def _save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "best": self.best,
            "optimiser": self.optimiser.state_dict(),
            "step": self.at.step,
            "best_score": self.at.best_score,
            "validations_since_best": self.at.validations_since_best,
            "history": self.at.history,
            "losses": self.at.losses,
        }
        save_checkpoint(self.checkpoints, state)

    def _resume(self) -> None:
        state = load_checkpoint(self.checkpoints, self.device)
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.best = state["best"]
        self.at = Progressing(
            state["step"],
            state["best_score"],
            state["validations_since_best"],
            [tuple(row) for row in state["history"]],
            state["losses"],
        )


def _overlap(
    a: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], b: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> float:
    return 2 * float((a & b).sum()) / max(float(a.sum() + b.sum()), 1.0)

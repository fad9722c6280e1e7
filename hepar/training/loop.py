"""The training loop: a network, a pool, and what comes out of it.

Everything random is a function of the seed and of a step's or a patch's number, so a run that resumes from a checkpoint
goes on as if it had never stopped, and processes that share a batch see what one alone would. The exponential moving
average of the weights is what is validated and kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hepar.cases import LIVER, TUMOUR, LabelState, Split
from hepar.errors import HeparError, ParamsError, Preempted
from hepar.evaluation.overlap import OverlapCounts, count_overlap, global_dice
from hepar.inference.prediction import sliding_window
from hepar.params import TrainingParams
from hepar.pool.table import Pool, PoolEntry
from hepar.runtime.device import autocast, sigterm
from hepar.runtime.progress import Stage
from hepar.training import distributed
from hepar.training.batches import Batch, Waits, batches
from hepar.training.checkpoint import load_checkpoint, save_checkpoint
from hepar.training.losses import consistency, masked_loss
from hepar.training.sampling import PatchSampler

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
    validated: int = 0  # the step of the last validation
    best_score: float = -1.0
    validations_since_best: int = 0
    history: list[Row] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # since the last one that was logged


@dataclass(frozen=True)
class Trained:
    """The weights that validated best, the losses and scores on the way (columns `COLUMNS`), and earlier averages."""

    weights: dict[str, Tensor]
    history: pd.DataFrame
    snapshots: tuple[dict[str, Tensor], ...]


def learning_rate(step: int, params: TrainingParams) -> float:
    """Linear warm-up, then polynomial or cosine decay to zero."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    remaining = 1 - (step - params.warmup_steps) / max(params.steps - params.warmup_steps, 1)
    if params.schedule == "cosine":
        return float(params.learning_rate * (1 - np.cos(np.pi * remaining)) / 2)
    return float(params.learning_rate * remaining**POLYNOMIAL_POWER)


def consistency_weight(step: int, params: TrainingParams) -> float:
    """Grows from e^-5 of the weight to the whole of it over the ramp-up."""
    missing = 1 - min(1.0, step / params.consistency_rampup_steps) if params.consistency_rampup_steps else 0.0
    return params.consistency_weight * float(np.exp(-5 * missing**2))


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
        self.network, self.pool, self.params, self.device = network, pool, params, device
        self.checkpoints, self.on_metrics = checkpoints, on_metrics
        self.at = Progressing()
        self._told: dict[str, list[Tensor]] = {}  # parts of the loss and norms of the gradient since the last log
        with self._mendable():
            self._prepare()

    def _prepare(self) -> None:
        """Take what the training needs to its device and into memory."""
        params, device, network = self.params, self.device, self.network
        if params.compile and device.type == "cpu":
            raise ParamsError(
                "training.compile is true, but there is no GPU: on a CPU torch's compiler gets gradients wrong: set it"
                " to false"
            )
        network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if params.gradient_checkpointing:
            if not hasattr(network, "gradient_checkpointing"):
                raise ParamsError("training.gradient_checkpointing is true: of the networks only medformer can")
            setattr(network, "gradient_checkpointing", True)  # noqa: B010, a module types its attributes as tensors
        self.ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay)).eval()
        self.best: dict[str, Tensor] = copy.deepcopy(self.ema.module.state_dict())
        self.snapshots: list[dict[str, Tensor]] = []
        self.snapshot_steps = {max(1, round(share * params.steps)) for share in params.snapshots}
        self.optimiser = torch.optim.AdamW(
            network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=params.precision == "fp16")
        self.parallel = distributed.parallel(network, device)
        self.forward: Callable[[Tensor], Any] = torch.compile(self.parallel) if params.compile else self.parallel
        learned_from = self.pool.select(Split.TRAIN, also_unknown=params.consistency_weight > 0)
        cache = int(params.cache_gib * 2**30) // distributed.size()
        self.sampler = PatchSampler(self.pool, learned_from, params.patch_zyx, params.sampling, params.seed, cache)

    def run(self, stage: Stage) -> Trained:
        """Train to the last step, from the last checkpoint where there is one.

        Raises HeparError on a NaN loss, where the memory is too small, where torch cannot compile the network and where
        nothing is known that could be learned, and Preempted, with a checkpoint saved, on SIGTERM.
        """
        self._check_positives(stage)
        self._resume()
        log_every = max(1, self.params.steps // LOG_POINTS)
        gpus = [self.device] if self.device.type == "cuda" else []
        with (
            stage.counting(self.params.steps, "training") as count,
            sigterm() as told_to_stop,
            self._mendable(),
            torch.random.fork_rng(gpus),
        ):
            of_all = batches(self.sampler, self.at.step, self.params, self.device)
            waits = Waits()
            self._validate_if_due(told_to_stop)  # where the last run was stopped in it
            while self.at.step < self.params.steps and not self._is_stale():
                with waits.waiting():
                    parts = list(islice(of_all, self.params.accumulate))
                self.at.losses.append(self._step(parts))
                self.at.step += 1
                count.advance(self.at.step, loss=self.at.losses[-1], wait=f"{waits.share:.0%}")
                if self.at.step % log_every == 0:
                    self._log("train", "", {"loss": float(np.mean(self.at.losses))})
                    told = {f"train/{name}": float(torch.stack(values).mean()) for name, values in self._told.items()}
                    self.on_metrics(self.at.step, told | {"train/wait_share": waits.share, "train/lr": self._rate()})
                    self._told.clear()
                    self.at.losses.clear()
                    waits = Waits()
                if self.at.step in self.snapshot_steps:
                    self.snapshots.append(copy.deepcopy(self.ema.module.state_dict()))
                self._validate_if_due(told_to_stop)
                self._stop_if_told(told_to_stop)
                if self.at.step % self.params.checkpoint_every == 0:
                    self._save()
        return Trained(self.best, pd.DataFrame(self.at.history, columns=COLUMNS), tuple(self.snapshots))

    def _stop_if_told(self, told_to_stop: Callable[[], bool]) -> None:
        if distributed.any_of(told_to_stop(), self.device):
            self._save()
            raise Preempted(f"stopped by SIGTERM at step {self.at.step}, which is saved: run again to go on")

    @contextmanager
    def _mendable(self) -> Iterator[None]:
        """Say in a sentence what can be changed where memory is short or a compiler is missing."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if self.params.compile and (why := _why_not_compiled(error)):
                raise HeparError(
                    f"training.compile is true, but torch cannot compile the network ({why}): set it to false, or"
                    " install a C++ compiler"
                ) from None
            # torch.OutOfMemoryError is a RuntimeError; on a CPU the allocator's words tell, and numpy's is of its own
            no_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
            if not no_memory and "can't allocate memory" not in str(error):
                raise
            checkpointing = ", or set gradient_checkpointing" if hasattr(self.network, "gradient_checkpointing") else ""
            raise HeparError(
                f"out of memory at step {self.at.step + 1}: lower training.batch_size ({self.params.batch_size}) or"
                f" patch_zyx ({self.params.patch_zyx}){checkpointing}; arrays of cases take up to cache_gib"
                f" ({self.params.cache_gib:g})"
            ) from None

    def _check_positives(self, stage: Stage) -> None:
        """Raise HeparError where no voxel of liver or tumour is known; tell where a modality has no tumour to show."""
        lesions = {str(modality): n for modality, n in self.sampler.lesions().items()}
        if not self.sampler.livers() and not any(lesions.values()):
            raise HeparError(
                "no training case has a liver or tumour that is known: draw one, or let more pseudo-livers pass by"
                " pseudo_label.gates or assemble_pool.labels"
            )
        if self.params.sampling.tumour_share > 0 and (without := [name for name, n in lesions.items() if n == 0]):
            stage.say(
                f"no {' and no '.join(without)} training case has a tumour mask: patches around tumours are cut around"
                " livers there (training.sampling.tumour_share)"
            )

    def _rate(self) -> float:
        return float(self.optimiser.param_groups[0]["lr"])

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
        dropout = np.random.default_rng([self.params.seed, self.at.step, distributed.rank(), 2])
        torch.manual_seed(int(dropout.integers(2**63)))
        for number, part in enumerate(parts, start=1):
            with self._gradients_when(number == len(parts)):
                loss = self._loss(part) / len(parts)
                value += float(loss.detach())
                self._check_finite("loss", value)
                self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.params.clip_norm)
        if not self.scaler.is_enabled():  # which leaves out such a step by itself
            self._check_finite("gradient's norm", float(norm))
            self._told.setdefault("gradient_norm", []).append(norm.detach())
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.ema.update_parameters(self.network)
        return value

    def _check_finite(self, what: str, value: float) -> None:
        if not np.isfinite(value):
            raise HeparError(
                f"the {what} is {value} at step {self.at.step + 1}: lower learning_rate"
                f" ({self.params.learning_rate}) or clip_norm ({self.params.clip_norm})"
            )

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.params.precision)

    def _loss(self, batch: Batch) -> Tensor:
        params = self.params
        with self._autocast():
            output = self.forward(batch.image)
            taught = None
            if batch.plain is not None:
                with torch.no_grad():
                    taught = self.ema.module(batch.plain)
        scales = output if isinstance(output, list) else [output]
        parts = masked_loss(scales, batch.y, batch.m, params.nesting_weight, params.bce_weights)
        for name in ("bce", "dice", "nesting"):
            self._told.setdefault(name, []).append(getattr(parts, name).detach())
        loss = parts.total
        if taught is None:
            return loss
        weight = consistency_weight(self.at.step, params)
        return loss + weight * consistency(scales[0].float().sigmoid(), taught.float().sigmoid(), batch.m)

    def _gradients_when(self, last: bool) -> AbstractContextManager[None]:
        """Processes average their gradients once a step, with its last part."""
        wrapped = isinstance(self.parallel, DistributedDataParallel)
        return self.parallel.no_sync() if wrapped and not last else nullcontext()  # type: ignore[operator]

    def _log(self, split: str, modality: str, metrics: dict[str, float]) -> None:
        self.at.history.extend((self.at.step, split, modality, name, value) for name, value in metrics.items())
        prefix = f"{split}/{modality}/" if modality else f"{split}/"
        self.on_metrics(self.at.step, {prefix + name: value for name, value in metrics.items()})

    def _validate_if_due(self, told_to_stop: Callable[[], bool]) -> None:
        """Validate where it is time to; a SIGTERM does not wait for the end of it."""
        step = self.at.step
        if self.at.validated == step or (step % self.params.validate_every and step != self.params.steps):
            return
        self._validate(told_to_stop)

    def _validate(self, told_to_stop: Callable[[], bool]) -> None:
        """Score the moving average on validation patients; keep its weights if none were better.

        What counts is the mean of each modality's Dice of livers, and of one global Dice of all tumours, which voxels
        that are taken for tumour lower where there is none, also in a modality without any. Where it is told to stop
        before the end, nothing is changed.
        """
        entries = self._validation_entries()
        overlaps = {}
        for modality in sorted({entry.modality for entry in entries}):
            members = [entry for entry in entries if entry.modality == modality]
            overlaps[modality] = self._overlaps(members, told_to_stop)
            self._stop_if_told(told_to_stop)
        self.at.validated = self.at.step
        scores: list[float] = []
        of_all: list[OverlapCounts] = []
        for modality, (livers, tumours) in overlaps.items():
            each = [counts.dice for counts in livers if counts.dice is not None]
            liver = {"liver_dice": float(np.mean(each))} if each else {}
            scores.extend(liver.values())
            of_all.extend(tumours)
            self._log("val", str(modality), liver | _tumour_dice(tumours))
        scores.extend(_tumour_dice(of_all).values())
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
                if entry.modality == modality and LabelState.MANUAL in (entry.liver_state, entry.tumour_state)
            ]
            chosen.extend(members[: self.params.validation_cases])
        return chosen

    def _overlaps(
        self, entries: Sequence[PoolEntry], told_to_stop: Callable[[], bool]
    ) -> tuple[list[OverlapCounts], list[OverlapCounts]]:
        """Voxels of livers drawn by hand, and of tumours where they are known, found or not: those of all processes."""
        livers, tumours = [], []
        for entry in entries[distributed.rank() :: distributed.size()]:
            if told_to_stop():
                break
            arrays = self.pool.arrays(entry).loaded()
            image = np.asarray(arrays.image, np.float32)
            with self._autocast():
                found = sliding_window(self.ema.module, image, self.params.patch_zyx, VALIDATION_OVERLAP, self.device)
            if entry.liver_state == LabelState.MANUAL:
                livers.append(count_overlap(arrays.liver > 0, found[LIVER] > 0.5))
            if entry.tumour_state in (LabelState.MANUAL, LabelState.ABSENT):
                tumours.append(count_overlap(arrays.tumour > 0, found[TUMOUR] > 0.5))
        gathered = distributed.gathered((livers, tumours))
        return [c for own, _ in gathered for c in own], [c for _, own in gathered for c in own]

    def _save(self) -> None:
        if distributed.rank() > 0:
            return
        state = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "best": self.best,
            "snapshots": self.snapshots,
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.at.step,
            "validated": self.at.validated,
            "best_score": self.at.best_score,
            "validations_since_best": self.at.validations_since_best,
            "history": self.at.history,
            "losses": self.at.losses,
        }
        save_checkpoint(self.checkpoints, state)

    def _resume(self) -> None:
        state = distributed.from_first(load_checkpoint(self.checkpoints) if distributed.rank() == 0 else None)
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.best, self.snapshots = state["best"], state["snapshots"]
        self.at = Progressing(
            state["step"],
            state["validated"],
            state["best_score"],
            state["validations_since_best"],
            [tuple(row) for row in state["history"]],
            state["losses"],
        )


def _why_not_compiled(error: Exception) -> str:
    """What torch's compiler says; empty if the error is none of its own."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second

    return " ".join(str(error).split("\n\n")[0].split()) if isinstance(error, TorchDynamoException) else ""


def _tumour_dice(counts: Sequence[OverlapCounts]) -> dict[str, float]:
    """The global Dice of tumours; none where no case has one."""
    dice = global_dice(counts) if any(count.reference_voxels for count in counts) else None
    return {} if dice is None else {"tumour_dice": dice}

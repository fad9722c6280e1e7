"""The training loop.

Random numbers depend only on the seed and on the number of a step or patch. A run that resumes from a checkpoint
therefore gives the same weights as one that never stopped, and processes that share a batch see what one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hepar.cases import Split
from hepar.errors import HeparError, ParamsError, Preempted
from hepar.inference.model_folder import ModelFolder
from hepar.params import TrainingParams
from hepar.pool.table import Pool
from hepar.runtime.device import autocast, catch_sigterm, memory_format
from hepar.runtime.progress import Stage
from hepar.runtime.stored_checkpoint import StoredCheckpoint
from hepar.training import distributed
from hepar.training.batches import Batch, LoaderWait, batches
from hepar.training.checkpoint import load_checkpoint, save_checkpoint
from hepar.training.losses import LossWeights, consistency, masked_loss
from hepar.training.resource_errors import explain_resource_errors
from hepar.training.sampling import PatchSampler
from hepar.training.schedules import consistency_weight, learning_rate
from hepar.training.state import TrainingState, Weights
from hepar.training.taught import taught_structures
from hepar.training.validation import count_overlaps, validation_cases, validation_score

LOG_POINTS = 50  # training losses kept in the history
OnMetrics = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """Best averaged weights, those at the snapshots, and the history (columns `ModelFolder.HISTORY_COLUMNS`)."""

    weights: Weights
    history: pd.DataFrame
    snapshots: tuple[Weights, ...]


class Trainer:
    """Trains one network on one pool. `on_metrics` receives the step and its metrics by name."""

    def __init__(
        self,
        network: nn.Module,
        pool: Pool,
        params: TrainingParams,
        checkpoints: Path,
        device: torch.device,
        on_metrics: OnMetrics,
        stored: StoredCheckpoint | None = None,
    ) -> None:
        """Move the network to the device and index the pool. Checkpoints also go to `stored`, if that is given.

        Raises ParamsError if the network or device does not support a setting, HeparError if memory runs out.
        """
        self.network, self.pool, self.params = network, pool, params
        self.checkpoints, self.device, self.on_metrics = checkpoints, device, on_metrics
        self.stored = stored
        self._recent: dict[str, list[Tensor]] = {}  # loss terms and gradient norms since the last log
        _check_support(network, params, device)
        with explain_resource_errors(network, params, lambda: 0):
            network.to(device, memory_format=memory_format(device))  # type: ignore[call-overload]
            if params.gradient_checkpointing:
                setattr(network, "gradient_checkpointing", True)  # noqa: B010, a module types its attributes as tensors
            self.state = TrainingState.initial(network, params, device)
            self.ddp = distributed.wrap_ddp(network, device)
            self.forward: Callable[[Tensor], Any] = torch.compile(self.ddp) if params.compile else self.ddp
            entries = pool.select(Split.TRAIN, also_unknown=params.consistency_weight > 0)
            cache_bytes = int(params.cache_gib * 2**30) // distributed.world_size()
            self.sampler = PatchSampler(pool, entries, params.patch_zyx, params.sampling, params.seed, cache_bytes)

    def run(self, stage: Stage) -> Trained:
        """Train to the last step, from the last checkpoint if there is one.

        Raises HeparError if the loss is not finite, memory runs out, torch cannot compile the network, or the pool has
        no known voxel to learn from; raises Preempted on SIGTERM, after saving a checkpoint.
        """
        self._check_pool(stage)
        self._resume()
        state, params = self.state, self.params
        log_every = max(1, params.steps // LOG_POINTS)
        kept_steps = snapshot_steps(params.snapshots, params.steps)
        with (
            stage.counting(params.steps, "steps") as progress,
            catch_sigterm() as sigterm_arrived,
            explain_resource_errors(self.network, params, lambda: state.step),
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
        ):
            loader, wait = batches(self.sampler, state.step, params, self.device), LoaderWait()
            self._validate_if_due(sigterm_arrived)  # if SIGTERM stopped the last run during a validation
            while state.step < params.steps and not self._is_stale():
                with wait.measure():
                    parts = list(islice(loader, params.accumulate))
                state.losses.append(self._step(parts))
                state.step += 1
                progress.advance(state.step, loss=state.losses[-1], wait=f"{wait.share:.0%}")
                if state.step % log_every == 0:
                    self._log_training(wait.share)
                    wait = LoaderWait()
                if state.step in kept_steps:
                    state.snapshots.append(state.ema_weights())
                self._validate_if_due(sigterm_arrived)
                self._stop_if(sigterm_arrived)
                is_due = self.stored is not None and self.stored.is_due()
                if is_due or state.step % params.checkpoint_every == 0:
                    self._save(send=is_due)
        history = pd.DataFrame(state.history, columns=list(ModelFolder.HISTORY_COLUMNS))
        return Trained(state.best, history, tuple(state.snapshots))

    def _check_pool(self, stage: Stage) -> None:
        """Raise HeparError if no liver or tumour is known; log which modalities have no tumour to centre patches on."""
        lesions = {str(modality): count for modality, count in self.sampler.lesion_counts().items()}
        if not self.sampler.liver_count() and not any(lesions.values()):
            raise HeparError(
                "no training case has a known liver or tumour: add a manual mask, or accept more pseudo-livers"
                " (pseudo_label.gates, assemble_pool.labels)"
            )
        without = [modality for modality, count in lesions.items() if count == 0]
        if self.params.sampling.tumour_share > 0 and without:
            stage.log(
                f"no {' and no '.join(without)} training case has a tumour mask: patches that should show a tumour are"
                " centred on livers and on places around them instead (training.sampling.tumour_share)"
            )

    def _is_stale(self) -> bool:
        """Whether `patience` validations in a row have not improved the score."""
        return 0 < self.params.patience <= self.state.validations_since_best

    def _step(self, parts: Sequence[Batch]) -> float:
        """One optimiser step on the mean gradient of some batches; returns the mean of their losses."""
        state = self.state
        self.network.train()
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(state.step, self.params)
        state.optimiser.zero_grad(set_to_none=True)
        mean_loss = 0.0
        dropout = np.random.default_rng([self.params.seed, state.step, distributed.rank(), 2])
        torch.manual_seed(int(dropout.integers(2**63)))
        for number, part in enumerate(parts, start=1):
            with self._gradient_sync(number == len(parts)):
                loss = self._loss(part) / len(parts)
                mean_loss += float(loss.detach())
                self._check_finite("loss", mean_loss)
                state.scaler.scale(loss).backward()
        state.scaler.unscale_(state.optimiser)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.params.clip_norm)
        if not state.scaler.is_enabled():  # an enabled scaler skips a step whose gradients are not finite
            self._check_finite("gradient norm", float(norm))
            self._recent.setdefault("gradient_norm", []).append(norm.detach())
        state.scaler.step(state.optimiser)
        state.scaler.update()
        state.ema.update_parameters(self.network)
        return mean_loss

    def _loss(self, batch: Batch) -> Tensor:
        """The loss of a batch, a scalar; with consistency to the EMA's prediction of the unaugmented intensities."""
        params = self.params
        with autocast(self.device, params.precision):
            output = self.forward(batch.image_bcdhw)
            teacher_logits_brdhw = None
            if batch.plain_bcdhw is not None:
                with torch.no_grad():
                    teacher_logits_brdhw = self.state.ema.module(batch.plain_bcdhw)
        scales = output if isinstance(output, list) else [output]
        parts = masked_loss(scales, batch.target_brdhw, batch.weight_brdhw, LossWeights.of(params, self.state.step))
        for name in ("bce", "dice", "nesting"):
            self._recent.setdefault(name, []).append(getattr(parts, name).detach())
        if teacher_logits_brdhw is None:
            return parts.total
        probability_brdhw, teacher_brdhw = scales[0].float().sigmoid(), teacher_logits_brdhw.float().sigmoid()
        weight = consistency_weight(self.state.step, params)
        return parts.total + weight * consistency(probability_brdhw, teacher_brdhw, batch.weight_brdhw)

    def _gradient_sync(self, last_part: bool) -> AbstractContextManager[None]:
        """Let the processes average their gradients once per step, with its last part."""
        wrapped = isinstance(self.ddp, DistributedDataParallel)
        return self.ddp.no_sync() if wrapped and not last_part else nullcontext()  # type: ignore[operator]

    def _check_finite(self, name: str, value: float) -> None:
        if not np.isfinite(value):
            raise HeparError(
                f"the {name} is {value} at step {self.state.step + 1}: lower learning_rate"
                f" ({self.params.learning_rate}) or clip_norm ({self.params.clip_norm})"
            )

    def _log_training(self, wait_share: float) -> None:
        """Log means since the last log. Only the loss goes into the history."""
        self._log("train", "", {"loss": float(np.mean(self.state.losses))})
        means = {f"train/{name}": float(torch.stack(values).mean()) for name, values in self._recent.items()}
        rate = float(self.state.optimiser.param_groups[0]["lr"])
        self.on_metrics(self.state.step, means | {"train/wait_share": wait_share, "train/lr": rate})
        self._recent.clear()
        self.state.losses.clear()

    def _log(self, split: str, modality: str, metrics: dict[str, float]) -> None:
        self.state.add_to_history(split, modality, metrics)
        prefix = f"{split}/{modality}/" if modality else f"{split}/"
        self.on_metrics(self.state.step, {prefix + name: value for name, value in metrics.items()})

    def _validate_if_due(self, should_stop: Callable[[], bool]) -> None:
        step, params = self.state.step, self.params
        if self.state.validated != step and (step % params.validate_every == 0 or step == params.steps):
            self._validate(should_stop)

    def _validate(self, should_stop: Callable[[], bool]) -> None:
        """Score the EMA on validation patients, and keep it if no earlier one was better.

        If it is stopped before the end, it changes nothing and runs again after the training resumes.
        """
        overlaps, taught = {}, taught_structures(self.pool, self.params)
        for modality, entries in validation_cases(self.pool, self.params.validation_cases).items():
            overlaps[modality] = count_overlaps(
                self.state.ema.module, self.pool, entries, self.params, self.device, taught, should_stop
            )
            self._stop_if(should_stop)
        self.state.validated = self.state.step
        for modality, counts in overlaps.items():
            self._log("val", str(modality), counts.metrics())
        self.state.keep_if_best(validation_score(overlaps.values()))

    def _stop_if(self, should_stop: Callable[[], bool]) -> None:
        if distributed.all_reduce_any(should_stop(), self.device):
            self._save(send=True)
            raise Preempted(f"stopped by SIGTERM at step {self.state.step}, which is saved: run again to resume")

    def _save(self, send: bool) -> None:
        if distributed.rank() == 0:
            save_checkpoint(self.checkpoints, self.state.to_checkpoint())
            if send and self.stored is not None:
                self.stored.save(self.checkpoints)

    def _resume(self) -> None:
        checkpoint = distributed.broadcast(load_checkpoint(self.checkpoints) if distributed.rank() == 0 else None)
        if checkpoint is not None:
            self.state.restore(checkpoint)


def snapshot_steps(shares: Iterable[float], steps: int) -> set[int]:
    """The steps of a training of `steps` at which snapshots are kept, from their shares of it."""
    return {max(1, round(share * steps)) for share in shares}


def _check_support(network: nn.Module, params: TrainingParams, device: torch.device) -> None:
    if params.compile and device.type == "cpu":
        raise ParamsError(
            "training.compile is true, but there is no GPU: set it to false, because torch's compiler computes wrong"
            " gradients on a CPU"
        )
    if params.gradient_checkpointing and not hasattr(network, "gradient_checkpointing"):
        raise ParamsError("training.gradient_checkpointing is true, but only medformer supports it: set it to false")

"""A training step by its parts, its cost against the patch size, and how long it waits for batches.

`python benchmarks/training.py [--params FILE] [--steps 20] [--patches 48 96]`, on a GPU if there is one, best with
`--params params/full.yaml --patches 64 96 128` there. Cases are noise with boxes (`noise_pool.py`); network, batch size
and precision are those of `train_universal` in the params file.

1. Time and peak memory of the parts of a step: cutting patches, augmentation, forward, loss and backward, optimiser,
   moving average. Memory is that of the process (Linux) or, on a GPU, of torch, beyond what a fresh process holds.
2. The same step for several patch sizes: time, microseconds per voxel, memory, and the estimate of `hepar plan`.
3. The share of its time that a training waits for batches, with and without prefetching.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from memory import held_mib, peak_mib, restart_peak
from noise_pool import noise_pool
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hepar.cases import LIVER
from hepar.networks import build_network
from hepar.params import NetworkParams, SizeZYX, TrainingParams, load_params
from hepar.planning.memory import WEIGHT_BYTES, training_bytes
from hepar.pool.table import Pool
from hepar.runtime.device import autocast, available_cores, memory_format, pick_device, use_threads
from hepar.training.augmentation import augment_intensity, augment_spatial
from hepar.training.batches import Batch, LoaderWait, batches
from hepar.training.losses import LossWeights, masked_loss
from hepar.training.sampling import PatchSampler

ROOT = Path(__file__).parents[1]
PATCHES = ((16, 32, 32), (32, 48, 48), (48, 64, 64), (64, 96, 96))
WORKERS = (0, 1, 2, 4, 8)  # as far as there are cores
UNMEASURED_COPIES = 3  # of each weight: the weight and its average exist before the step, the best average never here


@dataclass(frozen=True)
class Settings:
    """What is measured, from a params file."""

    file: Path
    network: NetworkParams
    training: TrainingParams
    device: torch.device

    @classmethod
    def load(cls, file: Path, device: torch.device) -> Settings:
        params = load_params(file)
        return cls(file, params.network, params.train_universal.training, device)


class Clock:
    """Seconds by part, summed over steps."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class PeakMemory:
    """Peak MiB by part, beyond what the process held before the first."""

    def __init__(self, device: torch.device) -> None:
        self.mib: dict[str, float] = {}
        self._device, self._before = device, held_mib(device)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        restart_peak(self._device)
        yield
        self.mib[name] = peak_mib(self._device) - self._before


class Step:
    """A network with its optimiser and moving average, and its training steps part by part."""

    def __init__(self, settings: Settings, training: TrainingParams, pool: Pool) -> None:
        torch.manual_seed(1)
        network = build_network(settings.network.name, settings.network.config, training.patch_zyx)
        self.network: nn.Module = network.to(settings.device, memory_format=memory_format(settings.device))  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-3, fused=True)
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        self.sampler = PatchSampler(pool, pool.entries, training.patch_zyx, training.sampling, 1, 2**33)
        self.training, self.device = training, settings.device
        self.number = 0

    def run(self, meter: Clock | PeakMemory) -> None:
        """Make a batch and learn from it."""
        training, self.number = self.training, self.number + 1
        with meter.part("cut patches"):
            patches = self.sampler.batch(self.number, training.batch_size)
            image_bcdhw = torch.from_numpy(np.stack([patch.image_zyx[None] for patch in patches])).to(self.device)
            target_brdhw = torch.from_numpy(np.stack([patch.target_rzyx for patch in patches])).to(self.device)
            weight_brdhw = torch.from_numpy(np.stack([patch.weight_rzyx for patch in patches])).to(self.device)
        with meter.part("augment"):
            rngs = [np.random.default_rng([self.number, b]) for b in range(len(patches))]
            augment_spatial(
                image_bcdhw, target_brdhw, weight_brdhw, training.augmentation, rngs, self.sampler.plan.spacing_zyx_mm
            )
            is_mr, window_hu = [True] * len(patches), self.sampler.plan.window_hu
            augment_intensity(image_bcdhw, target_brdhw[:, LIVER], training.augmentation, rngs, is_mr, window_hu)
            image_bcdhw = image_bcdhw.contiguous(memory_format=memory_format(image_bcdhw.device))
        self.learn(Batch(image_bcdhw, target_brdhw, weight_brdhw, None), meter)

    def learn(self, batch: Batch, meter: Clock | PeakMemory) -> None:
        training = self.training
        with meter.part("forward"), autocast(self.device, training.precision):
            output = self.network(batch.image_bcdhw)
        with meter.part("loss and backward"):
            scales = output if isinstance(output, list) else [output]
            loss = masked_loss(scales, batch.target_brdhw, batch.weight_brdhw, LossWeights.of(training, step=0))
            loss.total.backward()
        with meter.part("optimiser"):
            nn.utils.clip_grad_norm_(self.network.parameters(), training.clip_norm)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        with meter.part("moving average"):
            self.ema.update_parameters(self.network)


def measure_parts(settings: Settings, pool: Pool, steps: int) -> None:
    training = settings.training
    step, clock = Step(settings, training, pool), Clock(settings.device)
    step.run(Clock(settings.device))  # warm-up
    for _ in range(steps):
        step.run(clock)
    total, mib = sum(clock.seconds.values()), peak_mib_of_parts(settings, training.patch_zyx)
    print(f"a step of {training.batch_size} patches {training.patch_zyx}: {1000 * total / steps:.1f} ms")
    for name, seconds in clock.seconds.items():
        print(f"  {name:18s} {1000 * seconds / steps:8.1f} ms  {seconds / total:4.0%}  {mib[name]:8.0f} MiB")


def compare_patch_sizes(settings: Settings, pool: Pool, steps: int, patches: Sequence[SizeZYX]) -> None:
    print("\npatch         ms a step   µs a voxel   against the first   MiB a step   estimate")
    first_us = 0.0
    for patch in patches:
        training = settings.training.model_copy(update={"patch_zyx": patch})
        step, clock = Step(settings, training, pool), Clock(settings.device)
        step.run(Clock(settings.device))  # warm-up
        for _ in range(steps):
            step.run(clock)
        seconds = sum(clock.seconds.values()) / steps
        voxel_us = 1e6 * seconds / (training.batch_size * float(np.prod(patch)))
        first_us = first_us or voxel_us
        mib = max(peak_mib_of_parts(settings, patch).values())
        network = settings.network
        estimate = training_bytes(network.name, network.config, patch, training.batch_size, training)
        weight_bytes = WEIGHT_BYTES * sum(parameter.numel() for parameter in step.network.parameters())
        estimate_mib = (estimate - UNMEASURED_COPIES * weight_bytes) / 2**20
        print(
            f"{'×'.join(map(str, patch)):12s} {1000 * seconds:9.1f}   {voxel_us:10.3f}   {voxel_us / first_us:17.2f}"
            f"  {mib:11.0f}   {estimate_mib:8.0f}"
        )


def compare_workers(settings: Settings, pool: Pool, steps: int) -> None:
    print("\nworkers   ms a step   of it waiting")
    for workers in WORKERS:
        if workers > available_cores():
            break
        changes = {"workers": workers, "accumulate": 1, "steps": steps + 1}
        training = settings.training.model_copy(update=changes)
        step, clock = Step(settings, training, pool), Clock(settings.device)
        loader = batches(step.sampler, 0, training, settings.device)
        step.learn(next(loader), clock)
        wait, start = LoaderWait(), time.perf_counter()
        while True:
            with wait.measure():
                batch = next(loader, None)
            if batch is None:
                break
            step.learn(batch, clock)
        print(f"{workers:7d}   {1000 * (time.perf_counter() - start) / steps:9.1f}   {wait.share:13.1%}")


def peak_mib_of_parts(settings: Settings, patch: SizeZYX) -> dict[str, float]:
    """Peak memory of the parts of the first step in a fresh process."""
    command = [sys.executable, __file__, "--params", str(settings.file), "--memory-of", *map(str, patch)]
    return dict(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))


def print_memory(settings: Settings, patch: SizeZYX) -> None:
    training = settings.training.model_copy(update={"patch_zyx": patch})
    with tempfile.TemporaryDirectory() as name:
        step, memory = Step(settings, training, noise_pool(Path(name), 8)), PeakMemory(settings.device)
        step.run(memory)
        print(json.dumps(memory.mib))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--patches", type=int, nargs="*", help="sides of cubes")
    parser.add_argument("--memory-of", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_threads(0)
    settings = Settings.load(options.params, pick_device())
    if options.memory_of:
        print_memory(settings, tuple(options.memory_of))
        return
    print(f"on {settings.device.type}, {available_cores()} cores")
    patches = [(side, side, side) for side in options.patches] if options.patches else PATCHES
    with tempfile.TemporaryDirectory() as name:
        pool = noise_pool(Path(name), 16)
        measure_parts(settings, pool, options.steps)
        compare_patch_sizes(settings, pool, max(3, options.steps // 4), patches)
        compare_workers(settings, pool, options.steps)


if __name__ == "__main__":
    main()

"""A training step by its parts, its cost against patch size and number of cases, and patches a second against MONAI.

`python benchmarks/training.py [--params FILE] [--steps 20] [--patches 48 96] [--cases 10 100 1000] [--no-monai]`, on a
GPU where there is one, best with `--params params/full.yaml --patches 64 96 128` there. Cases are made of noise with
boxes in it, 56×80×80 voxels; network, batch and precision are those of `train_universal` in the params file.

1. A step by its parts, cutting patches, augmentation, forward, loss and backward, optimiser, moving average: time,
   and the most that the process (Linux; on a GPU: torch) holds in each, over what it held before a first step.
2. The same step for several patch sizes: time, microseconds a voxel, memory, and what `hepar plan` reckons with.
3. What share of its time a training waits for batches, with and without threads that cut ahead.
4. Seconds to open the sampler and to cut a batch, and memory, for a growing number of cases.
5. Patches a second of 48³ with the same augmentation, ours against MONAI's `CacheDataset`, `RandCropByPosNegLabeld` and
   its transforms, both from memory in one thread, in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import held_mib, peak_mib, restart_peak
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hepar.cases import LabelState, Modality, Split
from hepar.imaging.masks import lesion_diameters_mm
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.networks import build_network
from hepar.params import NetworkParams, SizeZYX, TrainingParams, load_params
from hepar.planning.memory import BYTES, training_bytes
from hepar.pool.arrays import PreprocessedArrays
from hepar.pool.table import ArraysRecord, LiverRecord, Pool, PoolEntry, Provenance, TumourRecord
from hepar.pool.targets import FULL, KnownLabels, make_targets
from hepar.runtime.device import autocast, available_cores, pick_device, use_threads
from hepar.training.augmentation import move, recolour
from hepar.training.batches import Batch, Waits, batches
from hepar.training.losses import masked_loss
from hepar.training.sampling import PatchSampler

ROOT = Path(__file__).parents[1]
SIZE_ZYX, SPACING_MM = (56, 80, 80), (4.0, 3.5, 3.5)
PATCHES = ((16, 32, 32), (32, 48, 48), (48, 64, 64), (64, 96, 96))
WORKERS = (0, 1, 2, 4, 8)  # as far as there are cores
SIDE = 48
BESIDE = 3  # copies of each weight that no step adds: itself, its average, and the best, which is not made here
PLAN = PreprocessingPlan(spacing_zyx_mm=SPACING_MM, window_hu=(-20.0, 180.0), mr_percentiles=(2.0, 98.0))


@dataclass(frozen=True)
class Given:
    """A params file, and what of it is measured."""

    file: Path
    network: NetworkParams
    training: TrainingParams

    @classmethod
    def of(cls, file: Path) -> Given:
        params = load_params(file)
        return cls(file, params.network, params.train_universal.training)


def made_pool(folder: Path, cases: int) -> Pool:
    """A pool whose cases share the arrays of eight, so that a thousand are made in seconds."""
    rng = np.random.default_rng(1)
    made = [_entry(folder, number, rng) for number in range(min(cases, 8))]
    entries = [replace(made[n % len(made)], case_id=f"c{n}", patient_id=f"p{n}") for n in range(cases)]
    return Pool(folder, PLAN, tuple(entries))


def _entry(folder: Path, number: int, rng: np.random.Generator) -> PoolEntry:
    liver, tumour = np.zeros(SIZE_ZYX, bool), np.zeros(SIZE_ZYX, bool)
    liver[14:44, 20:62, 8:52] = True
    for _ in range(3):
        z, y, x = rng.integers((16, 24, 12), (36, 52, 44))
        tumour[z : z + 4, y : y + 5, x : x + 5] = True
    image = (rng.normal(0, 0.3, SIZE_ZYX) + liver - 0.5 * tumour).astype(np.float32)
    known = KnownLabels(LabelState.MANUAL, LabelState.MANUAL, liver, tumour)
    targets = make_targets(known, SIZE_ZYX, SPACING_MM, "masked", 5.0)
    PreprocessedArrays.encode(image, targets).save(folder / f"case-{number}")
    voxel_ml = float(np.prod(SPACING_MM)) / 1000
    modality = Modality.CT if number % 2 else Modality.MR
    return PoolEntry(
        case_id=f"c{number}",
        patient_id=f"p{number}",
        split=Split.TRAIN,
        modality=modality,
        liver=LiverRecord(LabelState.MANUAL, 1.0, volume_ml=float(liver.sum()) * voxel_ml),
        tumour=TumourRecord(
            LabelState.MANUAL,
            1.0,
            volume_ml=float(tumour.sum()) * voxel_ml,
            lesion_diameters_mm=lesion_diameters_mm(tumour, voxel_ml),
        ),
        provenance=Provenance("synthetic", "", "", ""),
        arrays=ArraysRecord(
            f"case-{number}", key="", sha256="", known_share=float((targets.liver_weight_zyx / FULL).mean())
        ),
    )


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


class Scales:
    """The most MiB that are held in each part, over what was held before the first."""

    def __init__(self, device: torch.device) -> None:
        self.mib: dict[str, float] = {}
        self._device, self._before = device, held_mib(device)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        restart_peak(self._device)
        yield
        self.mib[name] = peak_mib(self._device) - self._before


class Bench:
    """A network with its optimiser, and one step of its training in parts."""

    def __init__(self, given: Given, training: TrainingParams, sampler: PatchSampler, device: torch.device) -> None:
        torch.manual_seed(1)
        network = build_network(given.network.name, given.network.config, training.patch_zyx)
        self.network: nn.Module = network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-3, fused=True)
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        self.sampler, self.training, self.device = sampler, training, device
        self.number = 0

    def step(self, clock: Clock | Scales) -> None:
        training, self.number = self.training, self.number + 1
        with clock.part("cut patches"):
            patches = self.sampler.batch(self.number, training.batch_size)
            image = torch.from_numpy(np.stack([patch.image[None] for patch in patches])).to(self.device)
            y = torch.from_numpy(np.stack([patch.y for patch in patches])).to(self.device)
            m = torch.from_numpy(np.stack([patch.m for patch in patches])).to(self.device)
        with clock.part("augment"):
            rngs = [np.random.default_rng([self.number, b]) for b in range(len(patches))]
            image, y, m = move(image, y, m, training.augmentation, rngs)
            image = recolour(image, training.augmentation, rngs, [True] * len(patches))
            image = image.contiguous(memory_format=torch.channels_last_3d)
        self.learn(Batch(image, y, m, None), clock)

    def learn(self, batch: Batch, clock: Clock | Scales) -> None:
        training = self.training
        with clock.part("forward"), autocast(self.device, training.precision):
            output = self.network(batch.image)
        with clock.part("loss and backward"):
            scales = output if isinstance(output, list) else [output]
            masked_loss(scales, batch.y, batch.m, training.nesting_weight, training.bce_weights).total.backward()
        with clock.part("optimiser"):
            nn.utils.clip_grad_norm_(self.network.parameters(), training.clip_norm)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        with clock.part("moving average"):
            self.ema.update_parameters(self.network)


def sampler_of(pool: Pool, training: TrainingParams) -> PatchSampler:
    return PatchSampler(pool, pool.entries, training.patch_zyx, training.sampling, 1, 2**33)


def by_parts(given: Given, pool: Pool, steps: int, device: torch.device) -> None:
    training = given.training
    bench, clock = Bench(given, training, sampler_of(pool, training), device), Clock(device)
    bench.step(Clock(device))
    for _ in range(steps):
        bench.step(clock)
    total, mib = sum(clock.seconds.values()), step_mib(given, training.patch_zyx)
    print(f"a step of {training.batch_size} patches {training.patch_zyx}: {1000 * total / steps:.1f} ms")
    for name, seconds in clock.seconds.items():
        print(f"  {name:18s} {1000 * seconds / steps:8.1f} ms  {seconds / total:4.0%}  {mib[name]:8.0f} MiB")


def by_patch(given: Given, pool: Pool, steps: int, device: torch.device, patches: Sequence[SizeZYX]) -> None:
    print("\npatch         ms a step   µs a voxel   against the first   MiB a step   reckoned")
    first = 0.0
    for patch in patches:
        training = given.training.model_copy(update={"patch_zyx": patch})
        bench, clock = Bench(given, training, sampler_of(pool, training), device), Clock(device)
        bench.step(Clock(device))
        for _ in range(max(3, steps // 4)):
            bench.step(clock)
        seconds = sum(clock.seconds.values()) / max(3, steps // 4)
        each = 1e6 * seconds / (training.batch_size * float(np.prod(patch)))
        first = first or each
        memory = max(step_mib(given, patch).values())
        reckoned = training_bytes(given.network.name, given.network.config, patch, training.batch_size, training)
        beside = BESIDE * BYTES * sum(parameter.numel() for parameter in bench.network.parameters())
        sides = "×".join(map(str, patch))
        print(
            f"{sides:12s} {1000 * seconds:9.1f}   {each:10.3f}   {each / first:17.2f}  {memory:11.0f}"
            f"   {(reckoned - beside) / 2**20:8.0f}"
        )


def by_workers(given: Given, pool: Pool, steps: int, device: torch.device) -> None:
    print("\nworkers   ms a step   of it waiting")
    for workers in WORKERS:
        if workers > available_cores():
            break
        training = given.training.model_copy(update={"workers": workers, "accumulate": 1, "steps": steps + 1})
        bench, clock = Bench(given, training, sampler_of(pool, training), device), Clock(device)
        of_all = batches(bench.sampler, 0, training, device)
        bench.learn(next(of_all), clock)
        waits, start = Waits(), time.perf_counter()
        while True:
            with waits.waiting():
                batch = next(of_all, None)
            if batch is None:
                break
            bench.learn(batch, clock)
        print(f"{workers:7d}   {1000 * (time.perf_counter() - start) / steps:9.1f}   {waits.share:13.1%}")


def step_mib(given: Given, patch: SizeZYX) -> dict[str, float]:
    """By how much the memory of a fresh process grows in each part of its first step at most."""
    command = [sys.executable, __file__, "--params", str(given.file), "--one", *map(str, patch)]
    return dict(json.loads(subprocess.check_output(command, text=True).splitlines()[-1]))


def one_step(given: Given, patch: SizeZYX, device: torch.device) -> None:
    training = given.training.model_copy(update={"patch_zyx": patch})
    with tempfile.TemporaryDirectory() as name:
        pool = made_pool(Path(name), 8)
        bench, scales = Bench(given, training, sampler_of(pool, training), device), Scales(device)
        bench.step(scales)
        print(json.dumps(scales.mib))


def by_cases(given: Given, counts: list[int]) -> None:
    training = given.training
    print("\ncases   seconds to open   ms a case   ms a batch   arrays in memory, MiB")
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            pool = made_pool(Path(name), count)
            start = time.perf_counter()
            sampler = sampler_of(pool, training)
            opened = time.perf_counter() - start
            start = time.perf_counter()
            for number in range(50):
                sampler.batch(number, training.batch_size)
            batch = (time.perf_counter() - start) / 50
            held = sum(pool.arrays(entry).nbytes for entry in pool.entries) / 2**20
            print(f"{count:5d}   {opened:15.2f}   {1000 * opened / count:9.2f}   {1000 * batch:10.2f}   {held:8.0f}")


def ours(pool: Pool, training: TrainingParams) -> Callable[[], None]:
    sampler = sampler_of(pool, training)
    numbers = iter(range(10**9))

    def one() -> None:
        number = next(numbers)
        (patch,) = sampler.batch(number, 1)
        rngs = [np.random.default_rng([number, 1])]
        image, y, m = (torch.from_numpy(array)[None].clone() for array in (patch.image[None], patch.y, patch.m))
        image, y, m = move(image, y, m, training.augmentation, rngs)
        recolour(image, training.augmentation, rngs, [False])

    return one


def monais(pool: Pool, training: TrainingParams) -> Callable[[], None]:
    """The same patches by MONAI: cached arrays, a crop around positives, affine, noise, contrast and blur."""
    from monai import transforms as mt
    from monai.data.dataset import CacheDataset

    a, side = training.augmentation, [SIDE] * 3
    rotation = float(np.deg2rad(a.rotation_degrees))
    items: list[dict[str, Any]] = []
    for entry in {entry.arrays.folder: entry for entry in pool.entries}.values():
        arrays = pool.arrays(entry).loaded()
        labels = np.stack([column.take(arrays.code_zyx) for column in arrays.palette_n4.T]).astype(np.float32)
        items.append({"image": np.asarray(arrays.image_zyx, np.float32)[None], "labels": labels, "tumour": labels[1:2]})
    pipeline = mt.Compose(
        [
            mt.ToTensord(keys=["image", "labels", "tumour"]),
            mt.FgBgToIndicesd(keys=["tumour"], fg_postfix="_inside", bg_postfix="_outside"),  # once, kept by the cache
            mt.RandCropByPosNegLabeld(
                keys=["image", "labels"],
                label_key="tumour",
                spatial_size=side,
                pos=0.6,
                neg=0.4,
                num_samples=1,
                fg_indices_key="tumour_inside",
                bg_indices_key="tumour_outside",
            ),
            mt.RandAffined(
                keys=["image", "labels"],
                prob=a.affine_probability,
                rotate_range=[rotation] * 3,
                scale_range=[a.scale] * 3,
                mode=["bilinear", "bilinear"],
                padding_mode=["border", "zeros"],
            ),
            mt.RandGaussianSmoothd(keys=["image"], prob=a.blur_probability),
            mt.RandScaleIntensityd(keys=["image"], prob=a.intensity_probability, factors=a.contrast),
            mt.RandShiftIntensityd(keys=["image"], prob=a.intensity_probability, offsets=a.brightness),
            mt.RandGaussianNoised(keys=["image"], prob=a.intensity_probability, std=a.noise),
        ]
    )
    pipeline.set_random_state(1)
    cached = CacheDataset(items, pipeline, num_workers=0, progress=False, copy_cache=False)
    numbers = iter(range(10**9))

    def one() -> None:
        cached[next(numbers) % len(cached)]

    return one


def against_monai(given: Given, pool: Pool) -> None:
    torch.set_num_threads(1)
    training = given.training.model_copy(update={"patch_zyx": (SIDE, SIDE, SIDE)})
    ways = {"hepar": ours(pool, training), "MONAI": monais(pool, training)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(12):
        for name, way in ways.items():
            start = time.perf_counter()
            for _ in range(20):
                way()
            if turn:  # the first is for warming up
                seconds[name].append((time.perf_counter() - start) / 20)
    print(f"\npatches of {SIDE}³ with labels, augmented, from memory, in one thread")
    for name, values in seconds.items():
        print(f"  {name:6s} {1 / float(np.median(values)):7.1f} a second")
    print(f"  hepar cuts {float(np.median(seconds['MONAI']) / np.median(seconds['hepar'])):.2f} times as many")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--patches", type=int, nargs="*", help="sides of cubes")
    parser.add_argument("--cases", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--no-monai", action="store_true")
    parser.add_argument("--one", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    use_threads(0)
    device, given = pick_device(), Given.of(options.params)
    if options.one:
        one_step(given, tuple(options.one), device)
        return
    print(f"on {device.type}, {available_cores()} cores")
    patches = [(side, side, side) for side in options.patches] if options.patches else PATCHES
    with tempfile.TemporaryDirectory() as name:
        pool = made_pool(Path(name), 16)
        by_parts(given, pool, options.steps, device)
        by_patch(given, pool, options.steps, device, patches)
        by_workers(given, pool, options.steps, device)
        by_cases(given, options.cases)
        if not options.no_monai:
            against_monai(given, pool)


if __name__ == "__main__":
    main()

"""Training patches: their cost against the number of cases, and patches per second against MONAI.

`python benchmarks/patches.py [--params FILE] [--cases 10 100 1000] [--no-monai]`. Cases are noise with boxes
(`noise_pool.py`); augmentation and batch size are those of `train_universal` in the params file.

1. Seconds to index the pool and to cut a batch, and memory, for a growing number of cases.
2. Patches of 48³ per second with the same augmentation, ours against MONAI's `CacheDataset`, `RandCropByPosNegLabeld`
   and its transforms: both from memory, in one thread, in turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noise_pool import noise_pool

from hepar.cases import LIVER
from hepar.params import TrainingParams, load_params
from hepar.pool.table import Pool
from hepar.runtime.device import use_threads
from hepar.training.augmentation import augment_intensity, augment_spatial
from hepar.training.sampling import PatchSampler

ROOT = Path(__file__).parents[1]
SIDE = 48
BATCHES = 50
ROUNDS, PATCHES_A_ROUND = 12, 20


def make_sampler(pool: Pool, training: TrainingParams) -> PatchSampler:
    return PatchSampler(pool, pool.entries, training.patch_zyx, training.sampling, 1, 2**33)


def compare_pool_sizes(training: TrainingParams, counts: Sequence[int]) -> None:
    print("\ncases   seconds to index   ms a case   ms a batch   arrays in memory, MiB")
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            pool = noise_pool(Path(name), count)
            start = time.perf_counter()
            sampler = make_sampler(pool, training)
            index_seconds = time.perf_counter() - start
            start = time.perf_counter()
            for number in range(BATCHES):
                sampler.batch(number, training.batch_size)
            batch_seconds = (time.perf_counter() - start) / BATCHES
            mib = sum(pool.arrays(entry).nbytes for entry in pool.entries) / 2**20
        print(
            f"{count:5d}   {index_seconds:16.2f}   {1000 * index_seconds / count:9.2f}"
            f"   {1000 * batch_seconds:10.2f}   {mib:8.0f}"
        )


def hepar_patches(pool: Pool, training: TrainingParams) -> Callable[[], None]:
    """A function that makes one more augmented patch each time."""
    sampler = make_sampler(pool, training)
    numbers = iter(range(10**9))

    def make_patch() -> None:
        number = next(numbers)
        (patch,) = sampler.batch(number, 1)
        rngs = [np.random.default_rng([number, 1])]
        image_bcdhw, target_brdhw, _ = augment_spatial(
            torch.from_numpy(patch.image_zyx)[None, None].clone(),
            torch.from_numpy(patch.target_rzyx)[None].clone(),
            torch.from_numpy(patch.weight_rzyx)[None].clone(),
            training.augmentation,
            rngs,
            pool.plan.spacing_zyx_mm,
        )
        augment_intensity(
            image_bcdhw, target_brdhw[:, LIVER], training.augmentation, rngs, [False], pool.plan.window_hu
        )

    return make_patch


def monai_patches(pool: Pool, training: TrainingParams) -> Callable[[], None]:
    """The same by MONAI: cached arrays, a crop around positives, affine, noise, contrast and blur."""
    from monai import transforms as mt
    from monai.data.dataset import CacheDataset

    augmentation, side = training.augmentation, [SIDE] * 3
    rotation = float(np.deg2rad(augmentation.rotation_degrees))
    items: list[dict[str, Any]] = []
    for entry in {entry.arrays.folder: entry for entry in pool.entries}.values():
        arrays = pool.arrays(entry).loaded()
        image_czyx = np.asarray(arrays.image_zyx, np.float32)[None]
        labels_4zyx = np.stack([column.take(arrays.code_zyx) for column in arrays.palette_n4.T]).astype(np.float32)
        items.append({"image": image_czyx, "labels": labels_4zyx, "tumour": labels_4zyx[1:2]})
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
                prob=augmentation.affine_probability,
                rotate_range=[rotation] * 3,
                scale_range=[augmentation.scale] * 3,
                mode=["bilinear", "bilinear"],
                padding_mode=["border", "zeros"],
            ),
            mt.RandGaussianSmoothd(keys=["image"], prob=augmentation.blur_probability),
            mt.RandScaleIntensityd(
                keys=["image"], prob=augmentation.intensity_probability, factors=augmentation.contrast
            ),
            mt.RandShiftIntensityd(
                keys=["image"], prob=augmentation.intensity_probability, offsets=augmentation.brightness
            ),
            mt.RandGaussianNoised(keys=["image"], prob=augmentation.intensity_probability, std=augmentation.noise),
        ]
    )
    pipeline.set_random_state(1)
    cached = CacheDataset(items, pipeline, num_workers=0, progress=False, copy_cache=False)
    numbers = iter(range(10**9))

    def make_patch() -> None:
        cached[next(numbers) % len(cached)]

    return make_patch


def compare_with_monai(training: TrainingParams) -> None:
    torch.set_num_threads(1)
    training = training.model_copy(update={"patch_zyx": (SIDE, SIDE, SIDE)})
    with tempfile.TemporaryDirectory() as name:
        pool = noise_pool(Path(name), 16)
        makers = {"hepar": hepar_patches(pool, training), "MONAI": monai_patches(pool, training)}
        seconds: dict[str, list[float]] = {name: [] for name in makers}
        for turn in range(ROUNDS):
            for maker, make_patch in makers.items():
                start = time.perf_counter()
                for _ in range(PATCHES_A_ROUND):
                    make_patch()
                if turn:  # the first is a warm-up
                    seconds[maker].append((time.perf_counter() - start) / PATCHES_A_ROUND)
    print(f"\npatches of {SIDE}³ with labels, augmented, from memory, in one thread")
    for maker, values in seconds.items():
        print(f"  {maker:6s} {1 / float(np.median(values)):7.1f} a second")
    print(f"  hepar makes {float(np.median(seconds['MONAI']) / np.median(seconds['hepar'])):.2f} times as many")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--cases", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--no-monai", action="store_true")
    options = parser.parse_args()
    use_threads(0)
    training = load_params(options.params).train_universal.training
    compare_pool_sizes(training, options.cases)
    if not options.no_monai:
        compare_with_monai(training)


if __name__ == "__main__":
    main()

"""Batches of a training: patches are cut, augmented and, with workers, prefetched by threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hepar.cases import LIVER, Modality
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.params import AugmentationParams, TrainingParams
from hepar.runtime.device import memory_format, use_one_thread
from hepar.training import distributed
from hepar.training.augmentation import augment_intensity, augment_spatial
from hepar.training.look_alikes import add_look_alikes
from hepar.training.sampling import Patch, PatchSampler, patch_numbers
from hepar.training.synthetic_lesions import add_synthetic_lesions


@dataclass(frozen=True)
class Batch:
    """One batch on the device, float32: b patch, c channel, r structure, d h w space.

    `plain_bcdhw` is the image before its intensities were augmented, None if the consistency loss is off.
    """

    image_bcdhw: Tensor
    target_brdhw: Tensor
    weight_brdhw: Tensor
    plain_bcdhw: Tensor | None


def make_batch(sampler: PatchSampler, number: int, params: TrainingParams, device: torch.device) -> Batch:
    """This process's patches of batch `number`, augmented; a function of the seed and the number alone."""
    share_of_batch = (params.batch_size, distributed.rank(), distributed.world_size())
    patches = sampler.batch(number, *share_of_batch)
    rngs = [np.random.default_rng([params.seed, patch, 1]) for patch in patch_numbers(number, *share_of_batch)]
    patches = [
        _add_pathology(patch, sampler.plan, params.augmentation, rng) for patch, rng in zip(patches, rngs, strict=True)
    ]
    image_bcdhw, target_brdhw, weight_brdhw = augment_spatial(
        torch.from_numpy(np.stack([patch.image_zyx[None] for patch in patches])).to(device),
        torch.from_numpy(np.stack([patch.target_rzyx for patch in patches])).to(device),
        torch.from_numpy(np.stack([patch.weight_rzyx for patch in patches])).to(device),
        params.augmentation,
        rngs,
        sampler.plan.spacing_zyx_mm,
    )
    plain_bcdhw = image_bcdhw.clone(memory_format=memory_format(device)) if params.consistency_weight > 0 else None
    is_mr = [patch.modality == Modality.MR for patch in patches]
    liver_bdhw = target_brdhw[:, LIVER] * (weight_brdhw[:, LIVER] > 0)
    image_bcdhw = augment_intensity(image_bcdhw, liver_bdhw, params.augmentation, rngs, is_mr, sampler.plan.window_hu)
    return Batch(image_bcdhw.contiguous(memory_format=memory_format(device)), target_brdhw, weight_brdhw, plain_bcdhw)


def _add_pathology(
    patch: Patch, plan: PreprocessingPlan, params: AugmentationParams, rng: np.random.Generator
) -> Patch:
    """The patch with look-alikes and synthetic lesions, each with the probability of its modality."""
    for probabilities, add in ((params.look_alikes, add_look_alikes), (params.lesions, add_synthetic_lesions)):
        probability = probabilities.of(patch.modality)
        if probability > 0 and rng.random() < probability:
            patch = add(patch, plan, rng)
    return patch


def batches(sampler: PatchSampler, first_step: int, params: TrainingParams, device: torch.device) -> Iterator[Batch]:
    """The batches from `first_step` to the last step, `params.accumulate` per step; workers prefetch them in order."""
    numbers = range(first_step * params.accumulate, params.steps * params.accumulate)
    if params.workers == 0:
        for number in numbers:
            yield make_batch(sampler, number, params, device)
        return
    with ThreadPoolExecutor(params.workers, initializer=use_one_thread) as executor:
        prefetched: deque[Future[Batch]] = deque()
        for number in numbers:
            prefetched.append(executor.submit(make_batch, sampler, number, params, device))
            if len(prefetched) > 2 * params.workers:
                yield prefetched.popleft().result()
        while prefetched:
            yield prefetched.popleft().result()


class LoaderWait:
    """Measures the share of time that a training waits for its batches."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited_seconds = 0.0

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Count the time inside as waiting."""
        start = time.perf_counter()
        yield
        self._waited_seconds += time.perf_counter() - start

    @property
    def share(self) -> float:
        """Share of the time since the start, 0 to 1."""
        return self._waited_seconds / max(time.perf_counter() - self._start, 1e-9)

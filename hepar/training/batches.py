"""The batches of a training: cut, augmented, and made ahead of the step where there are workers."""

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

from hepar.cases import Modality
from hepar.params import TrainingParams
from hepar.runtime.device import alone
from hepar.training import distributed
from hepar.training.augmentation import move, recolour
from hepar.training.sampling import PatchSampler, batch_numbers
from hepar.training.synthetic_lesions import with_lesions


@dataclass(frozen=True)
class Batch:
    """Image b c d h w, targets and weights b r d h w; `plain` is the image before its intensities were changed."""

    image: Tensor
    y: Tensor
    m: Tensor
    plain: Tensor | None


def make_batch(sampler: PatchSampler, number: int, params: TrainingParams, device: torch.device) -> Batch:
    """This process's part of a batch by its number, augmented; `plain` is there where consistency is asked for."""
    place = (params.batch_size, distributed.rank(), distributed.size())
    patches = sampler.batch(number, *place)
    rngs = [np.random.default_rng([params.seed, patch, 1]) for patch in batch_numbers(number, *place)]
    if (share := params.augmentation.lesion_probability) > 0:
        patches = [
            with_lesions(patch, sampler.spacing_zyx_mm, rng) if rng.random() < share else patch
            for patch, rng in zip(patches, rngs, strict=True)
        ]
    image = torch.from_numpy(np.stack([patch.image[None] for patch in patches])).to(device)
    y = torch.from_numpy(np.stack([patch.y for patch in patches])).to(device)
    m = torch.from_numpy(np.stack([patch.m for patch in patches])).to(device)
    image, y, m = move(image, y, m, params.augmentation, rngs)
    plain = image.clone(memory_format=torch.channels_last_3d) if params.consistency_weight > 0 else None
    image = recolour(image, params.augmentation, rngs, [patch.modality == Modality.MR for patch in patches])
    return Batch(image.contiguous(memory_format=torch.channels_last_3d), y, m, plain)


def batches(sampler: PatchSampler, first: int, params: TrainingParams, device: torch.device) -> Iterator[Batch]:
    """The batches of the steps from `first` on, `accumulate` a step, cut ahead by threads where there are workers."""
    numbers = range(first * params.accumulate, params.steps * params.accumulate)
    if params.workers == 0:
        for number in numbers:
            yield make_batch(sampler, number, params, device)
        return
    with ThreadPoolExecutor(params.workers, initializer=alone) as executor:
        ahead: deque[Future[Batch]] = deque()
        for number in numbers:
            ahead.append(executor.submit(make_batch, sampler, number, params, device))
            if len(ahead) > 2 * params.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class Waits:
    """How much of a training's time it waits for its batches."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @property
    def share(self) -> float:
        return self._waited / max(time.perf_counter() - self._began, 1e-9)

"""Proposes spacing, CT window, MR percentiles, strides, and patch and batch size for a cohort and a memory budget.

The rules follow nnU-Net (Isensee et al., Nature Methods 2021): the median spacing, finer along an axis that is much
coarser than the others; the largest patch that fits, shaped like the organ; and the strides that its sides allow.
Nothing is random: the same cohort gives the same proposals.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.networks import build_on_meta_device, from_monai
from hepar.networks.medformer import LEVELS
from hepar.networks.strides import ANISOTROPY, MIN_SIDE, choose_kernels, choose_strides
from hepar.params import NetworkParams, SizeZYX, SpacingZYX, TrainingParams
from hepar.planning.cohort_statistics import CohortStatistics
from hepar.planning.memory import training_bytes

COARSE_AXIS = 3.0  # times the finest: such an axis gets the 10th percentile of its spacing instead of the median
MIN_PATCH_SIDE = 16  # voxels of a patch
MIN_SHARE = 0.25  # of the liver's bounding box in a patch; below it the spacing is coarsened
COARSENING = 1.1
BATCH_SIZES = range(2, 9)
STEP = 8  # voxels by which a side shrinks
MR_PERCENTILES = (2.0, 98.0)  # unless livers are darker or brighter
LOW_SCANS, HIGH_SCANS = 10, 90  # percentiles over the scans, of the low and the high end of liver intensities
DIVISIBLE = 64  # a side that every network can divide
LEVELS_OF = {"medformer": LEVELS, "dynunet": from_monai.MAX_LEVELS - 1}  # networks whose strides can be chosen


@dataclass(frozen=True)
class Proposal:
    """A value for a key of the params file, and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class PatchChoice:
    """A patch, and the config of a network that fits it. `chosen` are the values and reasons of what was chosen."""

    patch_zyx: SizeZYX
    config: Mapping[str, Any]
    chosen: Mapping[str, tuple[list[list[int]], str]]


def propose(
    statistics: CohortStatistics, network: NetworkParams, training: TrainingParams, memory_gib: float
) -> tuple[Proposal, ...]:
    """Propose settings for a cohort. `memory_gib` bounds a training step of one process, at `training.precision`.

    Raises DataError if no spacing or no manual liver is known, or no patch fits.
    """
    spacing, why_spacing = _choose_spacing(statistics)
    box_mm = _liver_box_mm(statistics)
    budget = _MemoryBudget(network, training, memory_gib)
    choice = budget.largest(_patch_choices(network, spacing, box_mm))
    coarsened = 0
    while _covered_share(choice.patch_zyx, spacing, box_mm) < MIN_SHARE:
        z, y, x = (mm * COARSENING for mm in spacing)
        spacing, coarsened = (z, y, x), coarsened + 1
        choice = budget.largest(_patch_choices(network, spacing, box_mm))
    if coarsened:
        why_spacing += (
            f"; coarsened {COARSENING**coarsened:.2f} times, so that a patch that fits {memory_gib:g} GiB covers"
            f" {MIN_SHARE:.0%} of the liver's bounding box"
        )
    return (
        Proposal("preprocessing.spacing_zyx_mm", [round(mm, 2) for mm in spacing], why_spacing),
        *_propose_window(statistics),
        *_propose_mr_percentiles(statistics),
        *_propose_patch_and_batch(choice, spacing, box_mm, budget),
        *(Proposal(f"network.config.{key}", value, reason) for key, (value, reason) in choice.chosen.items()),
    )


class _MemoryBudget:
    """A limit for the memory of a training step.

    An estimate takes seconds and is cached: coarser spacings come back to the same patches.
    """

    def __init__(self, network: NetworkParams, training: TrainingParams, limit_gib: float) -> None:
        self.network, self.training, self.limit_gib = network, training, limit_gib
        self._cached_gib: dict[str, float] = {}

    def step_gib(self, choice: PatchChoice, batch_size: int) -> float:
        """The memory that a training step takes."""
        key = f"{choice} {batch_size}"
        if key not in self._cached_gib:
            needed = training_bytes(self.network.name, choice.config, choice.patch_zyx, batch_size, self.training)
            self._cached_gib[key] = needed / 2**30
        return self._cached_gib[key]

    def largest(self, choices: Sequence[PatchChoice]) -> PatchChoice:
        """The first of `choices`, largest first, that fits with the smallest batch. Raises DataError if none does."""
        first = bisect_left(choices, True, key=lambda choice: self._fits(choice, BATCH_SIZES[0]))
        if first == len(choices):
            raise DataError(
                f"no patch of {self.network.name} fits {self.limit_gib:g} GiB: the smallest is {choices[-1].patch_zyx}"
            )
        return choices[first]

    def largest_batch(self, choice: PatchChoice) -> int:
        """The largest of `BATCH_SIZES` that fits, or the smallest."""
        return BATCH_SIZES[bisect_left(BATCH_SIZES, True, lo=1, key=lambda n: not self._fits(choice, n)) - 1]

    def _fits(self, choice: PatchChoice, batch_size: int) -> bool:
        return self.step_gib(choice, batch_size) <= self.limit_gib


def _choose_spacing(statistics: CohortStatistics) -> tuple[SpacingZYX, str]:
    known = [found.spacing_n3_mm for found in statistics.values() if len(found.spacing_n3_mm)]
    if not known:
        raise DataError("no scan of the cohort has a known spacing: set preprocessing.spacing_zyx_mm")
    # modalities have equal weight, however many scans each has
    spacing_mm = np.mean([np.median(spacing_n3_mm, axis=0) for spacing_n3_mm in known], axis=0)
    reason = "median spacing, averaged over modalities"
    axis = int(spacing_mm.argmax())
    if spacing_mm[axis] > COARSE_AXIS * spacing_mm.min():
        spacing_mm[axis] = np.mean([np.percentile(spacing_n3_mm[:, axis], 10) for spacing_n3_mm in known])
        reason += f"; along {'zyx'[axis]}, which is much coarser, the 10th percentile"
    z, y, x = (round(float(mm), 2) for mm in spacing_mm)
    return (z, y, x), reason


def _liver_box_mm(statistics: CohortStatistics) -> npt.NDArray[np.float64]:
    """Sides z, y, x of the liver's bounding box, at their 90th percentiles over all manual livers."""
    known = [found.liver_box_n3_mm for found in statistics.values() if len(found.liver_box_n3_mm)]
    if not known:
        raise DataError("the patch size is chosen from manual livers, but no training or validation scan has one")
    return np.asarray(np.percentile(np.concatenate(known), 90, axis=0))


def _propose_window(statistics: CohortStatistics) -> Iterator[Proposal]:
    found = statistics.get(Modality.CT)
    if found is None or not found.intensity_n.size:
        return
    low, high = np.percentile(found.intensity_n, (0.5, 99.5))
    window = [float(5 * math.floor(low / 5)), float(5 * math.ceil(high / 5))]
    reason = f"0.5th and 99.5th percentile in manual livers, {low:.0f} and {high:.0f} HU, rounded outwards to 5 HU"
    yield Proposal("preprocessing.window_hu", window, reason)


def _propose_mr_percentiles(statistics: CohortStatistics) -> Iterator[Proposal]:
    """Percentiles of the body at which MR is clipped, wide enough to clip no liver."""
    if Modality.MR not in statistics:
        return
    reason = (
        "MR intensities have no unit, so each scan, whatever its sequence, is clipped at these percentiles of its body"
        " and then scaled by preprocessing.mr_scale"
    )
    low, high = MR_PERCENTILES
    if len(percentile_n2 := statistics[Modality.MR].liver_percentile_n2):
        darkest = float(np.percentile(percentile_n2[:, 0], LOW_SCANS))
        brightest = float(np.percentile(percentile_n2[:, 1], HIGH_SCANS))
        reason += (
            f"; in nine of ten scans 99% of the liver lies above percentile {darkest:.1f} and below percentile"
            f" {brightest:.1f}"
        )
        low, high = min(low, math.floor(2 * darkest) / 2), max(high, math.ceil(2 * brightest) / 2)
    yield Proposal("preprocessing.mr_percentiles", [low, high], reason)


def _propose_patch_and_batch(
    choice: PatchChoice, spacing: SpacingZYX, box_mm: npt.NDArray[np.float64], budget: _MemoryBudget
) -> Iterator[Proposal]:
    patch, batch_size = list(choice.patch_zyx), budget.largest_batch(choice)
    extent = " × ".join(f"{side * mm:.0f}" for side, mm in zip(patch, spacing, strict=True))
    box = " × ".join(f"{mm:.0f}" for mm in box_mm)
    mode: str = budget.training.precision
    if budget.training.gradient_checkpointing:
        mode += " with gradient checkpointing"
    yield Proposal(
        "train_universal.training.patch_zyx",
        patch,
        f"{extent} mm of a liver bounding box of {box} mm (90th percentile); the largest patch for which a step on"
        f" {BATCH_SIZES[0]} patches fits {budget.limit_gib:g} GiB",
    )
    yield Proposal(
        "train_universal.training.batch_size",
        batch_size,
        f"a step in {mode} takes about {budget.step_gib(choice, batch_size):.1f} GiB; with several GPUs, the batch size"
        " of each",
    )
    yield Proposal("train_liver.training.patch_zyx", patch, "as in train_universal")
    yield Proposal("train_liver.training.batch_size", batch_size, "as in train_universal")


def _patch_choices(network: NetworkParams, spacing: SpacingZYX, box_mm: npt.NDArray[np.float64]) -> list[PatchChoice]:
    """Choices from the liver's bounding box downwards; each step shrinks the side that covers most of the box."""
    if network.name in LEVELS_OF:
        step, min_sides = [STEP] * 3, [MIN_PATCH_SIDE] * 3
    else:
        divisor: Any = build_on_meta_device(network.name, network.config, (DIVISIBLE,) * 3).divisor
        step, min_sides = [max(by, STEP) for by in divisor], [max(2 * by, MIN_PATCH_SIDE) for by in divisor]
    sides = [math.ceil(mm / size / by) * by for mm, size, by in zip(box_mm, spacing, step, strict=True)]
    sides = [max(pair) for pair in zip(sides, min_sides, strict=True)]
    choices: list[PatchChoice] = []
    while True:
        choice = choose_patch(network, sides, spacing)
        if choice not in choices:
            choices.append(choice)
        covered = [side * mm / box for side, mm, box in zip(sides, spacing, box_mm, strict=True)]
        shrinkable = [axis for axis in range(3) if sides[axis] - step[axis] >= min_sides[axis]]
        if not shrinkable:
            return choices
        axis = max(shrinkable, key=lambda axis: covered[axis])
        sides[axis] -= step[axis]


def choose_patch(network: NetworkParams, sides: Sequence[int], spacing: SpacingZYX) -> PatchChoice:
    """The smallest patch of at least `sides` z, y, x, with depth, strides and kernels if the network takes any."""
    z, y, x = sides
    if network.name not in LEVELS_OF:
        return PatchChoice((z, y, x), network.config, {})
    levels = LEVELS_OF[network.name]
    # chosen for the power of two below each side; the rest enlarges the lowest map
    chosen_strides = choose_strides([2 ** int(math.log2(side)) for side in sides], levels, spacing)
    chosen_kernels = choose_kernels(chosen_strides, spacing)
    divisor = [math.prod(stride[axis] for stride in chosen_strides) for axis in range(3)]
    z, y, x = (math.ceil(side / by) * by for side, by in zip(sides, divisor, strict=True))
    lowest = "×".join(str(side // by) for side, by in zip((z, y, x), divisor, strict=True))
    why_strides = (
        f"{len(chosen_strides)} levels, down to a map of {lowest}; an axis is halved while its map keeps"
        f" {MIN_SIDE} voxels and no other axis is {ANISOTROPY:g} times finer"
    )
    why_kernels = f"flat along an axis until no other axis is {ANISOTROPY:g} times finer"
    if network.name == "medformer":
        chosen_strides += [[1, 1, 1]] * (levels - len(chosen_strides))
        chosen_kernels = choose_kernels(chosen_strides, spacing)
        chosen = {"stride": (chosen_strides, why_strides), "kernel": (chosen_kernels, why_kernels)}
    else:
        chosen = {"strides": ([[1, 1, 1], *chosen_strides], why_strides), "kernel_size": (chosen_kernels, why_kernels)}
    config = {**network.config, **{key: value for key, (value, _) in chosen.items()}}
    return PatchChoice((z, y, x), config, chosen)


def _covered_share(patch_zyx: SizeZYX, spacing: SpacingZYX, box_mm: npt.NDArray[np.float64]) -> float:
    """The share of the liver's bounding box that a patch covers."""
    covered = [min(1.0, side * mm / box) for side, mm, box in zip(patch_zyx, spacing, box_mm, strict=True)]
    return float(np.prod(covered))

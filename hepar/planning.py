"""From a cohort to the settings that suit it: spacing, CT window, strides, patch and batch for a memory budget.

The rules follow nnU-Net (Isensee et al., Nature Methods 2021): the median spacing, a finer one along an axis that is
much coarser than the others, strides that even the spacing out, and the largest patch that fits, shaped like the organ.
Nothing is drawn at random: the same cohort gives the same proposals. Only training and validation patients are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.networks import without_values
from hepar.params import NetworkParams, SizeZYX, SpacingZYX
from hepar.pool import lesion_diameters_mm
from hepar.progress import current
from hepar.volumes import Geometry, read_image, to_array

VOXELS_A_CASE = 4096  # of the liver, whose intensities are kept
COARSE_AXIS = 3.0  # times the finest: such an axis gets its 10th percentile, not its median
EVEN = 2.0  # an axis is halved while no other is this many times finer
MIN_SIDE = 16
MIN_SHARE = 0.25  # of the liver's box that a patch has to hold; else the spacing is coarsened
COARSER = 1.1
BATCHES = range(2, 9)
COPIES = 5  # of each weight: itself, gradient, two moments of Adam, moving average
BACKWARD = 1.6  # times the kept activations: with gradients and workspaces, as benchmarks/medformer.py measures
LEVELS = 4
MR_PERCENTILES = (2.0, 98.0)
UNNAMED = "unnamed"  # a sequence of which nothing is said
DIVISIBLE = 64  # a side that every network can divide


@dataclass(frozen=True)
class ModalityFacts:
    """What the scans of one modality are like; lengths in mm, axes z, y, x."""

    scans: int
    sequences: Mapping[str, int]
    spacing_mm: npt.NDArray[np.float64]  # n x 3, of scans whose spacing is known
    size_zyx: npt.NDArray[np.int64]  # n x 3, voxels of each scan
    liver_box_mm: npt.NDArray[np.float64]  # n x 3, of manual livers
    intensities_of: Mapping[str, npt.NDArray[np.float64]]  # inside manual livers, by sequence
    lesion_diameters_mm: tuple[float, ...]

    @property
    def intensities(self) -> npt.NDArray[np.float64]:
        """Inside manual livers of whatever sequence."""
        return np.concatenate([np.empty(0), *self.intensities_of.values()])


@dataclass(frozen=True)
class Proposal:
    """A value for a key of the params file, and the reason in words."""

    key: str
    value: Any
    reason: str


def describe(cohort: Cohort) -> dict[Modality, ModalityFacts]:
    """Read the headers of all training and validation scans, and the voxels of those with a manual mask."""
    chosen = cohort.select(None, (Split.TRAIN, Split.VAL))
    facts: dict[Modality, ModalityFacts] = {}
    with current().counting(len(chosen), "scans") as count:
        for modality in Modality:
            boxes: list[list[float]] = []
            intensities: dict[str, list[npt.NDArray[np.float64]]] = {}
            diameters: list[float] = []
            members = [case for case in chosen if case.modality == modality]
            for case in members:
                if case.liver_state == LabelState.MANUAL:
                    box_mm, values = _liver(cohort, case)
                    boxes.append(box_mm)
                    intensities.setdefault(case.sequence or UNNAMED, []).append(values)
                if case.tumour_state == LabelState.MANUAL:
                    tumour = read_image(cohort.file(case.tumour))
                    diameters += lesion_diameters_mm(to_array(tumour) > 0, Geometry.of(tumour).voxel_ml)
                count.advance()
            if members:
                facts[modality] = ModalityFacts(
                    scans=len(members),
                    sequences=Counter(case.sequence or UNNAMED for case in members),
                    spacing_mm=np.array([case.spacing_mm for case in members if case.distances_known]).reshape(-1, 3),
                    size_zyx=np.array([case.size for case in members]).reshape(-1, 3),
                    liver_box_mm=np.array(boxes).reshape(-1, 3),
                    intensities_of={name: np.concatenate(values) for name, values in sorted(intensities.items())},
                    lesion_diameters_mm=tuple(sorted(diameters)),
                )
    return facts


def _liver(cohort: Cohort, case: Case) -> tuple[list[float], npt.NDArray[np.float64]]:
    """Sides of the box around a manual liver, and some of the intensities inside."""
    mask, image = read_image(cohort.file(case.liver)), read_image(cohort.file(case.image))
    inside = to_array(mask) > 0
    (box,) = ndimage.find_objects(inside.astype(np.uint8))
    sides = [(part.stop - part.start) * mm for part, mm in zip(box, case.spacing_mm, strict=True)]
    values = to_array(image)[inside]
    return sides, values[:: max(1, values.size // VOXELS_A_CASE)].astype(np.float64)


def propose(facts: Mapping[Modality, ModalityFacts], network: NetworkParams, memory_gib: float) -> tuple[Proposal, ...]:
    """Settings for a cohort and a memory budget. Raises DataError where no liver or no spacing is known."""
    spacing, why_spacing = _spacing(facts)
    box_mm = _organ(facts)
    strides = _strides(spacing)
    config = dict(network.config)
    if network.name == "medformer":
        config |= {"stride": strides, "kernel": _kernels(strides)}
        divisor = tuple(math.prod(stride[axis] for stride in strides) for axis in range(3))
    else:
        divisor = tuple(without_values(network.name, config, (DIVISIBLE,) * 3).divisor)  # type: ignore[arg-type]
    patch = _largest_patch(network.name, config, spacing, box_mm, divisor, memory_gib)
    coarsened = 0
    while _share(patch, spacing, box_mm) < MIN_SHARE:
        z, y, x = (mm * COARSER for mm in spacing)
        spacing, coarsened = (z, y, x), coarsened + 1
        patch = _largest_patch(network.name, config, spacing, box_mm, divisor, memory_gib)
    if coarsened:
        why_spacing += (
            f"; made {COARSER**coarsened:.2f} times coarser, so that a patch that fits {memory_gib:g} GiB holds"
            f" {MIN_SHARE:.0%} of a liver's box"
        )
    fitting = [n for n in BATCHES if training_bytes(network.name, config, patch, n) <= memory_gib * 2**30]
    batch = fitting[-1] if fitting else BATCHES[0]
    needed = training_bytes(network.name, config, patch, batch) / 2**30
    extent = " × ".join(f"{side * mm:.0f}" for side, mm in zip(patch, spacing, strict=True))
    proposals = [
        Proposal("preparation.spacing_zyx_mm", [round(mm, 2) for mm in spacing], why_spacing),
        *_window(facts),
        *_mr_recipe(facts),
        Proposal(
            "train_universal.training.patch_zyx",
            list(patch),
            f"{extent} mm, of a liver's box of {' × '.join(f'{mm:.0f}' for mm in box_mm)} mm (90th percentile); the"
            f" largest such that a step on {BATCHES[0]} patches fits into {memory_gib:g} GiB",
        ),
        Proposal("train_universal.training.batch_size", batch, f"a step in float32 takes some {needed:.1f} GiB"),
        Proposal("train_liver.training.patch_zyx", list(patch), "as stage 2"),
        Proposal("train_liver.training.batch_size", batch, "as stage 2"),
    ]
    if network.name == "medformer":
        reason = (
            f"{LEVELS} levels; an axis is halved while no other is twice as fine; kernels are flat along an axis that"
            " is not halved yet"
        )
        proposals += [
            Proposal("network.config.stride", strides, reason),
            Proposal("network.config.kernel", _kernels(strides), "as the strides"),
        ]
    return tuple(proposals)


def _mr_recipe(facts: Mapping[Modality, ModalityFacts]) -> list[Proposal]:
    """How MR is normalised: by the image itself, since its values have no unit."""
    if Modality.MR not in facts:
        return []
    reason = (
        "MR values have no unit: each scan is clipped at these percentiles of its body and brought to mean 0 and"
        " deviation 1 there, whatever its sequence"
    )
    return [Proposal("preparation.mr_percentiles", list(MR_PERCENTILES), reason)]


def training_bytes(name: str, config: Mapping[str, Any], patch_zyx: SizeZYX, batch: int) -> int:
    """Bytes that a float32 training step takes: weights, optimiser, activations, their gradients; by shapes alone."""
    network = without_values(name, config, patch_zyx).train()
    weights = {id(parameter.untyped_storage()): parameter.untyped_storage() for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    channels = int(config.get("in_channels", 1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(batch, channels, *patch_zyx, device="meta"))
    own = {storage._cdata for storage in weights.values()}
    activations = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    return COPIES * sum(storage.nbytes() for storage in weights.values()) + int(BACKWARD * activations)


def in_words(facts: Mapping[Modality, ModalityFacts]) -> list[str]:
    """What was found in the cohort, a sentence each."""
    said = []
    for modality, found in facts.items():
        names = ", ".join(f"{count} {name}" for name, count in sorted(found.sequences.items()))
        said.append(f"{modality}: {found.scans} scans for training and validation ({names}).")
        if len(found.spacing_mm):
            low, middle, high = np.percentile(found.spacing_mm, (0, 50, 100), axis=0)
            axes = (
                f"{n} {a:.2g} to {c:.2g} (median {b:.2g})" for n, a, b, c in zip("zyx", low, middle, high, strict=True)
            )
            said.append(f"{modality}: spacing in mm: {', '.join(axes)}.")
        low, middle, high = (
            "×".join(f"{n:.0f}" for n in np.percentile(found.size_zyx, share, axis=0)) for share in (0, 50, 100)
        )
        said.append(f"{modality}: voxels z×y×x from {low} to {high}, median {middle}.")
        for name, values in found.intensities_of.items():
            low, middle, high = (f"{value:.4g}" for value in np.percentile(values, (0.5, 50, 99.5)))
            said.append(
                f"{modality}, {name}: inside manual livers values run from {low} to {high}, median {middle}, mean"
                f" {values.mean():.4g}, deviation {values.std():.4g}."
            )
        if sizes := found.lesion_diameters_mm:
            low, middle, high = np.percentile(sizes, (10, 50, 90))
            said.append(
                f"{modality}: {len(sizes)} lesions, diameters {low:.0f}, {middle:.0f}, {high:.0f} mm (10, 50, 90 %)."
            )
    return said


def _spacing(facts: Mapping[Modality, ModalityFacts]) -> tuple[SpacingZYX, str]:
    known = [found.spacing_mm for found in facts.values() if len(found.spacing_mm)]
    if not known:
        raise DataError("no scan of the cohort has a known spacing: name preparation.spacing_zyx_mm")
    # modalities count alike, however many scans each has
    middle = np.mean([np.median(spacing, axis=0) for spacing in known], axis=0)
    reason = "the median spacing, the mean of the modalities'"
    axis = int(middle.argmax())
    if middle[axis] > COARSE_AXIS * middle.min():
        middle[axis] = np.mean([np.percentile(spacing[:, axis], 10) for spacing in known])
        reason += f"; along {'zyx'[axis]}, which is far coarser, the 10th percentile"
    z, y, x = (round(float(mm), 2) for mm in middle)
    return (z, y, x), reason


def _organ(facts: Mapping[Modality, ModalityFacts]) -> npt.NDArray[np.float64]:
    boxes = [found.liver_box_mm for found in facts.values() if len(found.liver_box_mm)]
    if not boxes:
        raise DataError("no training or validation scan has a manual liver: nothing tells how large a patch has to be")
    return np.asarray(np.percentile(np.concatenate(boxes), 90, axis=0))


def _window(facts: Mapping[Modality, ModalityFacts]) -> list[Proposal]:
    found = facts.get(Modality.CT)
    if found is None or not found.intensities.size:
        return []
    low, high = np.percentile(found.intensities, (0.5, 99.5))
    window = [float(5 * math.floor(low / 5)), float(5 * math.ceil(high / 5))]
    reason = f"the 0.5 and 99.5 percentiles inside manual livers, {low:.0f} and {high:.0f} HU, to the next 5 HU"
    return [Proposal("preparation.window_hu", window, reason)]


def _strides(spacing: SpacingZYX) -> list[list[int]]:
    strides, now = [], list(spacing)
    for _ in range(LEVELS):
        stride = [2 if mm < EVEN * min(now) else 1 for mm in now]
        strides.append(stride)
        now = [mm * by for mm, by in zip(now, stride, strict=True)]
    return strides


def _kernels(strides: Sequence[Sequence[int]]) -> list[list[int]]:
    """One for the stem and one a level: flat along an axis until it was halved for the first time."""
    kernels = []
    for level in range(LEVELS + 1):
        halved = [any(stride[axis] > 1 for stride in strides[: level + 1]) for axis in range(3)]
        kernels.append([3 if done else 1 for done in halved])
    return kernels


def _largest_patch(
    name: str,
    config: Mapping[str, Any],
    spacing: SpacingZYX,
    box_mm: npt.NDArray[np.float64],
    divisor: Sequence[int],
    memory_gib: float,
) -> SizeZYX:
    """From the liver's box downwards: the side that covers most of it loses one step, until two patches fit."""
    step = [max(by, 8) for by in divisor]
    sides = [math.ceil(mm / size / by) * by for mm, size, by in zip(box_mm, spacing, step, strict=True)]
    while training_bytes(name, config, (sides[0], sides[1], sides[2]), BATCHES[0]) > memory_gib * 2**30:
        covered = [side * mm / box for side, mm, box in zip(sides, spacing, box_mm, strict=True)]
        can = [axis for axis in range(3) if sides[axis] - step[axis] >= max(MIN_SIDE, step[axis])]
        if not can:
            raise DataError(f"no patch of {name} fits {memory_gib:g} GiB: the smallest is {tuple(sides)}")
        axis = max(can, key=lambda axis: covered[axis])
        sides[axis] -= step[axis]
    return sides[0], sides[1], sides[2]


def _share(patch: SizeZYX, spacing: SpacingZYX, box_mm: npt.NDArray[np.float64]) -> float:
    """How much of the liver's box a patch holds."""
    covered = [min(1.0, side * mm / box) for side, mm, box in zip(patch, spacing, box_mm, strict=True)]
    return float(np.prod(covered))

"""From a cohort to the settings that suit it: spacing, CT window, strides, patch and batch for a memory budget.

The rules follow nnU-Net (Isensee et al., Nature Methods 2021): the median spacing, a finer one along an axis that is
much coarser than the others, the largest patch that fits, shaped like the organ, and the strides that its sides allow.
Nothing is drawn at random: the same cohort gives the same proposals. Only training and validation patients are read.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.imaging.masks import body_mask, lesion_diameters_mm
from hepar.imaging.volumes import Geometry, read_image, to_array
from hepar.networks import from_monai, without_values
from hepar.networks import strides as topology
from hepar.networks.medformer import LEVELS
from hepar.params import NetworkParams, SizeZYX, SpacingZYX, TrainingParams
from hepar.planning.memory import training_bytes
from hepar.runtime.progress import current

VOXELS_A_CASE = 4096  # of the liver, whose intensities are kept
COARSE_AXIS = 3.0  # times the finest: such an axis gets its 10th percentile, not its median
MIN_SIDE = 16
MIN_SHARE = 0.25  # of the liver's box that a patch has to hold; else the spacing is coarsened
COARSER = 1.1
BATCHES = range(2, 9)
STEP = 8  # voxels by which a side grows or shrinks
MR_PERCENTILES = (2.0, 98.0)  # unless livers are darker or brighter
NARROWEST, WIDEST = (10, 90)  # percentiles, over the scans, of where a liver's values end
UNNAMED = "unnamed"  # a sequence of which nothing is said
DIVISIBLE = 64  # a side that every network can divide
LEVELS_OF = {"medformer": LEVELS, "dynunet": from_monai.MAX_LEVELS - 1}  # of networks that take whatever strides


@dataclass(frozen=True)
class ModalityFacts:
    """What the scans of one modality are like; lengths in mm, axes z, y, x."""

    scans: int
    sequences: Mapping[str, int]
    spacing_mm: npt.NDArray[np.float64]  # n x 3, of scans whose spacing is known
    size_zyx: npt.NDArray[np.int64]  # n x 3, voxels of each scan
    liver_box_mm: npt.NDArray[np.float64]  # n x 3, of manual livers
    intensities_of: Mapping[str, npt.NDArray[np.float64]]  # inside manual livers, by sequence
    liver_percentiles: npt.NDArray[np.float64]  # n x 2, of the body, between which 99 % of a manual MR liver lie
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
            percentiles: list[list[float]] = []
            intensities: dict[str, list[npt.NDArray[np.float64]]] = {}
            diameters: list[float] = []
            members = [case for case in chosen if case.modality == modality]
            for case in members:
                if case.liver_state == LabelState.MANUAL:
                    liver = _liver(cohort, case)
                    boxes.append(liver.box_mm)
                    if liver.percentiles:
                        percentiles.append(liver.percentiles)
                    intensities.setdefault(case.sequence or UNNAMED, []).append(liver.values)
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
                    liver_percentiles=np.array(percentiles).reshape(-1, 2),
                    lesion_diameters_mm=tuple(sorted(diameters)),
                )
    return facts


@dataclass(frozen=True)
class _Liver:
    """A manual liver: the sides of its box, some of its values, and, in MR, where 99 % of them lie in the body's."""

    box_mm: list[float]
    values: npt.NDArray[np.float64]
    percentiles: list[float]


def _liver(cohort: Cohort, case: Case) -> _Liver:
    mask, image = read_image(cohort.file(case.liver)), read_image(cohort.file(case.image))
    inside, array = to_array(mask) > 0, to_array(image)
    (box,) = ndimage.find_objects(inside.astype(np.uint8))
    sides = [(part.stop - part.start) * mm for part, mm in zip(box, case.spacing_mm, strict=True)]
    values = array[inside]
    percentiles: list[float] = []
    if case.modality == Modality.MR:
        body = array[body_mask(array, case.modality)]
        percentiles = [
            100 * np.count_nonzero(body < end) / max(body.size, 1) for end in np.percentile(values, (0.5, 99.5))
        ]
    return _Liver(sides, values[:: max(1, values.size // VOXELS_A_CASE)].astype(np.float64), percentiles)


def propose(
    facts: Mapping[Modality, ModalityFacts], network: NetworkParams, training: TrainingParams, memory_gib: float
) -> tuple[Proposal, ...]:
    """Settings for a cohort and the memory that a step may take in one process, at the precision of `training`.

    Raises DataError where no liver or no spacing is known, or no patch fits.
    """
    spacing, why_spacing = _spacing(facts)
    box_mm = _organ(facts)

    known: dict[str, float] = {}  # seconds each, and coarser spacings come back to the same patches

    def needed_gib(layout: _Layout, batch: int) -> float:
        key = f"{layout} {batch}"
        if key not in known:
            known[key] = training_bytes(network.name, layout.config, layout.patch_zyx, batch, training) / 2**30
        return known[key]

    def largest() -> _Layout:
        layouts = _layouts(network, spacing, box_mm)
        at = bisect_left(layouts, True, key=lambda layout: needed_gib(layout, BATCHES[0]) <= memory_gib)
        if at == len(layouts):
            smallest = layouts[-1].patch_zyx
            raise DataError(f"no patch of {network.name} fits {memory_gib:g} GiB: the smallest is {smallest}")
        return layouts[at]

    layout = largest()
    coarsened = 0
    while _share(layout.patch_zyx, spacing, box_mm) < MIN_SHARE:
        z, y, x = (mm * COARSER for mm in spacing)
        spacing, coarsened = (z, y, x), coarsened + 1
        layout = largest()
    if coarsened:
        why_spacing += (
            f"; made {COARSER**coarsened:.2f} times coarser, so that a patch that fits {memory_gib:g} GiB holds"
            f" {MIN_SHARE:.0%} of a liver's box"
        )
    patch = layout.patch_zyx
    batch = BATCHES[bisect_left(BATCHES, True, lo=1, key=lambda n: needed_gib(layout, n) > memory_gib) - 1]
    how = training.precision + (" with gradient checkpointing" if training.gradient_checkpointing else "")
    extent = " × ".join(f"{side * mm:.0f}" for side, mm in zip(patch, spacing, strict=True))
    return (
        Proposal("preprocessing.spacing_zyx_mm", [round(mm, 2) for mm in spacing], why_spacing),
        *_window(facts),
        *_mr_recipe(facts),
        Proposal(
            "train_universal.training.patch_zyx",
            list(patch),
            f"{extent} mm, of a liver's box of {' × '.join(f'{mm:.0f}' for mm in box_mm)} mm (90th percentile); the"
            f" largest such that a step on {BATCHES[0]} patches fits into {memory_gib:g} GiB",
        ),
        Proposal(
            "train_universal.training.batch_size",
            batch,
            f"a step in {how} takes some {needed_gib(layout, batch):.1f} GiB; with several GPUs, so many for each",
        ),
        Proposal("train_liver.training.patch_zyx", list(patch), "as stage 2"),
        Proposal("train_liver.training.batch_size", batch, "as stage 2"),
        *(Proposal(f"network.config.{key}", value, reason) for key, (value, reason) in layout.chosen.items()),
    )


def _mr_recipe(facts: Mapping[Modality, ModalityFacts]) -> list[Proposal]:
    """How MR is normalised: by the image itself, since its values have no unit, and so that no liver is clipped."""
    if Modality.MR not in facts:
        return []
    reason = (
        "MR values have no unit: each scan is clipped at these percentiles of its body and brought to mean 0 and"
        " deviation 1 there, whatever its sequence"
    )
    low, high = MR_PERCENTILES
    if len(found := facts[Modality.MR].liver_percentiles):
        darkest = float(np.percentile(found[:, 0], NARROWEST))
        brightest = float(np.percentile(found[:, 1], WIDEST))
        reason += f"; in nine of ten scans 99 % of the liver lie above {darkest:.1f} and below {brightest:.1f}"
        low, high = min(low, math.floor(2 * darkest) / 2), max(high, math.ceil(2 * brightest) / 2)
    return [Proposal("preprocessing.mr_percentiles", [low, high], reason)]


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
        raise DataError("no scan of the cohort has a known spacing: name preprocessing.spacing_zyx_mm")
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
    return [Proposal("preprocessing.window_hu", window, reason)]


@dataclass(frozen=True)
class _Layout:
    """A patch, and the config of a network that can divide it; what of it was chosen for the patch, and why."""

    patch_zyx: SizeZYX
    config: Mapping[str, Any]
    chosen: Mapping[str, tuple[list[list[int]], str]]


def _layout(network: NetworkParams, sides: Sequence[int], spacing: SpacingZYX) -> _Layout:
    """The patch of at least these sides, with the depth and the strides that suit it where the network takes any."""
    z, y, x = sides
    if network.name not in LEVELS_OF:
        return _Layout((z, y, x), network.config, {})
    levels = LEVELS_OF[network.name]
    # of a side between two powers of two the lowest map has more than its fewest voxels
    found = topology.strides([2 ** int(math.log2(side)) for side in sides], levels, spacing)
    by = [math.prod(stride[axis] for stride in found) for axis in range(3)]
    z, y, x = (math.ceil(side / n) * n for side, n in zip(sides, by, strict=True))
    lowest = "×".join(str(side // n) for side, n in zip((z, y, x), by, strict=True))
    why_strides = (
        f"{len(found)} levels down to a map of {lowest}: an axis is halved while its map keeps {topology.MIN_SIDE}"
        f" voxels and no other is {topology.EVEN:g} times finer"
    )
    why_kernels = f"flat along an axis until no other is {topology.EVEN:g} times finer"
    if network.name == "medformer":
        found += [[1, 1, 1]] * (levels - len(found))
        chosen = {"stride": (found, why_strides), "kernel": (topology.kernels(found, spacing), why_kernels)}
    else:
        own = [[1, 1, 1], *found]
        chosen = {"strides": (own, why_strides), "kernel_size": (topology.kernels(found, spacing), why_kernels)}
    config = {**network.config, **{key: value for key, (value, _) in chosen.items()}}
    return _Layout((z, y, x), config, chosen)


def _layouts(network: NetworkParams, spacing: SpacingZYX, box_mm: npt.NDArray[np.float64]) -> list[_Layout]:
    """From the liver's box downwards, each smaller by a step of the side that covers most of the box."""
    if network.name in LEVELS_OF:
        step, fewest = [STEP] * 3, [MIN_SIDE] * 3
    else:
        divisor: Any = without_values(network.name, network.config, (DIVISIBLE,) * 3).divisor
        step, fewest = [max(by, STEP) for by in divisor], [max(2 * by, MIN_SIDE) for by in divisor]
    sides = [math.ceil(mm / size / by) * by for mm, size, by in zip(box_mm, spacing, step, strict=True)]
    sides = [max(pair) for pair in zip(sides, fewest, strict=True)]
    found: list[_Layout] = []
    while True:
        layout = _layout(network, sides, spacing)
        if layout not in found:
            found.append(layout)
        covered = [side * mm / box for side, mm, box in zip(sides, spacing, box_mm, strict=True)]
        can = [axis for axis in range(3) if sides[axis] - step[axis] >= fewest[axis]]
        if not can:
            return found
        axis = max(can, key=lambda axis: covered[axis])
        sides[axis] -= step[axis]


def _share(patch: SizeZYX, spacing: SpacingZYX, box_mm: npt.NDArray[np.float64]) -> float:
    """How much of the liver's box a patch holds."""
    covered = [min(1.0, side * mm / box) for side, mm, box in zip(patch, spacing, box_mm, strict=True)]
    return float(np.prod(covered))

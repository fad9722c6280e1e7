"""The windows of a scan that matter to the liver. The others need not be predicted.

A first pass sees every voxel once. Around all that it finds, those windows are predicted that matter to it, which are
the same ones as over the whole scan; then those that matter to what is connected to it, until none is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hepar.cases import LIVER, STRUCTURES, TUMOUR
from hepar.imaging.masks import (
    Mask,
    bounding_box,
    enlarged,
    find_components,
    remove_small_components,
)
from hepar.imaging.parallel_grids import Box, inner_box, shared_slices, within
from hepar.inference.first_pass import FirstPass, Windows, first_windows
from hepar.inference.liver_choice import choose_liver
from hepar.inference.prepared_scan import PreparedScan
from hepar.inference.settings import OperatingPoint, PredictionSettings
from hepar.inference.sliding_window import Probabilities, WindowGrid
from hepar.inference.variant_prediction import VariantPrediction
from hepar.inference.window_count import WindowCount

if TYPE_CHECKING:
    from hepar.inference.prediction import Model

LIVER_THRESHOLD = 0.5  # the probability that a liver voxel exceeds
MIN_LIVER_ML = 100.0  # a smaller one is not believed: the whole scan is predicted
MIN_FOUND_ML = 10.0  # of a component of the first pass; a liver in smaller pieces alone would be missed
MARGIN_MM = 20.0  # around the liver, in which probabilities are returned
MAX_ROOM = 32  # voxels around what is found; sums of probabilities are held for all of the box
MAX_ROUNDS = 10  # of following the liver


@dataclass(frozen=True)
class Region:
    """A mask, bool zyx, in a box of a grid."""

    box: Box
    mask_zyx: Mask

    def moved(self, box: Box) -> Region:
        """The mask in another box."""
        moved_zyx = np.zeros([part.stop - part.start for part in box], bool)
        if (shared := shared_slices(box, self.box)) is not None:
            to, source = shared
            moved_zyx[to] = self.mask_zyx[source]
        return Region(box, moved_zyx)


def follow_liver(
    models: Sequence[Model], scan: PreparedScan, settings: PredictionSettings, count: WindowCount
) -> tuple[VariantPrediction, Region] | None:
    """Predict the windows that matter to what a first pass finds; the prediction, and the liver with its tumours.

    None if the whole scan should be predicted: the first pass would take half of its windows, the model was not taught
    livers, or there is no liver of `MIN_LIVER_ML`.
    """
    spec = models[0].spec
    thresholds_r = found_thresholds(spec.taught, settings.operating_point(spec))
    grid = WindowGrid.over(scan.grid.size_zyx, spec.patch_zyx, settings.overlap)
    if STRUCTURES[LIVER] not in spec.taught or 2 * len(first_windows(grid).corners) > len(grid.corners):
        return None
    if (start := _found_first(models, scan, settings, thresholds_r, count)) is None:
        return None
    region, known = start
    least_voxels = MIN_LIVER_ML / scan.grid.voxel_ml
    prediction = VariantPrediction(models, scan, settings, region.box, known, count)
    for _ in range(MAX_ROUNDS):
        if not prediction.predict(region.mask_zyx):
            return prediction, _around_liver(region, scan, spec.liver_intensity.get(scan.modality))
        found_zyx = connected_to(region.mask_zyx, above(prediction.mean(), thresholds_r))
        if max(find_components(found_zyx).voxels, default=0) < least_voxels:
            return None
        grown = _grown_box(found_zyx, region.box, spec.patch_zyx, scan.grid.size_zyx)
        region = Region(region.box, region.mask_zyx | found_zyx)
        if grown != region.box:
            region = region.moved(grown)
            prediction = VariantPrediction(models, scan, settings, grown, count=count)
    return None


def _found_first(
    models: Sequence[Model],
    scan: PreparedScan,
    settings: PredictionSettings,
    thresholds_r: Sequence[float],
    count: WindowCount,
) -> tuple[Region, tuple[Windows, ...]] | None:
    """What the first pass finds, and the windows in which it does; None if there is no liver of `MIN_LIVER_ML`."""
    first = FirstPass.over(models, scan, settings, thresholds_r, count)
    found_zyx = remove_small_components(first.found_zyx, MIN_FOUND_ML / scan.grid.voxel_ml)
    inner = bounding_box(found_zyx)
    if inner is None or found_zyx.sum() < MIN_LIVER_ML / scan.grid.voxel_ml:
        return None
    box = widened(inner, models[0].spec.patch_zyx, scan.grid.size_zyx)
    return Region(box, found_zyx[box].copy()), first.windows  # a view would hold the mask of the whole scan


def _around_liver(region: Region, scan: PreparedScan, expected: tuple[float, float] | None) -> Region:
    """The component that is the liver alone, in a box with `MARGIN_MM` around it."""
    liver_zyx = choose_liver(region.mask_zyx, expected, lambda: scan.exactly(region.box))
    inner = bounding_box(liver_zyx)
    assert inner is not None
    roomy = within(enlarged(inner, scan.grid.spacing_zyx_mm, MARGIN_MM), liver_zyx.shape)
    return Region(inner_box(region.box, roomy), liver_zyx[roomy])


def found_thresholds(taught: Sequence[str], point: OperatingPoint) -> tuple[float, float]:
    """The probabilities of liver and tumour above which a voxel counts as found; none does of an untaught one."""
    return LIVER_THRESHOLD, point.tumour_threshold if STRUCTURES[TUMOUR] in taught else math.inf


def above(probability_rzyx: Probabilities, thresholds_r: Sequence[float]) -> Mask:
    """The voxels that count as liver or tumour, bool zyx."""
    found_zyx = np.zeros(probability_rzyx.shape[1:], bool)
    for probability_zyx, threshold in zip(probability_rzyx, thresholds_r, strict=True):
        found_zyx |= probability_zyx > threshold
    return found_zyx


def connected_to(mask_zyx: Mask, found_zyx: Mask) -> Mask:
    """The components of `found_zyx` that share a voxel with a mask."""
    components = find_components(found_zyx)
    kept = np.zeros(len(components.voxels) + 1, bool)
    kept[np.unique(components.labels_zyx[mask_zyx[components.box]])] = True
    kept[0] = False
    connected_zyx = np.zeros(found_zyx.shape, bool)
    connected_zyx[components.box] = kept[components.labels_zyx]
    return connected_zyx


def widened(box: Box, patch_zyx: Sequence[int], size_zyx: Sequence[int]) -> Box:
    """A box with half a window more on each side, at most `MAX_ROOM` voxels, where the scan has it."""
    return tuple(
        slice(max(0, part.start - min(patch // 2, MAX_ROOM)), min(size, part.stop + min(patch // 2, MAX_ROOM)))
        for part, patch, size in zip(box, patch_zyx, size_zyx, strict=True)
    )


def _grown_box(found_zyx: Mask, box: Box, patch_zyx: Sequence[int], size_zyx: Sequence[int]) -> Box:
    """The box, with half a window more beyond each side that a mask in it touches, where the scan has it."""
    inner = bounding_box(found_zyx) or (slice(1, 1),) * 3
    grown = []
    for part, own, patch, size in zip(box, inner, patch_zyx, size_zyx, strict=True):
        low = part.start - (patch // 2 if own.start == 0 else 0)
        high = part.stop + (patch // 2 if own.stop == part.stop - part.start else 0)
        grown.append(slice(max(0, low), min(size, high)))
    return tuple(grown)

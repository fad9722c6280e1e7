"""Where the liver is, so that the rest of a scan need not be predicted.

A coarse pass of the model itself finds most of the liver. Around it those windows are predicted that matter to the
liver, which are the same ones as over the whole scan; then those that matter to what they found, until nothing new is
found. So what the coarse pass missed is found by following the liver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from hepar.cases import LIVER, STRUCTURES, TUMOUR, Modality
from hepar.imaging.masks import Mask, bounding_box, keep_largest_component, label_components
from hepar.imaging.parallel_grids import Box, box_on, shared_slices
from hepar.imaging.volumes import Geometry, resample_mask, to_image
from hepar.inference.prepared_scan import PreparedScan, shrink
from hepar.inference.settings import OperatingPoint, PredictionSettings
from hepar.inference.sliding_window import Probabilities, WindowGrid
from hepar.inference.variant_prediction import VariantPrediction

if TYPE_CHECKING:
    from hepar.inference.prediction import Model

LIVER_THRESHOLD = 0.5  # the probability that a liver voxel exceeds
COARSER = 2.0  # the spacing of the coarse pass, in units of the plan's
FEW_WINDOWS = 12  # up to which a scan is predicted as a whole
MIN_LIVER_ML = 100.0  # a smaller one is not believed: the whole scan is predicted
MIN_SHARE = 0.1  # of the largest component of the coarse liver; smaller ones are not followed
MAX_ROOM = 32  # voxels around the coarse liver; sums of probabilities are held for all of the box
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


def find_liver(model: Model, image: sitk.Image, modality: Modality) -> Region | None:
    """The liver of a canonical scan by a coarse pass, on the grid of the plan, with room around it.

    None if the whole scan should be predicted: it has few windows, the model was not taught livers, or none is found.
    """
    spec, fine = model.spec, Geometry.of(image).with_spacing(model.spec.plan.spacing_zyx_mm)
    windows = len(WindowGrid.over(fine.size_zyx, spec.patch_zyx, overlap=0.5).corners)
    if STRUCTURES[LIVER] not in spec.taught or windows <= FEW_WINDOWS:
        return None
    z, y, x = (mm * COARSER for mm in spec.plan.spacing_zyx_mm)
    plan = spec.plan.model_copy(update={"spacing_zyx_mm": (z, y, x)})
    scan = PreparedScan(shrink(image, plan.spacing_zyx_mm), modality, plan)
    prediction = VariantPrediction([model], scan, PredictionSettings(overlap=0.0), scan.whole)
    prediction.predict(None)
    liver_zyx = _large_components(prediction.mean()[LIVER] > LIVER_THRESHOLD)
    box = bounding_box(liver_zyx)
    if box is None or liver_zyx.sum() * scan.grid.voxel_ml < MIN_LIVER_ML:
        return None
    roomy = widened(box_on(box, scan.grid, fine), spec.patch_zyx, fine.size_zyx)
    mask_zyx = resample_mask(to_image(liver_zyx, scan.grid), fine.cropped(roomy))
    return Region(roomy, mask_zyx)


def _large_components(mask_zyx: Mask) -> Mask:
    labels_zyx, voxels = label_components(mask_zyx)
    large = voxels >= MIN_SHARE * voxels.max(initial=0)
    return np.asarray(np.concatenate([[False], large])[labels_zyx])


def widened(box: Box, patch_zyx: Sequence[int], size_zyx: Sequence[int]) -> Box:
    """A box with half a window more on each side, at most `MAX_ROOM` voxels, where the scan has it."""
    return tuple(
        slice(max(0, part.start - min(patch // 2, MAX_ROOM)), min(size, part.stop + min(patch // 2, MAX_ROOM)))
        for part, patch, size in zip(box, patch_zyx, size_zyx, strict=True)
    )


def follow_liver(
    models: Sequence[Model], scan: PreparedScan, settings: PredictionSettings, region: Region
) -> tuple[VariantPrediction, Region] | None:
    """Predict the scan around a liver, and follow it as far as it goes; the prediction, and the liver with its tumours.

    None if there is no liver of `MIN_LIVER_ML` after all.
    """
    spec, point = models[0].spec, settings.operating_point(models[0].spec)
    prediction = VariantPrediction(models, scan, settings, region.box)
    for _ in range(MAX_ROUNDS):
        if not prediction.predict(region.mask_zyx):
            return prediction, region
        found_zyx = found_liver(prediction.mean(), spec.taught, point)
        if found_zyx.sum() * scan.grid.voxel_ml < MIN_LIVER_ML:
            return None
        grown = _grown_box(found_zyx, region.box, spec.patch_zyx, scan.grid.size_zyx)
        region = Region(region.box, region.mask_zyx | found_zyx)
        if grown != region.box:
            region = region.moved(grown)
            prediction = VariantPrediction(models, scan, settings, grown)
    return None


def found_liver(probability_rzyx: Probabilities, taught: Sequence[str], point: OperatingPoint) -> Mask:
    """The largest component of liver and tumours."""
    found_zyx = probability_rzyx[LIVER] > LIVER_THRESHOLD
    if STRUCTURES[TUMOUR] in taught:
        found_zyx |= probability_rzyx[TUMOUR] > point.tumour_threshold
    return keep_largest_component(found_zyx)


def _grown_box(found_zyx: Mask, box: Box, patch_zyx: Sequence[int], size_zyx: Sequence[int]) -> Box:
    """The box, with half a window more beyond each side that a mask in it touches, where the scan has it."""
    inner = bounding_box(found_zyx) or (slice(1, 1),) * 3
    grown = []
    for part, own, patch, size in zip(box, inner, patch_zyx, size_zyx, strict=True):
        low = part.start - (patch // 2 if own.start == 0 else 0)
        high = part.stop + (patch // 2 if own.stop == part.stop - part.start else 0)
        grown.append(slice(max(0, low), min(size, high)))
    return tuple(grown)

"""A scan on the grid of a model's plan, resampled and normalised where windows are predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from hepar.cases import Modality
from hepar.imaging.parallel_grids import Box, resample_part, whole_box
from hepar.imaging.preprocessing import PreprocessingPlan, normalise
from hepar.imaging.volumes import Geometry, to_array
from hepar.inference.sliding_window import Corner, cut_window
from hepar.params import SizeZYX, SpacingZYX


class PreparedScan:
    """A canonical scan preprocessed by a plan; `grid` is that of the whole scan.

    An MR is normalised by percentiles of its whole body, so all of it is resampled; of a CT only what `part` is asked
    for. `contrast` changes contrast about the mean, and adds brightness, in a test-time variant.
    """

    def __init__(self, image: sitk.Image, modality: Modality, plan: PreprocessingPlan, contrast: float = 0.0) -> None:
        self.modality, self.plan, self.contrast = modality, plan, contrast
        self.own = Geometry.of(image)
        self.grid = self.own.with_spacing(plan.spacing_zyx_mm)
        self._image = image
        self._box: Box = (slice(0, 0),) * 3
        self._part_zyx = np.zeros((0, 0, 0), np.float32)
        self._mean: float | None = None

    @property
    def whole(self) -> Box:
        """The box of the whole grid."""
        return whole_box(self.grid.size_zyx)

    def part(self, box: Box) -> tuple[npt.NDArray[np.float32], Box]:
        """The preprocessed voxels of a box at least, float32 zyx, and the box that they cover."""
        if not all(own.start <= part.start and part.stop <= own.stop for own, part in zip(self._box, box, strict=True)):
            self._box = box if self.modality == Modality.CT else self.whole
            self._part_zyx = self._varied(self._preprocessed(self._box))
        return self._part_zyx, self._box

    def exactly(self, box: Box) -> npt.NDArray[np.float32]:
        """The preprocessed voxels of a box, float32 zyx."""
        part_zyx, own = self.part(box)
        return part_zyx[tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, own, strict=True))]

    def _preprocessed(self, box: Box) -> npt.NDArray[np.float32]:
        array_zyx = sitk.GetArrayViewFromImage(self._image)
        return normalise(resample_part(array_zyx, self.own, self.grid.cropped(box)), self.modality, self.plan)

    def _varied(self, image_zyx: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not self.contrast:
            return image_zyx
        if self._mean is None:
            self._mean = self._mean_of_scan() if self.modality == Modality.CT else float(image_zyx.mean())
        return np.asarray(change_contrast(image_zyx, 1 + self.contrast, self.contrast, self._mean), np.float32)

    def _mean_of_scan(self) -> float:
        """The mean of a whole CT, from blocks of voxels."""
        shrunk_zyx = to_array(shrink(self._image, self.plan.spacing_zyx_mm)).astype(np.float32)
        return float(normalise(shrunk_zyx, self.modality, self.plan).mean())


def cut_from_slab(scan: PreparedScan, hull: Box, corner: Corner, patch_zyx: SizeZYX) -> npt.NDArray[np.float32]:
    """The voxels of a window in a box `hull` of a scan, of which a slab as thick as a window is prepared at a time."""
    thick = slice(max(hull[0].start, corner[0]), min(hull[0].stop, corner[0] + patch_zyx[0]))
    return cut_window(*scan.part((thick, *hull[1:])), corner, patch_zyx)


def change_contrast(image: Any, factor: float, shift: float, mean: Any = None) -> Any:
    """The image, an array or a tensor of any shape, with contrast about its mean scaled by `factor`, plus `shift`.

    `mean` is that of a larger image which it is a part of.
    """
    mean = image.mean() if mean is None else mean
    return (image - mean) * factor + mean + shift


def shrink(image: sitk.Image, spacing_zyx_mm: SpacingZYX) -> sitk.Image:
    """A scan averaged over blocks of voxels, whose sides are at most half a new spacing."""
    sizes = zip(spacing_zyx_mm[::-1], image.GetSpacing(), image.GetSize(), strict=True)
    return sitk.BinShrink(image, [min(max(1, int(new / old / 2)), size) for new, old, size in sizes])

"""Where findings are painted into a training patch, and what the liver looks like there.

Legend: r structure (`LIVER`, `TUMOUR`), z y x space, n voxels; image values are those of the preprocessed image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.imaging.intensities import CT_RANGE, scale_ct
from hepar.imaging.masks import Mask, bounding_box, dilate
from hepar.imaging.painting import voxel_side_mm
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.training.sampling import Patch

MIN_VOXELS = 200  # that may be painted on: in less, a lesion of the smallest size has no healthy liver around it
TEXTURE_MM = 10.0  # half the side of the boxes in which spread is measured: wider than noise, narrower than a lobe
TEXTURE_PLACES = 24  # boxes measured for one finding
TEXTURE_STEP_MM = 3.0  # between the voxels of a box: a finer grid has more of them and not more texture
MIN_TEXTURE_VOXELS = 20  # of a box, in the liver
MIN_SPREAD = {Modality.CT: 0.03, Modality.MR: 0.08}  # of an image without noise; real livers have 0.06 and 0.2
MAX_NOISE = 2.0  # spreads: more is an edge of a vessel or of the liver, not noise
WATER_HU = (0.0, 15.0)
AROUND_TUMOUR_MM = 15.0  # so near to a tumour, the tissue of its surroundings' median intensity is liver
AROUND_TUMOUR_MAX = {Modality.CT: 0.2, Modality.MR: 0.6}  # from that median; neighbouring organs may be as near


@dataclass(frozen=True)
class Box:
    """A part of a patch around a point: slices, and the distances from the point along each axis as a sparse grid."""

    slices: tuple[slice, ...]
    offsets_zyx_mm: tuple[npt.NDArray[np.float32], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels along z, y and x."""
        return tuple(part.stop - part.start for part in self.slices)


@dataclass(frozen=True)
class Texture:
    """Intensities of the liver at a place: their median, and their spread within `TEXTURE_MM`."""

    level: float
    spread: float


@dataclass(frozen=True)
class Canvas:
    """A patch that is painted on: image and targets are copies, the weights are those of the patch and never change.

    `paintable_zyx` is known liver without tumour, real or painted before the canvas was made; `whole_liver_zyx` has the
    tumours too. A canvas without liver masks lies around tumours, and says so by `bounded`.
    """

    patch: Patch
    given_zyx: npt.NDArray[np.float32]
    paintable_zyx: Mask
    whole_liver_zyx: Mask
    spacing_zyx_mm: npt.NDArray[np.float64]
    water_ct: tuple[float, float]  # the least and the most of `WATER_HU`
    bounded: bool

    @property
    def voxel_mm(self) -> float:
        """Side of a cube of the volume of a voxel."""
        return voxel_side_mm(self.spacing_zyx_mm)

    def draw_voxel(self, mask_zyx: Mask, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Index z, y, x of a random voxel of a mask that is not empty."""
        places_n = np.flatnonzero(mask_zyx)
        return np.array(np.unravel_index(places_n[rng.integers(len(places_n))], mask_zyx.shape))

    def box(self, centre_zyx: npt.NDArray[np.int64], reach_mm: float) -> Box:
        """The part of the patch within `reach_mm` of a voxel of the patch along each axis."""
        reach_zyx = np.ceil(reach_mm / self.spacing_zyx_mm).astype(int)
        slices = tuple(
            slice(max(0, int(c - r)), min(n, int(c + r) + 1))
            for c, r, n in zip(centre_zyx, reach_zyx, self.given_zyx.shape, strict=True)
        )
        offsets = [
            ((np.arange(part.start, part.stop) - c) * s).astype(np.float32)
            for part, c, s in zip(slices, centre_zyx, self.spacing_zyx_mm, strict=True)
        ]
        z, y, x = np.meshgrid(*offsets, indexing="ij", sparse=True)
        return Box(slices, (z, y, x))

    def texture(self, box: Box) -> Texture:
        """Median and local spread of the liver in a box, as it was given.

        The spread is the median, over places in the box, of the standard deviation within `TEXTURE_MM` of the place:
        noise and small vessels count, a slow change of brightness across the liver does not. It is at least
        `MIN_SPREAD`, which is also that of a box with too little liver; the level is then that of the whole liver.
        """
        floor = MIN_SPREAD[self.patch.modality]
        here_zyx = self.paintable_zyx[box.slices]
        places_n3 = np.argwhere(here_zyx) + [part.start for part in box.slices]
        if len(places_n3) < MIN_TEXTURE_VOXELS:
            return Texture(float(np.median(self.given_zyx[self.paintable_zyx])), floor)
        level = float(np.median(self.given_zyx[box.slices][here_zyx]))
        places_n3 = places_n3[:: -(-len(places_n3) // TEXTURE_PLACES)]
        steps = [np.arange(-TEXTURE_MM, TEXTURE_MM + 0.1, max(TEXTURE_STEP_MM, s)) / s for s in self.spacing_zyx_mm]
        offsets_m3 = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3).round().astype(int)
        voxels_nm3 = np.clip(places_n3[:, None] + offsets_m3, 0, np.array(self.given_zyx.shape) - 1)
        index_nm = np.ravel_multi_index(tuple(np.moveaxis(voxels_nm3, -1, 0)), self.given_zyx.shape)
        inside_nm = self.paintable_zyx.ravel()[index_nm]
        count_n = inside_nm.sum(1)
        enough_n = count_n >= MIN_TEXTURE_VOXELS
        if not enough_n.any():
            return Texture(level, floor)
        image_nm = np.where(inside_nm, self.given_zyx.ravel()[index_nm] - level, 0)[enough_n]
        count_n = count_n[enough_n]
        variance_n = (image_nm**2).sum(1) / count_n - (image_nm.sum(1) / count_n) ** 2
        return Texture(level, max(floor, float(np.sqrt(max(0.0, float(np.median(variance_n)))))))

    def noise(self, box: Box, texture: Texture) -> npt.NDArray[np.float32]:
        """The noise of the given image in a box, float32 zyx, without the edges of vessels and organs."""
        image_zyx = self.given_zyx[box.slices]
        bound = MAX_NOISE * texture.spread
        return np.asarray(np.clip(image_zyx - ndimage.uniform_filter(image_zyx, 3), -bound, bound), np.float32)

    def blend(self, box: Box, value_zyx: npt.NDArray[np.float32], share_zyx: npt.NDArray[np.float32]) -> None:
        """Replace a share of each voxel of the image in a box by a value.

        No value is darker than the darkest of the patch; CT stays within its window.
        """
        image_zyx = self.patch.image_zyx[box.slices]
        high = CT_RANGE[1] if self.patch.modality == Modality.CT else None
        value_zyx = np.clip(value_zyx, self.given_zyx.min(), high)
        image_zyx += share_zyx * (value_zyx - image_zyx)


def canvas_of_liver(patch: Patch, plan: PreprocessingPlan) -> Canvas | None:
    """The known liver of a patch; None if fewer than `MIN_VOXELS` of it are without tumour."""
    whole_liver_zyx = (patch.target_rzyx[LIVER] > 0) & (patch.weight_rzyx[LIVER] > 0)
    paintable_zyx = whole_liver_zyx & (patch.target_rzyx[TUMOUR] == 0)
    if paintable_zyx.sum() < MIN_VOXELS:
        return None
    return _canvas(patch, paintable_zyx, whole_liver_zyx, plan, bounded=False)


def canvas_around_tumours(patch: Patch, plan: PreprocessingPlan) -> Canvas | None:
    """What must be liver around the known tumours of a patch whose liver is unknown; None if there is too little.

    It lies within `AROUND_TUMOUR_MM` of them, where the state of the tumour is known, and is close to the median
    intensity there: at most the spread around it (1.5 interquartile ranges), and no more than `AROUND_TUMOUR_MAX`.
    """
    known_zyx = patch.weight_rzyx[TUMOUR] > 0
    tumour_zyx = (patch.target_rzyx[TUMOUR] > 0) & known_zyx
    box = bounding_box(tumour_zyx)
    if box is None or (patch.weight_rzyx[LIVER] > 0)[tumour_zyx == 0].any():
        return None
    margins = [int(AROUND_TUMOUR_MM / s) + 1 for s in plan.spacing_zyx_mm]
    wide = tuple(slice(max(0, part.start - m), part.stop + m) for part, m in zip(box, margins, strict=True))
    near_zyx = dilate(tumour_zyx[wide], plan.spacing_zyx_mm, AROUND_TUMOUR_MM) & known_zyx[wide]
    near_zyx &= patch.target_rzyx[TUMOUR][wide] == 0
    if near_zyx.sum() < MIN_VOXELS:
        return None
    image_zyx = ndimage.uniform_filter(patch.image_zyx[wide], 3)
    quarter, median, three_quarters = np.percentile(image_zyx[near_zyx], (25, 50, 75))
    bound = min(1.5 * (three_quarters - quarter), AROUND_TUMOUR_MAX[patch.modality])
    paintable_zyx = np.zeros(patch.image_zyx.shape, bool)
    paintable_zyx[wide] = ndimage.binary_opening(near_zyx & (np.abs(image_zyx - median) <= bound))
    if paintable_zyx.sum() < MIN_VOXELS:
        return None
    return _canvas(patch, paintable_zyx, paintable_zyx, plan, bounded=True)


def _canvas(
    patch: Patch, paintable_zyx: Mask, whole_liver_zyx: Mask, plan: PreprocessingPlan, *, bounded: bool
) -> Canvas:
    painted = Patch(patch.image_zyx.copy(), patch.target_rzyx.copy(), patch.weight_rzyx, patch.modality)
    low, high = scale_ct(np.array(WATER_HU), plan.window_hu).tolist()
    spacing_zyx_mm = np.asarray(plan.spacing_zyx_mm)
    return Canvas(painted, patch.image_zyx, paintable_zyx, whole_liver_zyx, spacing_zyx_mm, (low, high), bounded)


def surface(mask_zyx: Mask, outside_zyx: Mask) -> Mask:
    """The voxels of a mask that share a face with a voxel of `outside_zyx`; none at the border of the array."""
    touched_zyx = np.zeros_like(mask_zyx)
    for axis in range(mask_zyx.ndim):
        first, last = [slice(None)] * mask_zyx.ndim, [slice(None)] * mask_zyx.ndim
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        touched_zyx[tuple(first)] |= outside_zyx[tuple(last)]
        touched_zyx[tuple(last)] |= outside_zyx[tuple(first)]
    return np.asarray(touched_zyx & mask_zyx)

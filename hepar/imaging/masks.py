"""Masks: body, dilation, holes, connected components, and the size of lesions.

A mask is an array zyx, bool, True inside. Components are connected by faces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import Modality
from hepar.imaging.intensities import mr_body

Mask = npt.NDArray[np.bool_]
CT_AIR_HU = -400.0
LESION_SIZES = ("<10 mm", "10-20 mm", ">20 mm")
_MIDDLE_BIN_MM = (10.0, 20.0)


def body_mask(image_zyx: npt.NDArray[Any], modality: Modality) -> Mask:
    """The voxels of a scan, zyx, that are not air: above -400 HU in CT; in MR above a tenth of the way from air, 0
    or the lowest value below it, to the 99th percentile, so that a zero-centred MR has the same body."""
    if modality == Modality.CT:
        return np.asarray(image_zyx > CT_AIR_HU)
    return mr_body(image_zyx)


def dilate(mask_zyx: Mask, spacing_zyx_mm: Sequence[float], radius_mm: float) -> Mask:
    """Dilate a mask by a ball of `radius_mm`; an empty mask stays empty."""
    if not mask_zyx.any():
        return mask_zyx.copy()
    distance_zyx_mm = ndimage.distance_transform_edt(~mask_zyx, sampling=spacing_zyx_mm)
    return np.asarray(distance_zyx_mm <= radius_mm)


def bounding_box(mask_zyx: Mask) -> tuple[slice, ...] | None:
    """The smallest box that contains a mask of any dimension, a slice for each axis; None for an empty mask."""
    box: list[slice] = []
    for axis in range(mask_zyx.ndim):  # each axis within the slices of those before it
        others = tuple(other for other in range(mask_zyx.ndim) if other != axis)
        hit_n = np.flatnonzero(mask_zyx[tuple(box)].any(axis=others))
        if len(hit_n) == 0:
            return None
        box.append(slice(int(hit_n[0]), int(hit_n[-1]) + 1))
    return tuple(box)


def enlarged(box: tuple[slice, ...], spacing_zyx_mm: Sequence[float], margin_mm: float) -> tuple[slice, ...]:
    """A box with at least `margin_mm` and a voxel more on each side, where the volume has them."""
    margins = [math.ceil(margin_mm / mm) + 1 for mm in spacing_zyx_mm]
    return tuple(slice(max(0, part.start - more), part.stop + more) for part, more in zip(box, margins, strict=True))


def fill_holes(mask_zyx: Mask) -> Mask:
    """Fill the holes of a mask in 3-D; an empty mask stays empty."""
    return np.asarray(ndimage.binary_fill_holes(mask_zyx), dtype=bool)


@dataclass(frozen=True, eq=False)
class Components:
    """The components of a mask, numbered from 1 in scan order.

    `labels_zyx`, int32, covers only the box that contains them, whose slices are empty for an empty mask. `voxels` has
    the size of each, component 1 first.
    """

    labels_zyx: npt.NDArray[np.int32]
    voxels: npt.NDArray[np.int64]
    box: tuple[slice, ...]

    def alone(self, number: int, mask_zyx: Mask) -> Mask:
        """One component of the mask that they were found in; a mask of one component is returned as it is."""
        if len(self.voxels) == 1:
            return mask_zyx
        alone_zyx = np.zeros(mask_zyx.shape, bool)
        alone_zyx[self.box] = self.labels_zyx == number
        return alone_zyx


def find_components(mask_zyx: Mask) -> Components:
    """The components of a mask; none for an empty mask."""
    box = bounding_box(mask_zyx) or (slice(0, 0),) * mask_zyx.ndim
    labels_zyx = np.zeros(mask_zyx[box].shape, np.int32)
    ndimage.label(mask_zyx[box], output=labels_zyx)
    return Components(labels_zyx, np.bincount(labels_zyx.ravel(), minlength=1)[1:], box)


def label_components(mask_zyx: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Label components from 1 in scan order, int32 zyx; also returns the voxels of each, component 1 first.

    An empty mask gives zeros and no sizes.
    """
    components = find_components(mask_zyx)
    labels_zyx = np.zeros(mask_zyx.shape, np.int32)
    labels_zyx[components.box] = components.labels_zyx
    return labels_zyx, components.voxels


def keep_largest_component(mask_zyx: Mask) -> Mask:
    """Keep the largest component, the first of equals; an empty mask stays empty."""
    components = find_components(mask_zyx)
    return components.alone(1 + int(components.voxels.argmax()), mask_zyx) if len(components.voxels) else mask_zyx


def remove_small_components(mask_zyx: Mask, min_voxels: float) -> Mask:
    """Drop components of fewer than `min_voxels` voxels; an empty mask stays empty."""
    labels_zyx, voxels = label_components(mask_zyx)
    return np.asarray(np.concatenate([[False], voxels >= min_voxels])[labels_zyx])


def grow_components(seeds_zyx: Mask, outline_zyx: Mask) -> Mask:
    """The components of both masks together that hold a voxel of `seeds_zyx`; none without seeds."""
    labels_zyx, voxels = label_components(seeds_zyx | outline_zyx)
    has_seed = np.zeros(1 + len(voxels), bool)
    has_seed[labels_zyx[seeds_zyx]] = True
    return np.asarray(has_seed[labels_zyx])


def values_beside_0_and_1(mask_zyx: npt.NDArray[Any]) -> list[float]:
    """The values of an array other than those of a mask, ascending; none for an empty mask."""
    return sorted(set(np.unique(mask_zyx).tolist()) - {0, 1})


def voxel_mm3(spacing_zyx_mm: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Volume of a voxel."""
    return float(np.prod(spacing_zyx_mm))


def equivalent_diameter_mm(volume_mm3: float) -> float:
    """Diameter of a ball of this volume; 0 for no volume."""
    return float(np.cbrt(6 * volume_mm3 / math.pi))


def lesion_diameters_mm(tumour_zyx: Mask, voxel_ml: float) -> tuple[float, ...]:
    """Equivalent diameters of the components of a mask, ascending; () for an empty mask."""
    _, voxels = label_components(tumour_zyx)
    return tuple(sorted(equivalent_diameter_mm(n * voxel_ml * 1000) for n in voxels))


def lesion_size(diameter_mm: float) -> str:
    """The size bin of a lesion, one of `LESION_SIZES`; 10 mm and 20 mm belong to the middle bin."""
    low_mm, high_mm = _MIDDLE_BIN_MM
    if diameter_mm < low_mm:
        return LESION_SIZES[0]
    return LESION_SIZES[1] if diameter_mm <= high_mm else LESION_SIZES[2]

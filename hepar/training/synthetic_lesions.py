"""Synthetic lesions, painted into the known livers of training patches where the pool has few real ones.

After Hu et al., "Label-free liver tumor segmentation", CVPR 2023: a network that sees lesions of any size, place and
contrast in real livers needs far fewer real ones. The shapes and numbers here are our own. Legend: r structure
(`LIVER`, `TUMOUR`), z y x space, n voxels; image values are those of the preprocessed image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.imaging.masks import Mask
from hepar.imaging.painting import draw_log_uniform, interpolate_nodes, partial_volume, voxel_side_mm
from hepar.imaging.preprocessing import CT_RANGE
from hepar.params import SpacingZYX
from hepar.training.sampling import Patch

DIAMETER_MM = (6.0, 45.0)  # drawn on a logarithmic scale: small lesions are the more frequent, as in patients
MAX_LESIONS = 3  # in a patch
ELONGATION = 0.3  # largest relative change of an axis
ROUGHNESS = 0.25  # relative deviation of the surface from an ellipsoid
CONTRAST = (0.15, 0.7)  # to the liver, in units of the preprocessed image: 15 to 70 HU in a CT window 205 HU wide
MR_CONTRAST = 1.5  # factor on it in MR, where a unit is one standard deviation of the body's intensities
HYPODENSE_SHARE = 0.85  # of lesions in portal-venous CT; in MR darker and brighter ones are equally frequent
RIM_SHARE = 0.2  # of lesions
MIN_LIVER_VOXELS = 200


@dataclass(frozen=True)
class _Liver:
    """Where lesions may be painted in a patch: as a mask, as voxel indices, and the median intensity there."""

    mask_zyx: Mask
    voxels_n3: npt.NDArray[np.int64]
    median: float


def add_synthetic_lesions(patch: Patch, spacing_zyx_mm: SpacingZYX, rng: np.random.Generator) -> Patch:
    """A copy of the patch with one to three more lesions, all inside liver that is known and shows no tumour.

    Lesion voxels become tumour, with the weight of the liver; the weights of all other voxels stay. A patch with fewer
    than `MIN_LIVER_VOXELS` such voxels is returned as it is.
    """
    target_rzyx, weight_rzyx = patch.target_rzyx, patch.weight_rzyx
    liver_zyx = (target_rzyx[LIVER] > 0) & (weight_rzyx[LIVER] > 0) & (target_rzyx[TUMOUR] == 0)
    if liver_zyx.sum() < MIN_LIVER_VOXELS:
        return patch
    liver = _Liver(liver_zyx, np.argwhere(liver_zyx), float(np.median(patch.image_zyx[liver_zyx])))
    patch = replace(
        patch, image_zyx=patch.image_zyx.copy(), target_rzyx=target_rzyx.copy(), weight_rzyx=weight_rzyx.copy()
    )
    for _ in range(int(rng.integers(1, MAX_LESIONS + 1))):
        _paint_lesion(patch, liver, np.asarray(spacing_zyx_mm), rng)
    return patch


def _paint_lesion(
    patch: Patch, liver: _Liver, spacing_zyx_mm: npt.NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Paint one lesion into the patch: a core, sometimes a rim, and the noise of the liver below."""
    centre_zyx = liver.voxels_n3[rng.integers(len(liver.voxels_n3))]
    radius_mm = draw_log_uniform(rng, DIAMETER_MM) / 2
    box = _bounding_box(centre_zyx, radius_mm, spacing_zyx_mm, liver.mask_zyx.shape)
    depth_zyx_mm = _lesion_depth_mm(box, centre_zyx, radius_mm, spacing_zyx_mm, rng)
    fraction_zyx = partial_volume(depth_zyx_mm, voxel_side_mm(spacing_zyx_mm)) * liver.mask_zyx[box]

    contrast = rng.uniform(*CONTRAST)
    darker = rng.random() < (HYPODENSE_SHARE if patch.modality == Modality.CT else 0.5)
    scale = 1.0 if patch.modality == Modality.CT else MR_CONTRAST
    lesion_zyx = np.full(fraction_zyx.shape, liver.median + scale * contrast * (-1 if darker else 1), np.float32)
    if rng.random() < RIM_SHARE:
        lesion_zyx[depth_zyx_mm < 0.25 * radius_mm] = liver.median + scale * rng.uniform(-0.5, 0.5) * contrast
    image_zyx = patch.image_zyx[box]
    lesion_zyx = lesion_zyx + (image_zyx - ndimage.uniform_filter(image_zyx, 3))
    if patch.modality == Modality.CT:
        lesion_zyx = np.clip(lesion_zyx, *CT_RANGE)
    image_zyx += fraction_zyx * (lesion_zyx - image_zyx)

    inside_zyx = fraction_zyx > 0.5
    patch.target_rzyx[TUMOUR][box][inside_zyx] = 1
    patch.weight_rzyx[TUMOUR][box][inside_zyx] = patch.weight_rzyx[LIVER][box][inside_zyx]


def _bounding_box(
    centre_zyx: npt.NDArray[np.int64],
    radius_mm: float,
    spacing_zyx_mm: npt.NDArray[np.float64],
    shape_zyx: tuple[int, ...],
) -> tuple[slice, ...]:
    """The part of the volume that a lesion can reach."""
    reach_zyx = np.ceil(radius_mm * (1 + ELONGATION) * (1 + 3 * ROUGHNESS) / spacing_zyx_mm).astype(int) + 1
    return tuple(
        slice(max(0, int(c) - int(r)), min(n, int(c) + int(r) + 1))
        for c, r, n in zip(centre_zyx, reach_zyx, shape_zyx, strict=True)
    )


def _lesion_depth_mm(
    box: tuple[slice, ...],
    centre_zyx: npt.NDArray[np.int64],
    radius_mm: float,
    spacing_zyx_mm: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Depth of each voxel of the box below the surface of a rough ellipsoid, float32 zyx in mm; negative outside."""
    axes = rng.uniform(1 - ELONGATION, 1 + ELONGATION, 3)
    offsets = (
        (np.arange(part.start, part.stop) - c) * s / a
        for part, c, s, a in zip(box, centre_zyx, spacing_zyx_mm, axes, strict=True)
    )
    z, y, x = np.meshgrid(*offsets, indexing="ij", sparse=True)
    knots_zyx = rng.standard_normal((4, 4, 4)).astype(np.float32)
    roughness_zyx = interpolate_nodes(knots_zyx, [part.stop - part.start for part in box])
    return np.asarray(radius_mm * (1 + ROUGHNESS * roughness_zyx) - np.sqrt(z**2 + y**2 + x**2), np.float32)

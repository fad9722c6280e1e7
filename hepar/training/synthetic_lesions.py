"""Made-up lesions in the known livers of training patches, for pools that show few real ones.

After the idea of Hu et al., "Label-free liver tumor segmentation", CVPR 2023: a network that sees lesions of any size,
place and contrast in real livers learns from far fewer real ones. The shapes and numbers here are our own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.params import SpacingZYX
from hepar.training.sampling import Patch

DIAMETER_MM = (6.0, 45.0)  # small ones are the more frequent, as in patients
MOST_AT_ONCE = 3
ELONGATION = 0.3  # of an axis, at most
ROUGHNESS = 0.25  # by how much of its radius the surface goes in and out
FAINTEST, STRONGEST = (
    0.15,
    0.7,
)  # contrast to the liver in units of the normalised image; in a CT window 205 HU wide 15 to 70
MR_CONTRAST = 1.5  # times as much in MR, where a unit is one standard deviation of the body's values
HYPODENSE_SHARE = 0.85  # of lesions in portal-venous CT; in MR either way is as likely
RIM_SHARE = 0.2
CT_RANGE = (-1.0, 1.0)  # of a prepared CT
FEWEST_LIVER_VOXELS = 200
Zyx = npt.NDArray[np.float32]


def with_lesions(patch: Patch, spacing_zyx_mm: SpacingZYX, rng: np.random.Generator) -> Patch:
    """The patch with one to three lesions more where its liver is known and no tumour is; itself where that is nowhere.

    Their voxels become tumour, known as far as the liver there is. What was not known around them stays unknown.
    """
    liver = (patch.y[LIVER] > 0) & (patch.m[LIVER] > 0) & (patch.y[TUMOUR] == 0)
    if liver.sum() < FEWEST_LIVER_VOXELS:
        return patch
    patch = replace(patch, image=patch.image.copy(), y=patch.y.copy(), m=patch.m.copy())
    level = float(np.median(patch.image[liver]))
    places = np.argwhere(liver)
    for _ in range(int(rng.integers(1, MOST_AT_ONCE + 1))):
        centre = places[rng.integers(len(places))]
        radius_mm = float(np.exp(rng.uniform(*np.log(DIAMETER_MM)))) / 2
        _implant(patch, liver, centre, radius_mm, level, np.asarray(spacing_zyx_mm), rng)
    return patch


def _implant(
    patch: Patch,
    liver: npt.NDArray[np.bool_],
    centre: npt.NDArray[np.int64],
    radius_mm: float,
    level: float,
    spacing_zyx_mm: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Paint one lesion into the box around it: its core, a rim for some, and the grain of what lay there."""
    reach = np.ceil(radius_mm * (1 + ELONGATION) * (1 + 3 * ROUGHNESS) / spacing_zyx_mm).astype(int) + 1
    box = tuple(
        slice(max(0, int(c) - int(r)), min(n, int(c) + int(r) + 1))
        for c, r, n in zip(centre, reach, liver.shape, strict=True)
    )
    inside_mm = _depth_mm(box, centre, radius_mm, spacing_zyx_mm, rng)
    voxel_mm = float(np.cbrt(np.prod(spacing_zyx_mm)))
    part = np.clip(inside_mm / voxel_mm + 0.5, 0, 1) * liver[box]  # of each voxel that is lesion

    contrast = rng.uniform(FAINTEST, STRONGEST)
    darker = rng.random() < (HYPODENSE_SHARE if patch.modality == Modality.CT else 0.5)
    scale = 1.0 if patch.modality == Modality.CT else MR_CONTRAST
    value = np.full(part.shape, level + scale * contrast * (-1 if darker else 1), np.float32)
    if rng.random() < RIM_SHARE:
        value[inside_mm < 0.25 * radius_mm] = level + scale * rng.uniform(-0.5, 0.5) * contrast
    image = patch.image[box]
    grain = image - ndimage.uniform_filter(image, 3)
    painted = value + grain
    if patch.modality == Modality.CT:
        painted = np.clip(painted, *CT_RANGE)
    image += part.astype(np.float32) * (painted - image)

    lesion = part > 0.5
    patch.y[TUMOUR][box][lesion] = 1
    patch.m[TUMOUR][box][lesion] = patch.m[LIVER][box][lesion]


def _depth_mm(
    box: tuple[slice, ...],
    centre: npt.NDArray[np.int64],
    radius_mm: float,
    spacing_zyx_mm: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> Zyx:
    """How deep each voxel of the box lies below the surface of an uneven ellipsoid, negative outside."""
    axes = rng.uniform(1 - ELONGATION, 1 + ELONGATION, 3)
    offsets = (
        (np.arange(part.start, part.stop) - c) * s / a
        for part, c, s, a in zip(box, centre, spacing_zyx_mm, axes, strict=True)
    )
    z, y, x = np.meshgrid(*offsets, indexing="ij", sparse=True)
    knots = rng.standard_normal((4, 4, 4)).astype(np.float32)
    shape = tuple(part.stop - part.start for part in box)
    uneven = ndimage.zoom(knots, [n / 4 for n in shape], order=1, mode="nearest", grid_mode=True)
    return np.asarray(radius_mm * (1 + ROUGHNESS * uneven) - np.sqrt(z**2 + y**2 + x**2), np.float32)

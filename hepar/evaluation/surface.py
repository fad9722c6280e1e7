"""Distances between the surfaces of two masks, in mm.

The surface of a mask is its voxels with a face neighbour outside (the mask minus its face-connected erosion); beyond
the edge of the image is outside. Each surface voxel is represented by its centre, and all have the same weight.
Definitions: Heimann et al., IEEE TMI 28(8), 2009; NSD: Nikolov et al., arXiv 1809.04430, with surface voxels instead of
surface area. Legend: n points, 3 coordinates zyx.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from hepar.evaluation.label_pairs import check_masks, check_spacing, joint_bounding_box
from hepar.imaging.masks import Mask
from hepar.params import SpacingZYX

NSD_TOLERANCE_MM = 2.0
# Headers store spacings in single precision: a surface exactly at the tolerance must still count as within.
_ROUNDING_MM = 1e-4


@dataclass(frozen=True)
class SurfaceScores:
    """Surface agreement of two masks; if `one_empty`, the distances are the image diagonal."""

    nsd: float
    hd95_mm: float
    assd_mm: float
    mssd_mm: float
    one_empty: bool


def surface_points_mm(mask_zyx: Mask, spacing_zyx_mm: SpacingZYX) -> NDArray[np.float64]:
    """Centres of the surface voxels, float64 n3 (z, y, x) in mm from the first voxel; 0 x 3 for an empty mask."""
    padded_zyx = np.pad(mask_zyx, 1)
    surrounded_zyx = mask_zyx.copy()
    for axis in range(3):
        for offset in (-1, 1):
            neighbour_zyx = np.roll(padded_zyx, offset, axis=axis)[1:-1, 1:-1, 1:-1]
            surrounded_zyx &= neighbour_zyx
    points_n3_mm: NDArray[np.float64] = np.argwhere(mask_zyx & ~surrounded_zyx) * np.asarray(spacing_zyx_mm)
    return points_n3_mm


def image_diagonal_mm(shape_zyx: tuple[int, ...], spacing_zyx_mm: SpacingZYX) -> float:
    """Diagonal of the whole image, edge to edge: no distance inside it can be larger."""
    return float(np.linalg.norm(np.asarray(shape_zyx) * np.asarray(spacing_zyx_mm)))


def surface_scores(
    reference_zyx: Mask,
    prediction_zyx: Mask,
    spacing_zyx_mm: SpacingZYX,
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> SurfaceScores | None:
    """Compare the surfaces of two boolean masks zyx of the same shape.

    - `nsd`: share of the voxels of both surfaces within `tolerance_mm` of the other surface, 0…1
    - `hd95_mm`: the larger of the two directed 95th percentiles
    - `assd_mm`: mean over the voxels of both surfaces
    - `mssd_mm`: the largest distance in either direction

    If exactly one mask is empty, NSD is 0, all distances are the image diagonal and `one_empty` is True; None if both
    are. Raises ValueError if the masks cannot be compared or the spacing is not positive.
    """
    check_masks(reference_zyx, prediction_zyx)
    check_spacing(spacing_zyx_mm)
    box = joint_bounding_box(reference_zyx, prediction_zyx)
    if box is None:
        return None
    reference_n3_mm = surface_points_mm(reference_zyx[box], spacing_zyx_mm)
    prediction_n3_mm = surface_points_mm(prediction_zyx[box], spacing_zyx_mm)
    if len(reference_n3_mm) == 0 or len(prediction_n3_mm) == 0:
        diagonal_mm = image_diagonal_mm(reference_zyx.shape, spacing_zyx_mm)
        return SurfaceScores(0.0, diagonal_mm, diagonal_mm, diagonal_mm, one_empty=True)
    to_prediction_n_mm = _nearest_mm(reference_n3_mm, prediction_n3_mm)
    to_reference_n_mm = _nearest_mm(prediction_n3_mm, reference_n3_mm)
    both_n_mm = np.concatenate([to_prediction_n_mm, to_reference_n_mm])
    return SurfaceScores(
        nsd=float(np.mean(both_n_mm <= tolerance_mm + _ROUNDING_MM)),
        hd95_mm=float(max(np.percentile(to_prediction_n_mm, 95), np.percentile(to_reference_n_mm, 95))),
        assd_mm=float(both_n_mm.mean()),
        mssd_mm=float(both_n_mm.max()),
        one_empty=False,
    )


def _nearest_mm(from_n3_mm: NDArray[np.float64], to_m3_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each of n points to the nearest of m others, float64 n."""
    # Median splits are slow if many points share a coordinate, as on a grid; midpoint splits are not.
    tree = KDTree(to_m3_mm, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(from_n3_mm)[0], dtype=np.float64)

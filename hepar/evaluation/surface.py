"""Distances between the surfaces of two masks, in mm.

The surface of a mask is its voxels with a face neighbour outside (the mask minus its face-connected erosion); beyond
the edge of the image is outside. Each surface voxel is represented by its centre, and all have the same weight; the
area-weighted form is given beside it. Definitions: Heimann et al., IEEE TMI 28(8), 2009; NSD: Nikolov et al., arXiv
1809.04430, with surface voxels instead of surface area. Legend: n points, 3 coordinates zyx.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from hepar.evaluation.label_pairs import check_masks, check_spacing, joint_bounding_box
from hepar.evaluation.surface_area import neighbourhood_codes, surface_element_areas_mm2
from hepar.imaging.masks import Mask
from hepar.params import SizeZYX, SpacingZYX

NSD_TOLERANCE_MM = 2.0
# Headers store spacings in single precision: a surface exactly at the tolerance must still count as within.
_ROUNDING_MM = 1e-4
_PERCENT = 95
Lengths = NDArray[np.float64]


@dataclass(frozen=True)
class AreaWeightedScores:
    """Surface agreement of two masks by area, see `surface_scores`."""

    nsd: float
    hd95_mm: float
    assd_mm: float


@dataclass(frozen=True)
class SurfaceScores:
    """Surface agreement of two masks; if `one_empty`, the distances are the image diagonal."""

    nsd: float
    hd95_mm: float
    assd_mm: float
    mssd_mm: float
    area_weighted: AreaWeightedScores
    one_empty: bool


def surface_voxels(mask_zyx: Mask) -> Mask:
    """The surface voxels of a mask, bool of the same shape; none for an empty mask."""
    padded_zyx = np.pad(mask_zyx, 1)
    surrounded_zyx = mask_zyx.copy()
    for axis in range(3):
        for neighbours in (slice(None, -2), slice(2, None)):
            place = [slice(1, -1)] * 3
            place[axis] = neighbours
            surrounded_zyx &= padded_zyx[tuple(place)]
    return mask_zyx & ~surrounded_zyx


def image_diagonal_mm(shape_zyx: tuple[int, ...], spacing_zyx_mm: SpacingZYX) -> float:
    """Diagonal of the whole image, edge to edge: no distance inside it can be larger."""
    return float(np.linalg.norm(np.asarray(shape_zyx) * np.asarray(spacing_zyx_mm)))


def surface_scores(
    reference_zyx: Mask,
    prediction_zyx: Mask,
    spacing_zyx_mm: SpacingZYX,
    tolerance_mm: float = NSD_TOLERANCE_MM,
    size_zyx: SizeZYX | None = None,
) -> SurfaceScores | None:
    """Compare the surfaces of two boolean masks zyx of the same shape.

    - `nsd`: share of the voxels of both surfaces within `tolerance_mm` of the other surface, 0…1
    - `hd95_mm`: the larger of the two directed 95th percentiles
    - `assd_mm`: mean over the voxels of both surfaces
    - `mssd_mm`: the largest distance in either direction

    In the area-weighted form (Nikolov et al. and their package surface-distance) the surface is that of marching cubes,
    whose elements stand for their area at the corners of voxels: `nsd` is a share of both areas, `hd95_mm` the larger
    of the least distances within which 95 % of an area lie, `assd_mm` the mean over both areas.

    If exactly one mask is empty, NSD is 0, all distances are the diagonal of the image and `one_empty` is True; None if
    both are. `size_zyx` is that of the image, if the masks are a part of it that holds all their voxels. Raises
    ValueError if the masks cannot be compared or the spacing is not positive.
    """
    check_masks(reference_zyx, prediction_zyx)
    check_spacing(spacing_zyx_mm)
    box = joint_bounding_box(reference_zyx, prediction_zyx)
    if box is None:
        return None
    if not (reference_zyx.any() and prediction_zyx.any()):
        diagonal_mm = image_diagonal_mm(size_zyx or reference_zyx.shape, spacing_zyx_mm)
        by_area = AreaWeightedScores(0.0, diagonal_mm, diagonal_mm)
        return SurfaceScores(0.0, diagonal_mm, diagonal_mm, diagonal_mm, by_area, one_empty=True)
    surfaces = surface_voxels(reference_zyx[box]), surface_voxels(prediction_zyx[box])
    to_prediction_n_mm = distances_mm(*surfaces, spacing_zyx_mm)
    to_reference_n_mm = distances_mm(*surfaces[::-1], spacing_zyx_mm)
    both_n_mm = np.concatenate([to_prediction_n_mm, to_reference_n_mm])
    return SurfaceScores(
        nsd=float(np.mean(both_n_mm <= tolerance_mm + _ROUNDING_MM)),
        hd95_mm=float(max(np.percentile(to_prediction_n_mm, _PERCENT), np.percentile(to_reference_n_mm, _PERCENT))),
        assd_mm=float(both_n_mm.mean()),
        mssd_mm=float(both_n_mm.max()),
        area_weighted=_area_weighted(reference_zyx[box], prediction_zyx[box], spacing_zyx_mm, tolerance_mm),
        one_empty=False,
    )


def distances_mm(from_zyx: Mask, to_zyx: Mask, spacing_zyx_mm: SpacingZYX) -> Lengths:
    """Distance from each voxel of a mask, in scan order, to the nearest of another one, which must not be empty."""
    index_n = np.flatnonzero(from_zyx)
    apart_n = ~to_zyx.ravel()[index_n]
    distance_n_mm = np.zeros(len(index_n))
    to_m3_mm = _positions_mm(np.flatnonzero(to_zyx), to_zyx.shape, spacing_zyx_mm)
    # Median splits are slow if many points share a coordinate, as on a grid; midpoint splits are not.
    tree = KDTree(to_m3_mm, balanced_tree=False, compact_nodes=False)
    distance_n_mm[apart_n] = tree.query(_positions_mm(index_n[apart_n], from_zyx.shape, spacing_zyx_mm))[0]
    return distance_n_mm


def _positions_mm(index_n: NDArray[np.int64], shape_zyx: tuple[int, ...], spacing_zyx_mm: SpacingZYX) -> Lengths:
    """Positions of voxels given by their number in scan order, float64 n3 (z, y, x), from the first voxel."""
    index_n3 = np.stack(np.unravel_index(index_n, shape_zyx), axis=-1)
    return np.asarray(index_n3 * np.asarray(spacing_zyx_mm), dtype=np.float64)


def _area_weighted(
    reference_zyx: Mask, prediction_zyx: Mask, spacing_zyx_mm: SpacingZYX, tolerance_mm: float
) -> AreaWeightedScores:
    """The scores of two masks of which neither is empty."""
    area_of_code_mm2 = surface_element_areas_mm2(spacing_zyx_mm)
    codes = [neighbourhood_codes(mask_zyx) for mask_zyx in (reference_zyx, prediction_zyx)]
    surfaces = [area_of_code_mm2[code_zyx] > 0 for code_zyx in codes]
    areas_mm2 = [area_of_code_mm2[code_zyx[on_zyx]] for code_zyx, on_zyx in zip(codes, surfaces, strict=True)]
    pairs = zip(surfaces, surfaces[::-1], strict=True)
    lengths_mm = [distances_mm(from_zyx, to_zyx, spacing_zyx_mm) for from_zyx, to_zyx in pairs]
    area_n_mm2, length_n_mm = np.concatenate(areas_mm2), np.concatenate(lengths_mm)
    return AreaWeightedScores(
        nsd=float(area_n_mm2[length_n_mm <= tolerance_mm + _ROUNDING_MM].sum() / area_n_mm2.sum()),
        hd95_mm=max(_area_percentile(*pair) for pair in zip(lengths_mm, areas_mm2, strict=True)),
        assd_mm=float((length_n_mm * area_n_mm2).sum() / area_n_mm2.sum()),
    )


def _area_percentile(length_n_mm: Lengths, area_n_mm2: NDArray[np.float64]) -> float:
    """The least distance within which 95 % of an area lie."""
    order_n = np.argsort(length_n_mm, kind="stable")
    share_n = np.cumsum(area_n_mm2[order_n]) / area_n_mm2.sum()
    place = min(int(np.searchsorted(share_n, _PERCENT / 100)), len(order_n) - 1)
    return float(length_n_mm[order_n[place]])

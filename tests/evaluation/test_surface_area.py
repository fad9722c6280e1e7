"""Areas of surfaces against geometry, and area-weighted distances against DeepMind's surface-distance."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import surface_distance
from scipy import ndimage
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area

from hepar.evaluation.surface import surface_scores
from hepar.evaluation.surface_area import neighbourhood_codes, surface_element_areas_mm2

SPACINGS_MM = [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (2.0, 1.5, 0.9)]


def area_mm2(mask_zyx: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    return float(surface_element_areas_mm2(spacing_mm)[neighbourhood_codes(mask_zyx)].sum())


def test_the_area_of_a_voxel_is_that_of_an_octahedron() -> None:
    # six corners half a voxel from its centre: eight triangles of sides √½
    assert area_mm2(np.ones((1, 1, 1), bool), (1.0, 1.0, 1.0)) == pytest.approx(8 * math.sqrt(3) / 4 / 2)


def test_the_area_of_a_plate_grows_by_its_two_faces() -> None:
    """From n to n + 1 rows, all edges stay and two faces of 30 × 1 voxels are added, and the rims of two columns."""
    spacing_mm = (3.0, 2.0, 0.5)
    first, second, third = (area_mm2(np.ones((4, rows, 30), bool), spacing_mm) for rows in (10, 11, 12))
    assert third - second == pytest.approx(second - first)
    across_z, across_x = 2 * 30 * 2 * 0.5, 2 * 4 * 3 * 2
    rims = 4 * 2 * (math.hypot(3 / 2, 0.5 / 2) - 3 / 2 - 0.5 / 2)  # a cut corner instead of two half faces
    assert second - first == pytest.approx(across_z + across_x + rims)


@pytest.mark.parametrize("spacing_mm", SPACINGS_MM)
def test_the_areas_are_those_of_surface_distance(spacing_mm: tuple[float, float, float]) -> None:
    """It numbers the eight voxels from the other end; the areas are the same."""
    theirs = create_table_neighbour_code_to_surface_area(spacing_mm)
    ours = surface_element_areas_mm2(spacing_mm)
    backwards = [int(f"{code:08b}"[::-1], 2) for code in range(256)]
    np.testing.assert_allclose(ours[backwards], theirs, rtol=1e-14)


def blobs(rng: np.random.Generator, size_zyx: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that overlap; the second is the first with other noise."""
    smooth = ndimage.gaussian_filter(rng.normal(size=size_zyx), 2)
    level = np.quantile(smooth, rng.uniform(0.6, 0.9))
    return smooth > level, smooth + 0.05 * rng.normal(size=size_zyx) > level


def theirs(one: np.ndarray, other: np.ndarray, spacing_mm: tuple[float, float, float]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it calls names that SciPy has moved
        return dict(surface_distance.compute_surface_distances(one, other, spacing_mm))


@pytest.mark.parametrize("seed", range(12))
def test_area_weighted_scores_are_those_of_surface_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, y, x = rng.uniform(0.5, 4, 3)
    reference_zyx, prediction_zyx = blobs(rng, tuple(rng.integers(6, 24, 3)))
    scores = surface_scores(reference_zyx, prediction_zyx, (z, y, x))
    found = theirs(reference_zyx, prediction_zyx, (z, y, x))
    lengths = np.concatenate([found["distances_gt_to_pred"], found["distances_pred_to_gt"]])
    areas = np.concatenate([found["surfel_areas_gt"], found["surfel_areas_pred"]])
    assert scores is not None
    assert scores.area_weighted.assd_mm == pytest.approx((lengths * areas).sum() / areas.sum(), rel=1e-12)
    assert scores.area_weighted.hd95_mm == pytest.approx(
        surface_distance.compute_robust_hausdorff(found, 95), rel=1e-12
    )
    assert scores.area_weighted.nsd == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(found, 2.0), rel=1e-12
    )


def test_a_shifted_plate_is_as_far_away_as_it_was_shifted() -> None:
    reference_zyx, prediction_zyx = (np.zeros((8, 20, 20), bool) for _ in range(2))
    reference_zyx[1], prediction_zyx[5] = True, True
    scores = surface_scores(reference_zyx, prediction_zyx, (2.5, 1.0, 1.0))
    assert scores is not None
    # a plate has elements on both of its faces: the inner ones are 7.5 mm from the other plate, the outer ones 10 mm
    assert scores.area_weighted.hd95_mm == 4 * 2.5
    assert 3 * 2.5 < scores.area_weighted.assd_mm < 4 * 2.5
    assert scores.area_weighted.nsd == 0


def test_one_empty_mask_is_the_diagonal_away() -> None:
    mask_zyx = np.ones((3, 4, 12), bool)
    scores = surface_scores(mask_zyx, np.zeros_like(mask_zyx), (1.0, 1.0, 1.0))
    assert scores is not None
    assert (scores.area_weighted.nsd, scores.area_weighted.hd95_mm, scores.area_weighted.assd_mm) == (0, 13, 13)

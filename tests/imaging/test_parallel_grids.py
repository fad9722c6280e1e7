"""Resampling between parallel grids agrees with that by SimpleITK, and arrays are turned as it turns volumes."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from hepar.imaging.parallel_grids import box_on, resample_part, shared_slices, turned, turned_box
from hepar.imaging.volumes import Geometry, resample, to_array, to_image

OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
GRID = Geometry((30, 40, 50), (3.0, 1.0, 0.8), (10.0, -20.0, 5.0), OBLIQUE)


def waves() -> np.ndarray:
    """Waves of 30 to 40 mm with an amplitude of 100, which a grid of 5 mm still holds."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in GRID.size_zyx), indexing="ij")
    return (100 * np.sin(z * 3.0 / 6) * np.cos(y / 5) + 50 * np.sin(x * 0.8 / 5 + 1)).astype(np.int16)


@pytest.mark.parametrize("spacing_zyx_mm", [(5.0, 4.0, 3.0), (1.0, 0.5, 0.8), (3.0, 1.0, 2.5)])
def test_a_part_is_what_the_whole_scan_resampled_by_simpleitk_has_there(
    spacing_zyx_mm: tuple[float, float, float],
) -> None:
    array_zyx, target = waves(), GRID.with_spacing(spacing_zyx_mm)
    expected_zyx = to_array(resample(to_image(array_zyx, GRID), target))
    part = tuple(slice(n // 4, n // 4 + n // 2) for n in target.size_zyx)
    found_zyx = resample_part(array_zyx, GRID, target.cropped(part))
    assert found_zyx.dtype == np.float32
    assert np.abs(found_zyx - expected_zyx[part]).max() < 1.5  # of 300; ITK's recursive Gaussian is an approximation
    assert np.abs(resample_part(array_zyx, GRID, target) - expected_zyx).mean() < 0.5


def test_a_part_has_the_bytes_of_the_whole() -> None:
    """As sums of BLAS have not: their order depends on shapes, threads and addresses, so containers differed."""
    noise_zyx = np.random.default_rng(1).normal(0, 300, GRID.size_zyx).astype(np.float32)
    target = GRID.with_spacing((5.0, 4.0, 3.0))
    whole_zyx = resample_part(noise_zyx, GRID, target)
    for share in range(2, 6):
        part = tuple(slice(0, n // share) for n in target.size_zyx)
        assert np.array_equal(resample_part(noise_zyx, GRID, target.cropped(part)), whole_zyx[part])


def test_beyond_the_scan_its_border_voxel_counts_and_one_slice_stays() -> None:
    ramp_zyx = np.arange(4, dtype=np.int16).reshape(1, 1, 4)
    grid = Geometry((1, 1, 4), (5.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    wider = Geometry((2, 1, 6), (5.0, 1.0, 1.0), (-1.0, 0.0, 0.0), grid.direction)
    assert resample_part(ramp_zyx, grid, wider)[:, 0].tolist() == [[0, 0, 1, 2, 3, 3]] * 2


@pytest.mark.parametrize("orientation", ["RAS", "SLP", "AIR"])
def test_arrays_and_boxes_turn_with_the_axes(orientation: str) -> None:
    image = to_image(np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4), Geometry((2, 3, 4), *_upright()))
    other = sitk.DICOMOrient(image, orientation)
    source, target = Geometry.of(image), Geometry.of(other)
    assert np.array_equal(turned(to_array(image), source, target), to_array(other))
    box = (slice(1, 2), slice(0, 2), slice(1, 3))
    part_zyx = turned(to_array(image)[box], source, target)
    assert np.array_equal(to_array(other)[turned_box(box, source, target)], part_zyx)


def _upright() -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    return (2.0, 1.0, 1.0), (1.0, 2.0, 3.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def test_a_box_lies_at_the_same_place_on_another_grid_and_has_at_least_a_voxel() -> None:
    grid = Geometry((10, 10, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    box = (slice(2, 5), slice(0, 10), slice(4, 5))  # in x, between the centres of two voxels of 4 mm
    assert box_on(box, grid, grid.with_spacing((1.0, 1.0, 4.0))) == (slice(4, 10), slice(0, 20), slice(2, 3))


def test_boxes_share_what_lies_in_both() -> None:
    one, other = (slice(2, 6), slice(0, 3)), (slice(4, 9), slice(1, 3))
    assert shared_slices(one, other) == ((slice(2, 4), slice(1, 3)), (slice(0, 2), slice(0, 2)))
    assert shared_slices(one, (slice(6, 9), slice(1, 3))) is None

"""Diameters of lesions: by geometry that can be computed by hand, in straight, oblique and anisotropic grids."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.transform import Rotation

from hepar.imaging.diameters import axial_diameters, axial_tilt_degrees, outline_segments, slice_axis
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Geometry

STRAIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
MIRRORED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # columns to the patient's right, feet first
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)  # slices from front to back, rows from head to feet
OBLIQUE = tuple(Rotation.from_euler("xyz", (17, -9, 25), degrees=True).as_matrix().ravel().tolist())
Vectors = npt.NDArray[np.float64]


def grid(direction: tuple[float, ...], spacing_zyx_mm: tuple[float, float, float], size: int = 60) -> Geometry:
    size_zyx = tuple(round(size / mm) for mm in spacing_zyx_mm)
    return Geometry((size_zyx[0], size_zyx[1], size_zyx[2]), spacing_zyx_mm, (-12.0, 7.0, 30.0), direction)


def centres_lps_mm(geometry: Geometry) -> Vectors:
    index_n3 = np.indices(geometry.size_zyx).reshape(3, -1).T[:, ::-1] * geometry.spacing_zyx_mm[::-1]
    return np.asarray(geometry.origin_xyz_mm + index_n3 @ np.array(geometry.direction).reshape(3, 3).T)


def ellipsoid(geometry: Geometry, axes: Vectors, radii_mm: tuple[float, ...]) -> tuple[Mask, Vectors]:
    """The voxels whose centres lie in an ellipsoid in the middle of a voxel, and the matrix of its quadratic form."""
    z, y, x = (n // 2 for n in geometry.size_zyx)
    offset_n3 = centres_lps_mm(geometry) - geometry.to_lps_mm((z, y, x))
    form = axes.T @ np.diag(1 / np.array(radii_mm) ** 2) @ axes
    inside_n = np.einsum("ni,ij,nj->n", offset_n3, form, offset_n3) <= 1
    return inside_n.reshape(geometry.size_zyx), form


def diameters_of_section(form: Vectors, geometry: Geometry) -> list[float]:
    """The two diameters of the ellipse in which the middle slice cuts an ellipsoid, in mm, the longer first."""
    direction = np.array(geometry.direction).reshape(3, 3)
    plane = np.delete(direction, 2 - slice_axis(geometry), axis=1)
    return sorted((2 / math.sqrt(value) for value in np.linalg.eigvalsh(plane.T @ form @ plane)), reverse=True)


@pytest.mark.parametrize("direction", [STRAIGHT, MIRRORED, CORONAL, OBLIQUE])
@pytest.mark.parametrize("spacing_zyx_mm", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.7), (2.5, 0.8, 1.4)])
@pytest.mark.parametrize("turn_degrees", [(0, 0, 0), (0, 0, 33), (20, 30, 65)])
def test_an_ellipsoid_has_the_diameters_of_its_section(
    direction: tuple[float, ...], spacing_zyx_mm: tuple[float, float, float], turn_degrees: tuple[int, int, int]
) -> None:
    geometry = grid(direction, spacing_zyx_mm)
    axes = Rotation.from_euler("xyz", turn_degrees, degrees=True).as_matrix()
    lesion_zyx, form = ellipsoid(geometry, axes, (21.0, 13.0, 9.0))
    found, (longest_mm, across_mm) = axial_diameters(lesion_zyx, geometry), diameters_of_section(form, geometry)
    pixel_mm = max(np.delete(spacing_zyx_mm, slice_axis(geometry)))
    assert found.longest.length_mm == pytest.approx(longest_mm, abs=pixel_mm)
    assert found.perpendicular.length_mm == pytest.approx(across_mm, abs=1.3 * pixel_mm)


def test_both_lines_lie_in_the_slice_at_a_right_angle_and_have_their_length() -> None:
    geometry = grid(OBLIQUE, (2.5, 0.8, 1.4))
    lesion_zyx, _ = ellipsoid(geometry, Rotation.from_euler("z", 40, degrees=True).as_matrix(), (20.0, 11.0, 9.0))
    found = axial_diameters(lesion_zyx, geometry)
    ends = [np.array(line.ends_lps_mm) for line in (found.longest, found.perpendicular)]
    lines = [second - first for first, second in ends]
    normal = np.array(OBLIQUE).reshape(3, 3)[:, 2]
    assert lines[0] @ lines[1] == pytest.approx(0, abs=1e-6)
    assert [float(np.linalg.norm(line)) for line in lines] == pytest.approx(
        [found.longest.length_mm, found.perpendicular.length_mm]
    )
    height_mm = normal @ np.array(geometry.to_lps_mm((found.slice_index, 0, 0)))
    assert np.concatenate(ends) @ normal == pytest.approx([height_mm] * 4)


@pytest.mark.parametrize(
    ("rows", "longest_mm", "across_mm"),
    [
        (["#"], 3.0, 2.0),  # pixels of 2 mm by 3 mm
        (["###"], 9.0, 2.0),
        (["#", "#", "#"], 6.0, 3.0),
        (["#.#", "###"], math.hypot(9, 2), None),  # from the left side of one horn to the right side of the foot
    ],
)
def test_few_pixels_have_the_diameters_of_their_outline(
    rows: list[str], longest_mm: float, across_mm: float | None
) -> None:
    geometry = Geometry((1, 5, 5), (4.0, 2.0, 3.0), (0.0, 0.0, 0.0), STRAIGHT)
    lesion_zyx = np.zeros(geometry.size_zyx, bool)
    for y, row in enumerate(rows):
        lesion_zyx[0, y + 1, 1 : 1 + len(row)] = [sign == "#" for sign in row]
    found = axial_diameters(lesion_zyx, geometry)
    assert found.longest.length_mm == pytest.approx(longest_mm)
    if across_mm is not None:
        assert found.perpendicular.length_mm == pytest.approx(across_mm)


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_of_two_equal_diameters_that_with_the_longer_perpendicular_counts(quarters: int, mirrored: bool) -> None:
    rows = ["##..", "####", "####", "####"]  # two lines of 5 mm; 3.75 mm and 30/7 mm across them
    lesion_yx = np.rot90([[sign == "#" for sign in row] for row in rows], quarters)
    lesion_zyx = np.ascontiguousarray((lesion_yx.T if mirrored else lesion_yx)[None])
    found = axial_diameters(lesion_zyx, Geometry((1, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), STRAIGHT))
    assert (found.longest.length_mm, found.perpendicular.length_mm) == pytest.approx((5.0, 30 / 7))


def test_parts_that_are_separate_on_a_slice_are_measured_one_by_one() -> None:
    lesion_zyx = np.zeros((3, 20, 20), bool)
    lesion_zyx[0:2, 2, 2:4] = lesion_zyx[0:2, 2, 14:18] = True
    lesion_zyx[2, 2:4, 9] = True
    geometry = Geometry(lesion_zyx.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), STRAIGHT)
    assert axial_diameters(lesion_zyx, geometry).longest.length_mm == pytest.approx(4.0)


def test_the_slice_with_the_longest_diameter_is_named_in_the_stored_order() -> None:
    lesion_zyx = np.zeros((8, 20, 20), bool)
    lesion_zyx[2:7, 9, 8:11] = True
    lesion_zyx[5, 9, 4:13] = True
    geometry = Geometry(lesion_zyx.shape, (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), MIRRORED)
    found = axial_diameters(lesion_zyx, geometry)
    assert (found.slice_index, found.longest.length_mm) == (5, pytest.approx(9.0))


def test_axial_slices_of_a_coronal_scan_run_along_its_rows() -> None:
    geometry = grid(CORONAL, (5.0, 1.0, 1.0))
    lesion_zyx = np.zeros(geometry.size_zyx, bool)
    lesion_zyx[3, 10:30, 20] = True  # 20 mm from head to feet, 5 mm from front to back
    found = axial_diameters(lesion_zyx, geometry)
    assert slice_axis(geometry) == 1
    assert (found.longest.length_mm, found.perpendicular.length_mm) == pytest.approx((5.0, 1.0))


def test_tilt_is_the_angle_to_the_long_axis_of_the_patient() -> None:
    tilted = tuple(Rotation.from_euler("x", 20, degrees=True).as_matrix().ravel().tolist())
    assert axial_tilt_degrees(grid(tilted, (1.0, 1.0, 1.0))) == pytest.approx(20)
    assert axial_tilt_degrees(grid(CORONAL, (1.0, 1.0, 1.0))) == 0


@pytest.mark.parametrize("corners", [((0, 0), (1, 1)), ((0, 1), (1, 0))])
def test_pixels_that_touch_at_a_corner_have_outlines_of_their_own(corners: tuple[tuple[int, int], ...]) -> None:
    both_yx, outlines = np.zeros((2, 2), bool), []
    for corner in corners:
        one_yx = np.zeros((2, 2), bool)
        one_yx[corner] = both_yx[corner] = True
        outlines += as_lines(outline_segments(one_yx))
    assert sorted(as_lines(outline_segments(both_yx))) == sorted(outlines)
    assert len(outlines) == 8


def as_lines(outline_s22: Vectors) -> list[list[list[float]]]:
    return [sorted(ends) for ends in outline_s22.tolist()]


def test_an_empty_mask_has_no_diameter() -> None:
    with pytest.raises(ValueError, match="empty"):
        axial_diameters(np.zeros((2, 2, 2), bool), Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), STRAIGHT))

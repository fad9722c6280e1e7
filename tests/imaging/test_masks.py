"""Masks by geometry that can be computed by hand, and the body on phantoms with a known one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hepar.cases import Modality
from hepar.imaging.masks import (
    LESION_SIZES,
    Mask,
    body_mask,
    bounding_box,
    dilate,
    equivalent_diameter_mm,
    fill_holes,
    grow_components,
    keep_largest_component,
    label_components,
    lesion_diameters_mm,
    lesion_size,
    remove_small_components,
    values_beside_0_and_1,
    voxel_mm3,
)
from hepar.phantoms import make_phantom
from hepar.phantoms.anatomy import Tissue

EMPTY = np.zeros((4, 5, 6), bool)


def boxes(*corners: tuple[slice, slice, slice]) -> Mask:
    mask_zyx = np.zeros((9, 10, 12), bool)
    for box in corners:
        mask_zyx[box] = True
    return mask_zyx


TWO = boxes((slice(1, 3), slice(1, 3), slice(1, 3)), (slice(5, 8), slice(5, 8), slice(5, 8)))  # 8 and 27 voxels


def dice(one: Mask, other: Mask) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_the_body_in_ct_lies_above_minus_400_hu() -> None:
    assert body_mask(np.array([[[-1000.0, -400.0, -399.0, 60.0]]]), Modality.CT).tolist() == [
        [[False, False, True, True]]
    ]


@pytest.mark.parametrize("air", [0.0, -1000.0])
def test_the_body_in_mr_lies_above_a_tenth_of_the_way_from_air_to_the_99th_percentile(air: float) -> None:
    image_zyx = np.full((10, 10, 10), air + 200)
    image_zyx[0, 0, :4] = air + np.array([0.0, 19.0, 20.0, 21.0])
    assert body_mask(image_zyx, Modality.MR)[0, 0, :5].tolist() == [False, False, False, True, True]


def test_a_shifted_or_z_scored_mr_has_the_body_of_the_original() -> None:
    phantom = make_phantom(2, "MR", "T1", size_zyx=(24, 40, 40))
    image_zyx = phantom.image_zyx.astype(np.float64)
    body_zyx = body_mask(image_zyx, Modality.MR)
    assert 0.1 < body_zyx.mean() < 0.9
    for other_zyx in (image_zyx - 1000, (image_zyx - image_zyx.mean()) / image_zyx.std(), 30 * image_zyx):
        assert (body_mask(other_zyx, Modality.MR) != body_zyx).mean() < 1e-3  # a voxel on the bound may round over it


def test_an_mr_without_air_is_all_body() -> None:
    """Air is at most 0 in a scan that was not shifted below it."""
    assert body_mask(np.random.default_rng(0).uniform(100, 300, (8, 8, 8)), Modality.MR).all()


@pytest.mark.parametrize("sequence", ["T1", "T2", "hepatobiliary"])
@pytest.mark.parametrize("seed", [2, 4])  # without oral contrast
def test_a_tenth_finds_the_body_of_mr_better_than_a_twentieth_and_keeps_the_liver(seed: int, sequence: str) -> None:
    phantom = make_phantom(seed, "MR", sequence, size_zyx=(40, 64, 64))
    true_zyx = ~np.isin(phantom.tissue_zyx, (Tissue.AIR, Tissue.LUNG))
    body_zyx = body_mask(phantom.image_zyx, Modality.MR)
    twentieth_zyx = phantom.image_zyx > 0.05 * np.percentile(phantom.image_zyx, 99)
    assert dice(body_zyx, true_zyx) > dice(twentieth_zyx, true_zyx)
    assert dice(body_zyx, true_zyx) > 0.8
    assert body_zyx[phantom.liver_zyx].mean() >= 0.99


@pytest.mark.parametrize(("seed", "sequence"), [(0, "T1"), (1, "hepatobiliary"), (6, "hepatobiliary")])
def test_the_body_keeps_the_liver_of_patients_with_bright_bowel(seed: int, sequence: str) -> None:
    phantom = make_phantom(seed, "MR", sequence, size_zyx=(40, 64, 64))
    content_n, liver_n = (phantom.image_zyx[phantom.tissue_zyx == tissue] for tissue in (Tissue.CONTENT, Tissue.LIVER))
    assert np.median(content_n) > 3 * np.median(liver_n)
    assert body_mask(phantom.image_zyx, Modality.MR)[phantom.liver_zyx].mean() >= 0.99


def test_dilation_is_measured_in_millimetres_and_includes_the_radius() -> None:
    mask_zyx = np.zeros((7, 7, 7), bool)
    mask_zyx[3, 3, 3] = True
    index_zyx = np.indices(mask_zyx.shape) - 3
    distance_zyx_mm = np.sqrt((5.0 * index_zyx[0]) ** 2 + index_zyx[1] ** 2 + (2.0 * index_zyx[2]) ** 2)
    for radius_mm in (0.0, 2.0, 5.0):
        assert np.array_equal(dilate(mask_zyx, (5.0, 1.0, 2.0), radius_mm), distance_zyx_mm <= radius_mm)
    # along y 2 voxels both ways, along x 1 both ways, none of the diagonals and neighbouring slices
    assert dilate(mask_zyx, (5.0, 1.0, 2.0), 2.0).sum() == 7


def test_an_empty_mask_stays_empty() -> None:
    for result_zyx in (
        dilate(EMPTY, (1.0, 1.0, 1.0), 10.0),
        fill_holes(EMPTY),
        keep_largest_component(EMPTY),
        remove_small_components(EMPTY, 5),
    ):
        assert result_zyx.shape == EMPTY.shape
        assert not result_zyx.any()
    labels_zyx, voxels = label_components(EMPTY)
    assert not labels_zyx.any()
    assert voxels.tolist() == []
    assert lesion_diameters_mm(EMPTY, voxel_ml=0.001) == ()


def test_enclosed_holes_are_filled_and_open_ones_are_not() -> None:
    whole_zyx = boxes((slice(2, 7), slice(2, 7), slice(2, 7)))
    hollow_zyx = whole_zyx.copy()
    hollow_zyx[4, 4, 4] = False
    assert np.array_equal(fill_holes(hollow_zyx), whole_zyx)
    open_zyx = hollow_zyx.copy()
    open_zyx[4, 4, 4:] = False  # a channel to the outside
    assert np.array_equal(fill_holes(open_zyx), open_zyx)


def test_components_are_connected_by_faces_and_numbered_in_scan_order() -> None:
    labels_zyx, voxels = label_components(TWO)
    assert labels_zyx.dtype == np.int32
    assert (labels_zyx[1, 1, 1], labels_zyx[5, 5, 5]) == (1, 2)
    assert voxels.tolist() == [8, 27]
    corner_zyx = boxes((slice(0, 1), slice(0, 1), slice(0, 1)), (slice(1, 2), slice(1, 2), slice(0, 1)))
    assert label_components(corner_zyx)[1].tolist() == [1, 1]  # they share an edge only


def test_the_largest_component_is_kept_the_first_of_equals() -> None:
    assert np.array_equal(keep_largest_component(TWO), boxes((slice(5, 8), slice(5, 8), slice(5, 8))))
    first = (slice(0, 2), slice(0, 2), slice(0, 2))
    assert np.array_equal(
        keep_largest_component(boxes(first, (slice(5, 7), slice(5, 7), slice(5, 7)))),
        boxes(first),
    )


@pytest.mark.parametrize(("min_voxels", "kept"), [(8, 35), (8.5, 27), (27, 27), (28, 0)])
def test_components_below_the_bound_are_removed(min_voxels: float, kept: int) -> None:
    assert remove_small_components(TWO, min_voxels).sum() == kept


def test_a_ball_has_its_own_diameter() -> None:
    assert equivalent_diameter_mm(4 / 3 * math.pi * 5.0**3) == pytest.approx(10.0)
    assert equivalent_diameter_mm(0.0) == 0.0


def test_lesions_are_measured_by_component_in_ascending_order() -> None:
    assert lesion_diameters_mm(TWO, voxel_ml=0.002) == pytest.approx(
        [(6 * 16 / math.pi) ** (1 / 3), (6 * 54 / math.pi) ** (1 / 3)]
    )


@pytest.mark.parametrize(
    ("diameter_mm", "size"),
    [(0.0, 0), (9.99, 0), (10.0, 1), (15.0, 1), (20.0, 1), (20.01, 2), (80.0, 2)],
)
def test_both_bounds_belong_to_the_middle_lesion_size(diameter_mm: float, size: int) -> None:
    assert lesion_size(diameter_mm) == LESION_SIZES[size]


def test_a_bounding_box_holds_every_voxel_and_no_empty_plane() -> None:
    mask_zyx = EMPTY.copy()
    mask_zyx[1, 2, 3] = mask_zyx[3, 2, 5] = True  # two components in one box
    assert bounding_box(mask_zyx) == (slice(1, 4), slice(2, 3), slice(3, 6))
    assert bounding_box(mask_zyx[1]) == (slice(2, 3), slice(3, 4))
    assert bounding_box(EMPTY) is None


def test_values_beside_0_and_1_are_named() -> None:
    assert values_beside_0_and_1(np.array([0, 1, 3, 2, 3])) == [2, 3]
    assert values_beside_0_and_1(EMPTY) == []


def test_the_volume_of_a_voxel_is_the_product_of_its_sides() -> None:
    assert voxel_mm3((5.0, 2.0, 0.5)) == 5.0


def test_seeds_grow_into_what_touches_them_and_into_nothing_else() -> None:
    outline_zyx = np.zeros((3, 4, 12), bool)
    outline_zyx[1, 1, 1:5] = outline_zyx[1, 1, 6:9] = True
    seeds_zyx = np.zeros_like(outline_zyx)
    seeds_zyx[1, 1, 2] = seeds_zyx[1, 2, 2] = seeds_zyx[2, 3, 10] = True
    expected_zyx = seeds_zyx.copy()
    expected_zyx[1, 1, 1:5] = True
    assert np.array_equal(grow_components(seeds_zyx, outline_zyx), expected_zyx)
    assert not grow_components(np.zeros_like(seeds_zyx), outline_zyx).any()

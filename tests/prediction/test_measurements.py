"""Measurements of segmented scans made of boxes and balls, whose values can be computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.transform import Rotation

from hepar.cases import Modality
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Geometry
from hepar.inference.prediction import Segmentation
from hepar.prediction.liver_side import Side
from hepar.prediction.measurements import LESION_VALUES, ScanMeasurements, measure

OBLIQUE = tuple(Rotation.from_euler("xyz", (12, 8, -20), degrees=True).as_matrix().ravel().tolist())
GRID = Geometry((28, 40, 50), (3.0, 1.0, 2.0), (-40.0, 5.0, 60.0), OBLIQUE)
LIVER = (slice(8, 24), slice(4, 36), slice(5, 45))
SMALL, LARGE = (slice(10, 12), slice(6, 9), slice(10, 14)), (slice(14, 20), slice(14, 30), slice(20, 30))


def boxes(*places: tuple[slice, ...]) -> Mask:
    mask_zyx = np.zeros(GRID.size_zyx, bool)
    for place in places:
        mask_zyx[place] = True
    return mask_zyx


def segmentation(liver_zyx: Mask, tumour_zyx: Mask, taught: tuple[str, ...] = ("liver", "tumour")) -> Segmentation:
    probability_rzyx = np.where([liver_zyx, tumour_zyx], 0.8, 0.1).astype(np.float32)
    return Segmentation(liver_zyx, tumour_zyx, probability_rzyx, GRID, taught, min_lesion_ml=0.0)


def intensities() -> npt.NDArray[Any]:
    """HU: the liver has 100 and 120 in turns, its lesions 50, everything else -1000."""
    image_zyx = np.full(GRID.size_zyx, -1000, np.int16)
    image_zyx[LIVER] = np.where(np.indices(GRID.size_zyx).sum(axis=0)[LIVER] % 2, 100, 120)
    image_zyx[boxes(SMALL, LARGE)] = 50
    return image_zyx


@pytest.fixture(scope="module")
def measured() -> ScanMeasurements:
    return measure(segmentation(boxes(LIVER), boxes(SMALL, LARGE)), intensities(), Modality.CT)


def test_volumes_and_burden_are_those_of_the_boxes(measured: ScanMeasurements) -> None:
    assert measured.liver_ml == pytest.approx(16 * 32 * 40 * 6 / 1000)
    assert measured.tumour_ml == pytest.approx((2 * 3 * 4 + 6 * 16 * 10) * 6 / 1000)
    assert measured.burden_percent == pytest.approx(100 * (24 + 960) / (16 * 32 * 40))
    assert measured.liver_median == pytest.approx(110, abs=10)
    assert [lesion.number for lesion in measured.lesions] == [1, 2]


def test_the_values_of_a_lesion_have_as_many_coordinates_as_their_list_says(measured: ScanMeasurements) -> None:
    values = measured.lesions[0].rounded()
    assert list(values) == list(LESION_VALUES)
    assert {name: len(value) if isinstance(value, list) else 1 for name, value in values.items()} == LESION_VALUES


def test_each_lesion_has_the_values_of_its_box(measured: ScanMeasurements) -> None:
    small, large = measured.lesions
    assert large.found.volume_ml == pytest.approx(5.76)
    assert small.diameters.longest.length_mm == pytest.approx(np.hypot(8, 2))  # of 3 rows of 1 mm and 4 columns of 2 mm
    assert large.diameters.longest.length_mm > 20
    assert (small.diameters.slice_index, large.diameters.slice_index) == (10, 14)
    assert small.found.confidence == pytest.approx(0.8)


def test_the_capsule_is_as_far_as_the_nearest_face_outside_the_liver(measured: ScanMeasurements) -> None:
    small, large = measured.lesions
    assert small.capsule_mm == pytest.approx(2.0)  # two rows of 1 mm; the slices below are 2 of 3 mm
    assert large.capsule_mm == pytest.approx(6.0)  # rows 30 to 35


def test_a_lesion_at_the_surface_has_no_distance_and_the_border_of_the_scan_is_no_surface() -> None:
    liver_zyx = boxes((slice(0, 18), slice(4, 36), slice(5, 45)))
    touching, cut = (slice(10, 12), slice(4, 8), slice(10, 14)), (slice(0, 2), slice(15, 18), slice(20, 24))
    found = measure(segmentation(liver_zyx, boxes(touching, cut)), intensities(), Modality.CT)
    assert [lesion.capsule_mm for lesion in found.lesions] == pytest.approx([11.0, 0.0])


def test_the_liver_around_a_lesion_is_its_contrast(measured: ScanMeasurements) -> None:
    for lesion in measured.lesions:
        contrast = lesion.contrast
        assert contrast.mean == 50
        assert contrast.surrounding == pytest.approx(110, abs=0.5)
        assert contrast.difference == pytest.approx(-60, abs=0.5)
        assert contrast.to_noise == pytest.approx(-6, abs=0.1)


def test_only_the_liver_within_ten_millimetres_counts_for_contrast() -> None:
    image_zyx = intensities()
    far = np.ones(GRID.size_zyx, bool)
    far[6:16, :20, 4:20] = False  # more than 10 mm from the small lesion
    image_zyx[far] = 1000
    found = measure(segmentation(boxes(LIVER), boxes(SMALL)), image_zyx, Modality.CT)
    assert found.lesions[0].contrast.surrounding == pytest.approx(110, abs=0.5)


def test_places_are_in_the_frame_of_the_patient(measured: ScanMeasurements) -> None:
    small, _ = measured.lesions
    assert small.found.centre_lps_mm == pytest.approx(GRID.to_lps_mm((10.5, 7, 11.5)))
    liver_lps_mm = GRID.to_lps_mm((15.5, 19.5, 24.5))
    assert small.from_liver_centre_lps_mm == pytest.approx(np.subtract(small.found.centre_lps_mm, liver_lps_mm))


def test_the_side_of_a_lesion_is_an_estimate_from_the_liver(measured: ScanMeasurements) -> None:
    small, _ = measured.lesions  # in the first columns, at the patient's right
    assert (small.side, small.rounded()["side_estimate"]) == (Side.RIGHT, "right")
    assert small.rounded()["cantlie_plane_mm"] < 0


def test_nothing_found_has_zero_volumes_and_no_burden() -> None:
    found = measure(segmentation(boxes(), boxes()), intensities(), Modality.CT)
    assert (found.liver_ml, found.tumour_ml, found.burden_percent, found.liver_median) == (0, 0, None, None)
    assert found.lesions == ()


def test_tumours_alone_have_neither_capsule_nor_surrounding_liver() -> None:
    found = measure(segmentation(boxes(), boxes(SMALL), ("tumour",)), intensities(), Modality.MR)
    (lesion,) = found.lesions
    assert (found.liver_ml, found.burden_percent, found.unit) == (None, None, "scanner units")
    assert (lesion.capsule_mm, lesion.from_liver_centre_lps_mm) == (None, None)
    assert (lesion.side, lesion.rounded()["side_estimate"], lesion.cantlie_mm) == (None, None, None)
    assert (lesion.contrast.surrounding, lesion.contrast.difference, lesion.contrast.to_noise) == (None, None, None)


def test_a_liver_that_fills_the_scan_has_no_capsule() -> None:
    found = measure(segmentation(boxes((slice(None),) * 3), boxes(SMALL)), intensities(), Modality.CT)
    assert found.lesions[0].capsule_mm is None


def test_a_liver_of_constant_intensity_has_contrast_but_no_noise() -> None:
    image_zyx = np.where(boxes(SMALL), 40.0, 90.0)
    found = measure(segmentation(boxes(LIVER), boxes(SMALL)), image_zyx, Modality.CT)
    assert found.lesions[0].contrast.difference == -50
    assert found.lesions[0].contrast.to_noise is None
    assert found.rounded()["burden_percent"] == 0.12
    assert found.lesions[0].rounded()["contrast_to_noise"] is None

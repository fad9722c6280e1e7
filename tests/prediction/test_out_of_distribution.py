"""Warnings: each check on a scan that just keeps and one that just breaks its bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from predicted import predictor

from hepar.cases import Modality
from hepar.imaging.volumes import Geometry, to_image
from hepar.inference.prediction import Segmentation
from hepar.prediction.measurements import measure
from hepar.prediction.out_of_distribution import ScanWarning, check_scan

STRAIGHT, CORONAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
SIZE = (30, 30, 30)
Box = tuple[slice, slice, slice]
INSIDE: Box = (slice(4, 26), slice(4, 26), slice(4, 26))


def mask(box: Box | None) -> npt.NDArray[np.bool_]:
    mask_zyx = np.zeros(SIZE, bool)
    if box is not None:
        mask_zyx[box] = True
    return mask_zyx


def warnings(
    liver: Box | None = INSIDE,
    tumour: Box | None = None,
    hu: float = 100,
    spacing_zyx_mm: tuple[float, float, float] = (5.0, 5.0, 5.0),
    direction: tuple[float, ...] = STRAIGHT,
    agreement: dict[str, float] | None = None,
    **spec: Any,
) -> dict[str, ScanWarning]:
    """The warnings of a scan by rule: a liver box of some HU in air."""
    grid = Geometry(SIZE, spacing_zyx_mm, (0.0, 0.0, 0.0), direction)
    liver_zyx, tumour_zyx = mask(liver), mask(tumour)
    image_zyx = np.where(liver_zyx, hu, -1000.0).astype(np.float32)
    probability_rzyx = np.stack([liver_zyx, tumour_zyx]).astype(np.float32)
    found = Segmentation(liver_zyx, tumour_zyx, probability_rzyx, grid, ("liver", "tumour"), 0.0, agreement or {})
    model = predictor((2.5, 2.5, 2.5), **spec).models[0]
    measured = measure(found, image_zyx, Modality.CT)
    made = check_scan(to_image(image_zyx, grid), Modality.CT, found, measured, model.spec)
    return {warning.rule: warning for warning in made}


def test_a_scan_within_all_bounds_has_no_warning() -> None:
    assert warnings() == {}


def test_voxels_more_than_twice_as_coarse_as_those_of_the_model_are_told_with_their_axis() -> None:
    found = warnings(spacing_zyx_mm=(5.2, 5.0, 5.0))["spacing"]
    assert (found.value, found.bound, found.unit) == (5.2, 5.0, "mm")
    assert found.message == "voxels of 5.2 mm along z (bound 5 mm: twice those of the model)"
    assert "along y" in warnings(spacing_zyx_mm=(5.2, 5.0, 5.0), direction=CORONAL)["spacing"].message


def test_a_low_scan_cannot_hold_a_liver() -> None:
    assert warnings(spacing_zyx_mm=(3.0, 5.0, 5.0))["extent"].value == pytest.approx(90)
    assert "extent" not in warnings(spacing_zyx_mm=(3.4, 5.0, 5.0))


@pytest.mark.parametrize(("hu", "warned"), [(-11, True), (-10, False), (200, False), (201, True)])
def test_a_liver_of_implausible_hu_is_told(hu: float, warned: bool) -> None:
    assert ("liver intensity" in warnings(hu=hu)) == warned


def test_intensities_without_air_are_not_those_of_ct() -> None:
    everywhere: Box = (slice(None), slice(None), slice(None))
    assert "intensities" in warnings(liver=everywhere)


def test_no_liver_and_a_small_one_are_told() -> None:
    assert warnings(liver=None)["no liver"].value == 0
    small: Box = (slice(4, 17), slice(4, 17), slice(4, 17))  # 275 ml
    found = warnings(liver=small)["liver volume"]
    assert (found.bound, found.message) == (300, "a liver of 275 ml, outside 300 to 6000 ml")


def test_tumours_in_most_of_the_liver_are_told() -> None:
    most: Box = (slice(4, 26), slice(4, 26), slice(4, 18))  # 14 of 22 columns
    less: Box = (slice(4, 26), slice(4, 26), slice(4, 17))
    assert warnings(tumour=most)["tumour burden"].value == pytest.approx(100 * 14 / 22)
    assert "tumour burden" not in warnings(tumour=less)


@pytest.mark.parametrize(
    ("liver", "direction", "side"),
    [
        ((slice(0, 26), slice(4, 26), slice(4, 26)), STRAIGHT, "foot end"),
        ((slice(4, 30), slice(4, 26), slice(4, 26)), STRAIGHT, "head end"),
        ((slice(4, 26), slice(4, 30), slice(4, 26)), STRAIGHT, "back edge"),
        ((slice(4, 26), slice(4, 26), slice(0, 26)), STRAIGHT, "right edge"),
        ((slice(4, 26), slice(4, 30), slice(4, 26)), CORONAL, "foot end"),
    ],
)
def test_a_liver_that_reaches_the_end_of_the_scan_is_cut_there(
    liver: Box, direction: tuple[float, ...], side: str
) -> None:
    found = warnings(liver=liver, direction=direction)["field of view"]
    assert found.message == f"121.0 cm² of the liver lie on the {side} of the scan (bound 1 cm²)"
    assert found.value == pytest.approx(22 * 22 * 0.25)  # cm²


def test_members_that_disagree_are_told() -> None:
    found = warnings(agreement={"liver": 0.89, "tumour": 0.5})
    assert list(found) == ["agreement"]
    assert (found["agreement"].value, found["agreement"].bound) == (0.89, 0.9)
    assert "tumour" in warnings(agreement={"liver": 0.95, "tumour": 0.4})["agreement"].message


def test_a_liver_unlike_those_learned_from_is_told() -> None:
    learned = {Modality.CT: (0.0, 0.1), Modality.MR: (9.0, 0.1)}  # 100 HU lies in the middle of the window
    assert "liver unlike those learned from" not in warnings(hu=155, liver_intensity=learned)
    found = warnings(hu=170, liver_intensity=learned)["liver unlike those learned from"]
    assert found.value == pytest.approx(3.5)
    assert found.message == "the liver's brightness is 3.5 SD from the CT livers learned from (bound 3 SD)"
    assert "liver unlike those learned from" not in warnings(hu=170, liver_intensity={Modality.MR: (9.0, 0.1)})


def test_a_warning_is_shown_with_rounded_numbers() -> None:
    warning = ScanWarning("spacing", 5.12345, 5.0, "mm", "too coarse")
    assert warning.rounded() == {
        "rule": "spacing",
        "value": 5.123,
        "bound": 5.0,
        "unit": "mm",
        "message": "too coarse",
    }

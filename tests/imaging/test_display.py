"""How scans are shown: windows, and the slice that is picked."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.cases import Modality
from hepar.imaging.display import display_window, largest_slice, scale_to_window

RAMP_ZYX = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
EMPTY_ZYX = np.zeros((5, 4, 4), bool)


def test_ct_is_shown_in_the_given_window_and_mr_between_percentiles_of_the_volume() -> None:
    assert display_window(RAMP_ZYX, Modality.CT, (-17.0, 201.0)) == (-17.0, 201.0)
    assert display_window(RAMP_ZYX, Modality.MR, (-17.0, 201.0)) == pytest.approx((9.99, 994.005))


def test_mr_is_shown_around_the_liver_where_its_mask_is_known() -> None:
    liver_zyx = np.zeros((3, 4, 5), bool)
    liver_zyx[1, 1, :] = True
    image_zyx = np.full((3, 4, 5), 5000.0)  # a bright organ everywhere else
    image_zyx[1, 1] = (90, 98, 100, 102, 4000)  # median 100, deviations 0, 2, 2, 10, 3900
    reach = 8 * 1.4826 * 2
    assert display_window(image_zyx, Modality.MR, (0.0, 1.0), liver_zyx) == pytest.approx((100 - reach, 100 + reach))
    assert display_window(image_zyx, Modality.CT, (0.0, 1.0), liver_zyx) == (0.0, 1.0)


def test_an_empty_or_constant_liver_leaves_the_percentiles_of_the_volume() -> None:
    of_volume = pytest.approx((9.99, 994.005))
    assert display_window(RAMP_ZYX, Modality.MR, (0.0, 1.0), np.zeros(RAMP_ZYX.shape, bool)) == of_volume
    assert display_window(RAMP_ZYX, Modality.MR, (0.0, 1.0), RAMP_ZYX == 500) == of_volume


def test_a_constant_mr_has_a_window_too() -> None:
    low, high = display_window(np.zeros((2, 2, 2)), Modality.MR, (0.0, 1.0))
    assert low < high


def test_what_lies_outside_the_window_is_clipped() -> None:
    scaled = scale_to_window(np.array([-10, 0, 5, 10, 20], np.int16), (0.0, 10.0))
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [0, 0, 0.5, 1, 1]


def test_the_slice_with_most_of_the_first_mask_that_is_not_empty_is_shown() -> None:
    tumour_zyx, liver_zyx = EMPTY_ZYX.copy(), EMPTY_ZYX.copy()
    liver_zyx[1, :2], liver_zyx[3, :1] = True, True
    assert largest_slice((tumour_zyx, liver_zyx), 5) == 1
    tumour_zyx[3, 0, 0] = True
    assert largest_slice((tumour_zyx, liver_zyx), 5) == 3


def test_without_any_mask_the_middle_slice_is_shown() -> None:
    assert largest_slice((EMPTY_ZYX, EMPTY_ZYX), 5) == 2

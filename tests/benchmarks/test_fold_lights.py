"""Changed lights, by geometry: an abdomen of a brick of body with a brick of liver on the patient's right."""

import numpy as np
import pytest
from folds.lights import LIGHTS, STOMACH_SHARE, Scan, brighten_stomach, change_gamma, invert, shift_liver

SHAPE, SPACING = (20, 40, 40), (5.0, 4.0, 4.0)
BODY, LIVER = (slice(None), slice(4, 36), slice(2, 38)), (slice(4, 16), slice(8, 28), slice(5, 17))


def scan(air, body, liver, place=LIVER):
    image_zyx = np.full(SHAPE, air, np.float32)
    image_zyx[BODY], image_zyx[place] = body, liver
    liver_zyx = np.zeros(SHAPE, bool)
    liver_zyx[place] = True
    return Scan("case", image_zyx, liver_zyx, SPACING)


def test_a_liver_is_shifted_inside_and_only_there():
    before = scan(-1000, 40, 100)
    change_zyx = shift_liver(before, -60) - before.image_zyx
    assert change_zyx[10, 18, 11] == -60
    assert change_zyx[0].max() == change_zyx[0].min() == 0
    assert not change_zyx[:, :, 22:].any()
    border = change_zyx[10, 18, 4:6]  # outside and inside of the liver's right face
    assert -30 < border[0] < 0
    assert -60 < border[1] < -30
    assert change_zyx.sum() == pytest.approx(-60 * before.liver_zyx.sum(), rel=0.02)


def test_a_scan_that_is_cut_to_a_window_stays_within_it():
    before = scan(-45, 60, 140)
    before.image_zyx[0, 0, 0] = 160
    assert shift_liver(before, 40)[10, 18, 11] == 160


WIDE = (slice(0, 20), slice(8, 20), slice(5, 36))  # a liver that reaches to where the stomach is


@pytest.mark.parametrize("place", [LIVER, WIDE])
def test_a_stomach_fills_its_share_of_the_body_on_the_left_and_spares_the_liver(place):
    before = scan(0, 80, 100, place)
    after_zyx = brighten_stomach(before)
    bright_zyx = after_zyx > 200
    body_voxels = np.prod([20, 32, 36])
    assert np.count_nonzero(bright_zyx) == pytest.approx(STOMACH_SHARE * body_voxels, rel=0.1)
    assert 300 <= after_zyx.max() <= 500
    assert np.array_equal(after_zyx[place], before.image_zyx[place])
    assert np.argwhere(bright_zyx)[:, 2].min() >= 19  # the body's centre, and half a voxel of smooth edge
    assert np.array_equal(brighten_stomach(before), after_zyx)


def test_inversion_exchanges_bright_and_dark_but_leaves_air():
    before = scan(0, 80, 100)
    after_zyx = invert(before)
    assert after_zyx[10, 18, 11] == pytest.approx(80)
    assert after_zyx[10, 18, 30] == pytest.approx(100)
    assert not after_zyx[:, :3].any()


@pytest.mark.parametrize(("gamma", "liver"), [(0.5, 50.0), (2.0, 6.25)])
def test_gamma_keeps_the_ends_of_the_range(gamma, liver):
    before = scan(0, 100, 25)
    after_zyx = change_gamma(before, gamma)
    assert (after_zyx[0, 0, 0], after_zyx[10, 18, 30]) == pytest.approx((0, 100))
    assert after_zyx[10, 18, 11] == pytest.approx(liver)


def test_every_light_keeps_shape_and_type():
    for modality, lights in LIGHTS.items():
        for change in lights.values():
            before = scan(-1000, 120, 100) if modality == "CT" else scan(0, 80, 100)
            after_zyx = change(before)
            assert (after_zyx.shape, after_zyx.dtype) == (SHAPE, np.float32)
            assert not np.array_equal(after_zyx, before.image_zyx)

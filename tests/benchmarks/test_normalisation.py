"""Ways to normalise MR: what a factor, a bright organ and a bias field do to the brightness of a liver."""

import numpy as np
import pytest
from folds.lights import Scan
from normalisation import WAYS, after_n4, brightness, by_quartiles, in_otsu_body, row

SHAPE = (12, 48, 48)
LIVER = (slice(2, 10), slice(10, 30), slice(6, 22))


def abdomen(case_id="case", liver=100.0):
    """Air, a body of 60 and a liver, each with noise."""
    rng = np.random.default_rng(1)
    image_zyx, liver_zyx = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
    image_zyx[:, 4:44, 3:45] = 60
    image_zyx[LIVER], liver_zyx[LIVER] = liver, True
    noisy_zyx = np.abs(image_zyx + rng.normal(0, 4, SHAPE)).astype(np.float32)
    return Scan(case_id, noisy_zyx, liver_zyx, (5.0, 4.0, 4.0))


@pytest.mark.parametrize("way", list(WAYS))
def test_a_factor_does_not_matter(way):
    scan = abdomen()
    plain, brighter = (brightness(WAYS[way](scan.image_zyx * factor), scan.liver_zyx) for factor in (1, 7))
    assert brighter.median == pytest.approx(plain.median, abs=0.1)
    assert plain.median > 0  # brighter than most of the body


def test_the_brightest_mode_does_not_count():
    """A bright organ stretches mean and SD, but not those of the body without it."""
    scan = abdomen()
    bright_zyx = scan.image_zyx.copy()
    bright_zyx[:, 30:44, 30:45] += 400
    moved = {
        way: brightness(WAYS[way](bright_zyx), scan.liver_zyx).median
        - brightness(WAYS[way](scan.image_zyx), scan.liver_zyx).median
        for way in WAYS
    }
    assert abs(moved["the same without the brightest mode"]) < abs(moved["mean and SD (`linear`)"]) / 2


def test_a_bias_field_is_divided_out():
    scan = abdomen()
    field_zyx = np.exp(np.linspace(-0.5, 0.5, SHAPE[2]))[None, None].astype(np.float32)
    uneven, corrected = (
        brightness(way(scan.image_zyx * field_zyx), scan.liver_zyx) for way in (by_quartiles, after_n4)
    )
    plain = brightness(by_quartiles(scan.image_zyx), scan.liver_zyx)
    assert abs(corrected.median - plain.median) < abs(uneven.median - plain.median) / 2


def test_a_row_has_spread_and_shift_in_spreads_of_the_liver():
    """Livers of 90 and 110 in a body whose mean and SD are nearly the same lie as far apart as 20 to a noise of 4."""
    scans = [abdomen("a", 90.0), abdomen("b", 110.0)]
    cells = row("raw", lambda image_zyx: image_zyx, scans).strip("|").split("|")
    assert cells[0].strip() == "raw"
    assert float(cells[1]) == pytest.approx(20 / 2**0.5 / 4, rel=0.1)
    low, high = (float(end) for end in cells[2].split(" to "))
    assert high - low == pytest.approx(20 / 4, rel=0.1)
    assert float(cells[3]) == pytest.approx(0, abs=0.05)  # the stomach lies beside the liver, and nothing is scaled


def test_otsu_takes_a_bright_organ_for_the_body():
    scan = abdomen()
    bright_zyx = scan.image_zyx.copy()
    bright_zyx[:, 30:44, 30:45] += 400
    assert brightness(in_otsu_body(bright_zyx), scan.liver_zyx).median < -50
    assert brightness(by_quartiles(bright_zyx), scan.liver_zyx).median > 0

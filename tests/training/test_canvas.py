"""The canvas of findings: the texture of the liver at a place, boxes in mm, and where painting is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.training.canvas import MIN_SPREAD, canvas_around_tumours, canvas_of_liver, surface
from hepar.training.sampling import Patch

SHAPE = (24, 40, 40)
PLAN = PreprocessingPlan(spacing_zyx_mm=(4.0, 2.0, 2.0), window_hu=(-45.0, 160.0), mr_percentiles=(2.0, 98.0))
MIDDLE_ZYX = np.array([12, 20, 20])


def patch(image_zyx: np.ndarray) -> Patch:
    target_rzyx = np.zeros((2, *SHAPE), np.float32)
    target_rzyx[LIVER, 2:22, 4:36, 4:36] = 1
    return Patch(image_zyx.astype(np.float32), target_rzyx, np.ones_like(target_rzyx), Modality.CT)


def test_the_spread_is_that_of_the_noise_and_not_of_a_slow_change_or_of_what_lies_outside() -> None:
    rng = np.random.default_rng(0)
    ramp_zyx = np.linspace(-0.4, 0.4, SHAPE[2])[None, None] + np.zeros(SHAPE)  # 0.041 per 4 mm along x
    given = patch(ramp_zyx + rng.normal(0, 0.2, SHAPE))
    given.image_zyx[given.target_rzyx[LIVER] == 0] = -5
    canvas = canvas_of_liver(given, PLAN)
    assert canvas is not None
    texture = canvas.texture(canvas.box(MIDDLE_ZYX, 200.0))
    ramp_spread = 0.8 / 39 * np.std(np.arange(-10, 11, 2) / 2 * 1.0)  # within 10 mm of a voxel
    assert texture.spread == pytest.approx(np.hypot(0.2, ramp_spread), rel=0.1)
    assert texture.level == pytest.approx(0, abs=0.05)


def test_the_spread_of_a_flat_liver_is_the_least_and_the_level_is_that_of_the_place() -> None:
    image_zyx = np.zeros(SHAPE)
    image_zyx[:, :, 20:] = 0.5
    canvas = canvas_of_liver(patch(image_zyx), PLAN)
    assert canvas is not None
    for x, level in ((8, 0.0), (32, 0.5)):
        texture = canvas.texture(canvas.box(np.array([12, 20, x]), 6.0))
        assert texture.level == level
    assert canvas.texture(canvas.box(np.array([12, 20, 8]), 4.0)).spread == MIN_SPREAD[Modality.CT]


def test_a_box_without_liver_has_the_level_of_the_whole_liver() -> None:
    canvas = canvas_of_liver(patch(np.full(SHAPE, 0.25)), PLAN)
    assert canvas is not None
    texture = canvas.texture(canvas.box(np.array([0, 0, 0]), 4.0))
    assert (texture.level, texture.spread) == (0.25, MIN_SPREAD[Modality.CT])


def test_a_box_reaches_so_many_millimetres_and_ends_with_the_patch() -> None:
    canvas = canvas_of_liver(patch(np.zeros(SHAPE)), PLAN)
    assert canvas is not None
    box = canvas.box(np.array([1, 20, 39]), 8.0)
    assert box.slices == (slice(0, 4), slice(16, 25), slice(35, 40))
    assert [offset.ravel()[0] for offset in box.offsets_zyx_mm] == [-4, -8, -8]
    assert box.shape == (4, 9, 5)


def test_the_surface_is_what_touches_the_outside() -> None:
    cube_zyx = np.zeros((7, 7, 7), bool)
    cube_zyx[1:6, 1:6, 1:6] = True
    shell_zyx = surface(cube_zyx, ~cube_zyx)
    assert shell_zyx.sum() == 5**3 - 3**3
    assert not surface(np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)).any()


def test_around_tumours_the_tissue_of_their_surroundings_is_painted_on() -> None:
    rng = np.random.default_rng(0)
    given = patch(rng.normal(0.3, 0.03, SHAPE))
    given.target_rzyx[LIVER] = 0
    given.weight_rzyx[LIVER] = 0
    given.target_rzyx[TUMOUR, 10:14, 18:23, 18:23] = 1
    given.image_zyx[:, :, 28:] = -1  # 10 mm from the tumour another organ begins
    canvas = canvas_around_tumours(given, PLAN)
    assert canvas is not None
    where_n3 = np.argwhere(canvas.paintable_zyx)
    assert where_n3[:, 2].max() < 28
    assert 18 - 8 <= where_n3[:, 2].min() <= 18 - 6  # 15 mm are seven voxels
    assert not (canvas.paintable_zyx & (given.target_rzyx[TUMOUR] > 0)).any()


def test_there_is_no_such_canvas_without_known_tumours_or_beside_a_known_liver() -> None:
    given = patch(np.full(SHAPE, 0.3))
    given.target_rzyx[TUMOUR, 10:14, 18:23, 18:23] = 1
    assert canvas_around_tumours(given, PLAN) is None
    given.weight_rzyx[LIVER] = 0
    assert canvas_around_tumours(given, PLAN) is not None
    given.weight_rzyx[TUMOUR] = 0
    assert canvas_around_tumours(given, PLAN) is None

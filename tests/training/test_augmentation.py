"""Augmentation: image, targets and weights move together, and what comes from outside is unknown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from hepar.params import AugmentationParams
from hepar.training.augmentation import move, recolour, rotation

OFF = AugmentationParams(
    affine_probability=0.0,
    rotation_degrees=30.0,
    scale=0.2,
    mirror_axes=(),
    intensity_probability=0.0,
    contrast=0.3,
    brightness=0.3,
    noise=0.2,
    blur_probability=0.0,
    elastic_probability=0.0,
    elastic_voxels=2.0,
    gamma_probability=0.0,
    gamma=0.5,
    low_resolution_probability=0.0,
    low_resolution=3.0,
    bias_field_probability=0.0,
    bias_field=0.5,
    remap_probability=0.0,
    lesion_probability=0.0,
)
Batch = tuple[Tensor, Tensor, Tensor]


def params(**changes: Any) -> AugmentationParams:
    return AugmentationParams.model_validate({**OFF.model_dump(), **changes})


def batch(size: int = 2, side: int = 16) -> Batch:
    """An off-centre box in each scan; the image shows the liver itself."""
    y = torch.zeros(size, 2, side, side, side)
    y[:, 0, 2:9, 4:14, 1:12] = 1
    y[:, 1, 4:7, 6:10, 3:9] = 1
    return y[:, :1].clone(), y, torch.ones_like(y)


def augment(
    image: Tensor, y: Tensor, m: Tensor, settings: AugmentationParams, seed: int, is_mr: Sequence[bool] | None = None
) -> Batch:
    """Geometry and intensities, as a training does them; of MR patches, if nothing else is said."""
    rngs = [np.random.default_rng([seed, number]) for number in range(len(image))]
    image, y, m = move(image, y, m, settings, rngs)
    return recolour(image, settings, rngs, [True] * len(image) if is_mr is None else is_mr), y, m


def changed(settings: AugmentationParams, seed: int = 0, make: Callable[[], Batch] = batch) -> Batch:
    return augment(*make(), settings, seed)


def graded(size: int = 1) -> Batch:
    """Values from 0 to 1 in many steps."""
    image = torch.linspace(0, 1, 16**3).view(1, 1, 16, 16, 16).repeat(size, 1, 1, 1, 1)
    labels = torch.ones(size, 2, 16, 16, 16)
    return image, labels, labels.clone()


def test_with_every_probability_at_zero_nothing_changes() -> None:
    for before, after in zip(batch(), changed(OFF), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    "settings",
    [
        params(mirror_axes=("z", "y", "x")),
        params(affine_probability=1.0),
        params(intensity_probability=1.0),
        params(blur_probability=1.0),
        params(elastic_probability=1.0),
        params(gamma_probability=1.0),
        params(low_resolution_probability=1.0),
        params(bias_field_probability=1.0),
        params(remap_probability=1.0),
    ],
    ids=["mirror", "affine", "intensity", "blur", "elastic", "gamma", "low-resolution", "bias-field", "remap"],
)
def test_the_same_generator_gives_the_same_batch_and_another_one_another(settings: AugmentationParams) -> None:
    first, again = changed(settings, 1, graded), changed(settings, 1, graded)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [changed(settings, seed, graded)[0] for seed in range(2, 6)]
    assert any(not torch.equal(first[0], other) for other in others)


@pytest.mark.parametrize(("axis", "dim"), [("z", 2), ("y", 3), ("x", 4)])
def test_a_mirrored_scan_is_mirrored_along_its_axis_with_its_labels(axis: Literal["z", "y", "x"], dim: int) -> None:
    image, y, m = batch(size=16)
    m[..., :8] = 0.5
    before_image, before_y, before_m = image.clone(), y.clone(), m.clone()
    after_image, after_y, after_m = augment(image, y, m, params(mirror_axes=(axis,)), 0)
    flipped = [b for b in range(16) if not torch.equal(after_y[b], before_y[b])]
    assert 0 < len(flipped) < 16
    for b in flipped:
        for after, before in ((after_image, before_image), (after_y, before_y), (after_m, before_m)):
            assert torch.equal(after[b], before[b].flip(dim - 1))


def test_an_image_that_shows_the_liver_still_shows_it_after_an_affine_change() -> None:
    image, y, m = changed(params(affine_probability=1.0, rotation_degrees=20.0), make=lambda: batch(side=24))
    assert not torch.equal(y, batch(side=24)[1])
    known = m[:, 0] > 0.999
    assert torch.equal((image[:, 0] > 0.5)[known], (y[:, 0] > 0.5)[known])
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert not (y[:, 1] > y[:, 0]).any()  # the tumour stays inside


def test_what_a_shrinking_pulls_in_from_outside_has_no_weight() -> None:
    settings = params(affine_probability=1.0, rotation_degrees=0.0, scale=0.5)
    whole = (torch.ones(1, 1, 16, 16, 16), torch.ones(1, 2, 16, 16, 16), torch.ones(1, 2, 16, 16, 16))
    corners = {}
    for seed in range(40):
        image, y, m = augment(*(tensor.clone() for tensor in whole), settings, seed)
        middle, corner = m[0, 0, 8, 8, 8].item(), m[0, 0, 0, 0, 0].item()
        assert middle == pytest.approx(1)
        assert image.min() == pytest.approx(1)  # the image goes on as its border
        assert not y[m < 0.4].any()
        corners[seed] = corner
    assert any(corner == 0 for corner in corners.values())
    assert any(corner == pytest.approx(1) for corner in corners.values())  # zoomed in along every axis


def test_a_turn_by_a_right_angle_about_z_moves_x_to_y() -> None:
    assert rotation(np.array([90.0, 0.0, 0.0])) @ [1, 0, 0] == pytest.approx([0, 1, 0])
    assert rotation(np.array([0.0, 90.0, 0.0])) @ [0, 0, 1] == pytest.approx([1, 0, 0])
    assert rotation(np.array([0.0, 0.0, 90.0])) @ [0, 1, 0] == pytest.approx([0, 0, 1])


def test_a_rotation_keeps_lengths_and_handedness() -> None:
    matrix = rotation(np.array([10.0, -25.0, 70.0]))
    assert matrix @ matrix.T == pytest.approx(np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_a_ball_stays_a_ball_when_a_patch_of_unequal_sides_is_rotated() -> None:
    def centred_ball() -> Batch:
        z, y, x = np.indices((32, 16, 8))
        inside = (z - 15.5) ** 2 + (y - 7.5) ** 2 + (x - 3.5) ** 2 <= 3.4**2
        targets = torch.from_numpy(inside).float().expand(1, 2, -1, -1, -1).clone()
        return targets[:, :1].clone(), targets, torch.ones_like(targets)

    ball = centred_ball()[1][:, 0]
    for seed in range(5):
        turned = changed(params(affine_probability=1.0, rotation_degrees=40.0, scale=0.0), seed, centred_ball)[1][:, 0]
        assert 2 * float((ball * turned).sum()) / float(ball.sum() + turned.sum()) > 0.9


def test_intensities_leave_labels_alone() -> None:
    settings = params(intensity_probability=1.0, blur_probability=1.0)
    image, y, m = changed(settings)
    before_image, before_y, before_m = batch()
    assert torch.equal(y, before_y)
    assert torch.equal(m, before_m)
    assert not torch.equal(image, before_image)


def test_contrast_and_brightness_stay_within_their_bounds() -> None:
    settings = params(intensity_probability=1.0, noise=0.0, contrast=0.3, brightness=0.2)
    for seed in range(20):
        image = changed(settings, seed)[0]
        mean = batch()[0].mean()
        assert 0.7 - 1e-5 <= float(image[0].max() - image[0].min()) <= 1.3 + 1e-5
        assert abs(float(image[0].mean() - mean)) <= 0.2 + 1e-5


def test_a_blur_keeps_a_constant_image_and_softens_an_edge() -> None:
    settings = params(blur_probability=1.0)
    constant = changed(settings, make=lambda: (torch.full((1, 1, 8, 8, 8), 3.0), *batch(1, 8)[1:]))[0]
    assert torch.allclose(constant, torch.tensor(3.0))
    edge = changed(settings)[0]
    assert ((edge > 0.05) & (edge < 0.95)).any()
    assert edge.min() >= 0
    assert edge.max() <= 1


def test_an_elastic_change_bends_image_and_labels_alike_and_tears_nothing() -> None:
    settings = params(elastic_probability=1.0)
    bent = 0
    for seed in range(8):
        image, y, m = changed(settings, seed, lambda: batch(size=1, side=32))
        known = m[:, 0] > 0.999
        bent += not torch.equal(y, batch(size=1, side=32)[1])
        assert torch.equal((image[:, 0] > 0.5)[known], (y[:, 0] > 0.5)[known])
        _, pieces = ndimage.label(y[0, 0].numpy())
        assert pieces == 1
    assert bent > 4  # else the drawn displacement is below a voxel


def test_gamma_keeps_the_range_and_the_order_of_values() -> None:
    exponents = set()
    for seed in range(20):
        image, _, _ = changed(params(gamma_probability=1.0), seed, graded)
        assert (float(image.min()), float(image.max())) == (0.0, pytest.approx(1.0))
        assert (image.flatten().diff() >= 0).all()
        exponents.add(float(image.flatten()[2048].log() / graded()[0].flatten()[2048].log()))
    assert math.exp(-0.5) - 1e-4 <= min(exponents) < 0.8
    assert 1.25 < max(exponents) <= math.exp(0.5) + 1e-4


def test_low_resolution_loses_detail_and_nothing_else() -> None:
    board = (torch.arange(16)[:, None, None] + torch.arange(16)[:, None] + torch.arange(16)) % 2
    labels = torch.ones(1, 2, 16, 16, 16)
    make = lambda: (board.float()[None, None].clone(), labels.clone(), labels.clone())  # noqa: E731
    image, y, _ = changed(params(low_resolution_probability=1.0), 3, make)
    assert image.std() < 0.8 * board.float().std()
    assert float(image.mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(y, labels)


def test_a_bias_field_is_smooth_bounded_and_for_mr_alone() -> None:
    ones = lambda: (torch.cat([torch.zeros(2, 1, 1, 16, 16), torch.ones(2, 1, 15, 16, 16)], 2), *graded(2)[1:])  # noqa: E731
    image, y, m = ones()
    before = image.clone()
    image, _, _ = augment(image, y, m, params(bias_field_probability=1.0), 1, [True, False])
    assert torch.equal(image[1], before[1])
    field = image[0, 0, 1:].log()
    assert float(field.abs().max()) <= 0.5
    assert float(field.std()) > 0.05
    assert float(field.diff(dim=1).abs().max()) < 0.5 * 2 / 7  # from knot to knot at most the whole range
    image, y, m = ones()
    assert torch.equal(augment(image, y, m, params(bias_field_probability=1.0), 1, [False, False])[0], before)


def test_a_random_curve_changes_the_order_of_values_and_keeps_flat_what_is_flat() -> None:
    turned = 0
    for seed in range(10):
        image, _, _ = changed(params(remap_probability=1.0), seed, graded)
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        steps = image.flatten().diff()
        assert float(steps.abs().max()) <= 4 / (16**3 - 1) + 1e-6  # a curve of five knots, continuous
        turned += bool((steps < 0).any() and (steps > 0).any())
    assert turned > 5
    flat = torch.full((1, 1, 8, 8, 8), 3.0)
    labels = torch.ones(1, 2, 8, 8, 8)
    after, _, _ = changed(params(remap_probability=1.0), 0, lambda: (flat.clone(), labels, labels))
    assert torch.allclose(after, flat, atol=1e-5)

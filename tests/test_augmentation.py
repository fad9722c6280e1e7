"""Augmentation: image, targets and weights move together, and what comes from outside is unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from hepar.params import AugmentationParams
from hepar.training.augmentation import augment, rotation

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


def changed(settings: AugmentationParams, seed: int = 0, make: Callable[[], Batch] = batch) -> Batch:
    image, y, m = make()
    return augment(image, y, m, settings, np.random.default_rng(seed))


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
    ],
    ids=["mirror", "affine", "intensity", "blur"],
)
def test_the_same_generator_gives_the_same_batch_and_another_one_another(settings: AugmentationParams) -> None:
    first, again = changed(settings, seed=1), changed(settings, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [changed(settings, seed=seed)[0] for seed in range(2, 6)]
    assert any(not torch.equal(first[0], other) for other in others)


@pytest.mark.parametrize(("axis", "dim"), [("z", 2), ("y", 3), ("x", 4)])
def test_a_mirrored_scan_is_mirrored_along_its_axis_with_its_labels(axis: Literal["z", "y", "x"], dim: int) -> None:
    image, y, m = batch(size=16)
    m[..., :8] = 0.5
    before_image, before_y, before_m = image.clone(), y.clone(), m.clone()
    after_image, after_y, after_m = augment(image, y, m, params(mirror_axes=(axis,)), np.random.default_rng(0))
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
        image, y, m = augment(*(tensor.clone() for tensor in whole), settings, np.random.default_rng(seed))
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

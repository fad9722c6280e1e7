"""Augmentation: image, targets and weights are transformed alike, and what comes from outside is unknown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from hepar.params import AugmentationParams, ByModality, SpacingZYX
from hepar.training.augmentation import (
    CT_LIVERS_HU,
    MR_LIVERS,
    augment_intensity,
    augment_spatial,
    rotation,
    shift_liver,
)

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
    monotone_probability=0.0,
    inversion_probability=0.0,
    liver_shift_probability=0.0,
    liver_shift=0.5,
    lesions=ByModality(CT=0.0, MR=0.0),
    look_alikes=ByModality(CT=0.0, MR=0.0),
)
WINDOW_HU = (-45.0, 170.0)
Batch = tuple[Tensor, Tensor, Tensor]  # image, targets and weights


def only(**changes: Any) -> AugmentationParams:
    return AugmentationParams.model_validate({**OFF.model_dump(), **changes})


def box_batch(size: int = 2, side: int = 16) -> Batch:
    """An off-centre box as the liver, with a tumour inside; the image equals the liver mask."""
    target_brdhw = torch.zeros(size, 2, side, side, side)
    target_brdhw[:, 0, 2:9, 4:14, 1:12] = 1
    target_brdhw[:, 1, 4:7, 6:10, 3:9] = 1
    return target_brdhw[:, :1].clone(), target_brdhw, torch.ones_like(target_brdhw)


def augment(
    batch: Batch,
    params: AugmentationParams,
    seed: int,
    is_mr: Sequence[bool] | None = None,
    spacing_zyx_mm: SpacingZYX = (1.0, 1.0, 1.0),
) -> Batch:
    """Augment a batch in place as a training does, by default one of MR patches."""
    image, target, weight = batch
    rngs = [np.random.default_rng([seed, number]) for number in range(len(image))]
    image, target, weight = augment_spatial(image, target, weight, params, rngs, spacing_zyx_mm)
    modalities = [True] * len(image) if is_mr is None else is_mr
    return augment_intensity(image, target[:, 0], params, rngs, modalities, WINDOW_HU), target, weight


def augmented(params: AugmentationParams, seed: int = 0, make: Callable[[], Batch] = box_batch) -> Batch:
    return augment(make(), params, seed)


def ramp_batch(size: int = 1) -> Batch:
    """Values from 0 to 1 in many small steps."""
    image = torch.linspace(0, 1, 16**3).view(1, 1, 16, 16, 16).repeat(size, 1, 1, 1, 1)
    labels = torch.ones(size, 2, 16, 16, 16)
    return image, labels, labels.clone()


def all_ones() -> Batch:
    return torch.ones(1, 1, 16, 16, 16), torch.ones(1, 2, 16, 16, 16), torch.ones(1, 2, 16, 16, 16)


def test_with_every_probability_at_zero_nothing_changes() -> None:
    for before, after in zip(box_batch(), augmented(OFF), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(
    "params",
    [
        only(mirror_axes=("z", "y", "x")),
        only(affine_probability=1.0),
        only(intensity_probability=1.0),
        only(blur_probability=1.0),
        only(elastic_probability=1.0),
        only(gamma_probability=1.0),
        only(low_resolution_probability=1.0),
        only(bias_field_probability=1.0),
        only(remap_probability=1.0),
        only(monotone_probability=1.0),
        only(inversion_probability=0.5),
        only(liver_shift_probability=1.0),
    ],
    ids=[
        "mirror",
        "affine",
        "intensity",
        "blur",
        "elastic",
        "gamma",
        "low-resolution",
        "bias-field",
        "remap",
        "monotone",
        "inversion",
        "liver-shift",
    ],
)
def test_equal_seeds_give_equal_batches_and_other_seeds_do_not(params: AugmentationParams) -> None:
    first, again = augmented(params, 1, ramp_batch), augmented(params, 1, ramp_batch)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [augmented(params, seed, ramp_batch)[0] for seed in range(2, 6)]
    assert any(not torch.equal(first[0], other) for other in others)


@pytest.mark.parametrize(("axis", "dim"), [("z", 2), ("y", 3), ("x", 4)])
def test_mirroring_flips_image_and_labels_along_its_axis(axis: Literal["z", "y", "x"], dim: int) -> None:
    image, target, weight = box_batch(size=16)
    weight[..., :8] = 0.5
    before_image, before_target, before_weight = image.clone(), target.clone(), weight.clone()
    after_image, after_target, after_weight = augment((image, target, weight), only(mirror_axes=(axis,)), 0)
    flipped = [b for b in range(16) if not torch.equal(after_target[b], before_target[b])]
    assert 0 < len(flipped) < 16
    for b in flipped:
        for after, before in (
            (after_image, before_image),
            (after_target, before_target),
            (after_weight, before_weight),
        ):
            assert torch.equal(after[b], before[b].flip(dim - 1))


def test_an_affine_transform_keeps_image_and_labels_aligned() -> None:
    image, target, weight = augmented(
        only(affine_probability=1.0, rotation_degrees=20.0), make=lambda: box_batch(side=24)
    )
    assert not torch.equal(target, box_batch(side=24)[1])
    known = weight[:, 0] > 0.999
    assert torch.equal((image[:, 0] > 0.5)[known], (target[:, 0] > 0.5)[known])
    assert set(target.unique().tolist()) == {0.0, 1.0}
    assert not (target[:, 1] > target[:, 0]).any()  # the tumour stays inside


def test_voxels_from_outside_the_patch_have_no_weight() -> None:
    params = only(affine_probability=1.0, rotation_degrees=0.0, scale=0.5)
    corners = {}
    for seed in range(40):
        image, target, weight = augmented(params, seed, all_ones)
        middle, corner = weight[0, 0, 8, 8, 8].item(), weight[0, 0, 0, 0, 0].item()
        assert middle == pytest.approx(1)
        assert image.min() == pytest.approx(1)  # the border of the image is repeated
        assert not target[weight < 0.4].any()
        corners[seed] = corner
    assert any(corner == 0 for corner in corners.values())
    assert any(corner == pytest.approx(1) for corner in corners.values())  # zoomed in along every axis


def test_a_right_angle_about_z_takes_x_to_y() -> None:
    assert rotation(np.array([90.0, 0.0, 0.0])) @ [1, 0, 0] == pytest.approx([0, 1, 0])
    assert rotation(np.array([0.0, 90.0, 0.0])) @ [0, 0, 1] == pytest.approx([1, 0, 0])
    assert rotation(np.array([0.0, 0.0, 90.0])) @ [0, 1, 0] == pytest.approx([0, 0, 1])


def test_a_rotation_keeps_lengths_and_handedness() -> None:
    matrix = rotation(np.array([10.0, -25.0, 70.0]))
    assert matrix @ matrix.T == pytest.approx(np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1)


@pytest.mark.parametrize("spacing_zyx_mm", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5), (0.5, 1.0, 1.0)])
def test_a_rotated_ball_stays_a_ball_in_an_anisotropic_patch(spacing_zyx_mm: SpacingZYX) -> None:
    dz, dy, dx = spacing_zyx_mm

    def centred_ball() -> Batch:
        z, y, x = np.indices((32, 24, 24))
        inside = ((z - 15.5) * dz) ** 2 + ((y - 11.5) * dy) ** 2 + ((x - 11.5) * dx) ** 2 <= 5.7**2
        targets = torch.from_numpy(inside).float().expand(1, 2, -1, -1, -1).clone()
        return targets[:, :1].clone(), targets, torch.ones_like(targets)

    ball = centred_ball()[1][:, 0]
    for seed in range(5):
        params = only(affine_probability=1.0, rotation_degrees=40.0, scale=0.0)
        turned = augment(centred_ball(), params, seed, spacing_zyx_mm=spacing_zyx_mm)[1][:, 0]
        assert 2 * float((ball * turned).sum()) / float(ball.sum() + turned.sum()) > 0.9


def test_intensity_transforms_leave_labels_unchanged() -> None:
    params = only(intensity_probability=1.0, blur_probability=1.0)
    image, target, weight = augmented(params)
    before_image, before_target, before_weight = box_batch()
    assert torch.equal(target, before_target)
    assert torch.equal(weight, before_weight)
    assert not torch.equal(image, before_image)


def test_contrast_and_brightness_stay_within_their_bounds() -> None:
    params = only(intensity_probability=1.0, noise=0.0, contrast=0.3, brightness=0.2)
    for seed in range(20):
        image = augmented(params, seed)[0]
        mean = box_batch()[0].mean()
        assert 0.7 - 1e-5 <= float(image[0].max() - image[0].min()) <= 1.3 + 1e-5
        assert abs(float(image[0].mean() - mean)) <= 0.2 + 1e-5


def test_a_blur_keeps_a_constant_image_and_softens_an_edge() -> None:
    params = only(blur_probability=1.0)
    constant = augmented(params, make=lambda: (torch.full((1, 1, 8, 8, 8), 3.0), *box_batch(1, 8)[1:]))[0]
    assert torch.allclose(constant, torch.tensor(3.0))
    edge = augmented(params)[0]
    assert ((edge > 0.05) & (edge < 0.95)).any()
    assert edge.min() >= 0
    assert edge.max() <= 1


def test_an_elastic_deformation_keeps_image_and_labels_aligned_and_connected() -> None:
    params = only(elastic_probability=1.0)
    bent = 0
    for seed in range(8):
        image, target, weight = augmented(params, seed, lambda: box_batch(size=1, side=32))
        known = weight[:, 0] > 0.999
        bent += not torch.equal(target, box_batch(size=1, side=32)[1])
        assert torch.equal((image[:, 0] > 0.5)[known], (target[:, 0] > 0.5)[known])
        _, pieces = ndimage.label(target[0, 0].numpy())
        assert pieces == 1
    assert bent > 4  # in the others the displacement is below a voxel


def test_gamma_keeps_the_range_and_the_order_of_values() -> None:
    exponents = set()
    for seed in range(20):
        image, _, _ = augmented(only(gamma_probability=1.0), seed, ramp_batch)
        assert (float(image.min()), float(image.max())) == (0.0, pytest.approx(1.0))
        assert (image.flatten().diff() >= 0).all()
        exponents.add(float(image.flatten()[2048].log() / ramp_batch()[0].flatten()[2048].log()))
    assert math.exp(-0.5) - 1e-4 <= min(exponents) < 0.8
    assert 1.25 < max(exponents) <= math.exp(0.5) + 1e-4


def test_low_resolution_removes_only_detail() -> None:
    board = (torch.arange(16)[:, None, None] + torch.arange(16)[:, None] + torch.arange(16)) % 2
    labels = torch.ones(1, 2, 16, 16, 16)
    make = lambda: (board.float()[None, None].clone(), labels.clone(), labels.clone())  # noqa: E731
    image, target, _ = augmented(only(low_resolution_probability=1.0), 3, make)
    assert image.std() < 0.8 * board.float().std()
    assert float(image.mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(target, labels)


def test_a_bias_field_is_smooth_bounded_and_only_in_mr() -> None:
    ones = lambda: (torch.cat([torch.zeros(2, 1, 1, 16, 16), torch.ones(2, 1, 15, 16, 16)], 2), *ramp_batch(2)[1:])  # noqa: E731
    image, target, weight = ones()
    before = image.clone()
    image, _, _ = augment((image, target, weight), only(bias_field_probability=1.0), 1, [True, False])
    assert torch.equal(image[1], before[1])
    field = image[0, 0, 1:].log()
    assert float(field.abs().max()) <= 0.5
    assert float(field.std()) > 0.05
    assert float(field.diff(dim=1).abs().max()) < 0.5 * 2 / 7  # at most the whole range from knot to knot
    image, target, weight = ones()
    assert torch.equal(augment((image, target, weight), only(bias_field_probability=1.0), 1, [False, False])[0], before)


def test_a_random_curve_reorders_intensities_and_keeps_a_constant_image() -> None:
    turned = 0
    for seed in range(10):
        image, _, _ = augmented(only(remap_probability=1.0), seed, ramp_batch)
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        steps = image.flatten().diff()
        assert float(steps.abs().max()) <= 4 / (16**3 - 1) + 1e-6  # continuous, with five knots
        turned += bool((steps < 0).any() and (steps > 0).any())
    assert turned > 5
    flat = torch.full((1, 1, 8, 8, 8), 3.0)
    labels = torch.ones(1, 2, 8, 8, 8)
    after, _, _ = augmented(only(remap_probability=1.0), 0, lambda: (flat.clone(), labels, labels))
    assert torch.allclose(after, flat, atol=1e-5)


def test_a_monotone_curve_keeps_the_order_and_the_range_of_values() -> None:
    middles = set()
    for seed in range(20):
        image, _, _ = augmented(
            only(monotone_probability=1.0), seed, lambda: (5 * ramp_batch()[0] - 2, *ramp_batch()[1:])
        )
        values = image.flatten()
        assert (float(values[0]), float(values[-1])) == (pytest.approx(-2), pytest.approx(3, abs=1e-5))
        rises = values.diff() * (16**3 - 1) / 5  # relative to the ramp
        assert float(rises.min()) > 4 * 0.1 / (0.1 + 3 * 1.0) - 0.01  # the least share of one of four pieces
        assert float(rises.max()) < 4 * 1.0 / (1.0 + 3 * 0.1) + 0.01
        middles.add(round(float(values[2048]), 3))
    assert min(middles) < 0.1
    assert max(middles) > 0.9
    flat = torch.full((1, 1, 8, 8, 8), 3.0)
    labels = torch.ones(1, 2, 8, 8, 8)
    after, _, _ = augmented(only(monotone_probability=1.0), 0, lambda: (flat.clone(), labels, labels))
    assert torch.allclose(after, flat, atol=1e-5)


def test_inversion_mirrors_the_range_of_mr_alone() -> None:
    def make() -> Batch:
        image, target, weight = ramp_batch(2)
        return 5 * image - 2, target, weight  # from -2 to 3

    before, target, _ = make()
    after, after_target, _ = augment(make(), only(inversion_probability=1.0), 0, [True, False])
    assert torch.allclose(after[0], 1 - before[0], atol=1e-5)
    assert torch.equal(after[1], before[1])
    assert torch.equal(after_target, target)


def test_a_liver_shift_moves_the_liver_and_fades_within_one_voxel() -> None:
    liver_dhw = torch.zeros(16, 16, 16)
    liver_dhw[4:12, 4:12, 0:12] = 1  # it is cut by the border of the patch
    image_cdhw = torch.randn(1, 16, 16, 16)
    change_dhw = (shift_liver(image_cdhw, liver_dhw, -0.4) - image_cdhw)[0]
    depth_dhw = torch.from_numpy(ndimage.distance_transform_cdt(np.pad(liver_dhw, 1, "edge"), "chessboard"))
    inside = depth_dhw[1:-1, 1:-1, 1:-1] > 1  # all neighbours are liver, as far as the patch shows
    beyond = ndimage.distance_transform_cdt(1 - liver_dhw, "chessboard") > 1
    assert inside.sum() == 6 * 6 * 11
    assert torch.allclose(change_dhw[inside], torch.tensor(-0.4), atol=1e-6)
    assert torch.allclose(change_dhw[torch.from_numpy(beyond)], torch.tensor(0.0), atol=1e-6)
    border_dhw = change_dhw[torch.from_numpy(~beyond) & ~inside]
    assert ((border_dhw < 0) & (border_dhw > -0.4)).all()


def test_livers_of_both_modalities_become_brighter_or_darker_within_the_bound() -> None:
    shifts = []
    for seed in range(20):
        image, *labels = box_batch()
        image, target, weight = augment((0.2 * image, *labels), only(liver_shift_probability=1.0), seed, [True, False])
        assert torch.equal(target, box_batch()[1])
        assert torch.equal(weight, box_batch()[2])
        assert float(image[:, 0, 14:, :, :].abs().max()) == 0  # far from the liver
        shifts += (image[:, 0, 5, 8, 6] - 0.2).tolist()
    assert min(shifts) >= -0.5
    assert max(shifts) <= 0.5
    assert min(shifts[::2]) < -0.3
    assert max(shifts[::2]) > 0.3
    assert min(shifts[1::2]) < -0.3
    assert max(shifts[1::2]) > 0.3


def test_a_shifted_liver_stays_where_livers_are() -> None:
    levels = []
    for seed in range(20):
        image, *labels = box_batch()
        image, _, _ = augment(
            (0.8 * image, *labels), only(liver_shift_probability=1.0, liver_shift=9.0), seed, [True, False]
        )
        levels += image[:, 0, 5, 8, 6].tolist()
    assert min(levels[::2]) == pytest.approx(MR_LIVERS[0])
    assert max(levels[::2]) == pytest.approx(MR_LIVERS[1])
    low, high = WINDOW_HU
    hu = [low + (level + 1) / 2 * (high - low) for level in levels[1::2]]
    assert (min(hu), max(hu)) == pytest.approx(CT_LIVERS_HU, abs=1e-3)


@pytest.mark.parametrize("is_mr", [True, False])
def test_a_transform_that_is_off_draws_no_number(is_mr: bool) -> None:
    """What other transforms do does not depend on its further settings."""
    others = {"intensity_probability": 1.0, "gamma_probability": 0.5, "remap_probability": 0.5}
    strength = {"liver_shift": 3.0, "bias_field": 2.0, "elastic_voxels": 9.0, "low_resolution": 8.0}
    rngs = [np.random.default_rng(1), np.random.default_rng(1)]
    for rng, params in zip(rngs, (only(**others), only(**others, **strength)), strict=True):
        image, target, _ = ramp_batch()
        augment_intensity(image, target[:, 0], params, [rng], [is_mr], WINDOW_HU)
    assert rngs[0].bit_generator.state == rngs[1].bit_generator.state
    untouched = np.random.default_rng(1)
    image, target, _ = ramp_batch()
    augment_intensity(image, target[:, 0], OFF, [untouched], [is_mr], WINDOW_HU)
    drawn = np.random.default_rng(1)
    drawn.random(3)  # whether there is a blur, another contrast, noise
    assert untouched.bit_generator.state == drawn.bit_generator.state

"""The loss of partially labelled batches, against formulas written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_targets import LINE_ZYX, line_targets
from toy_training import toy_settings

from hepar.cases import LIVER, TUMOUR, LabelState
from hepar.params import Params
from hepar.pool.targets import FULL, Targets
from hepar.training.losses import (
    FALSE_POSITIVE_VOXELS,
    LossWeights,
    consistency,
    masked_bce,
    masked_dice,
    masked_loss,
    nesting_penalty,
)


def as_batch(targets: Targets) -> tuple[Tensor, Tensor]:
    """Targets and weights of one case, float32 brdhw."""
    target_rzyx = np.stack([targets.liver_zyx, targets.tumour_zyx]).astype(np.float32)
    weight_rzyx = np.stack([targets.liver_weight_zyx, targets.tumour_weight_zyx]).astype(np.float32) / FULL
    return torch.from_numpy(target_rzyx[None]), torch.from_numpy(weight_rzyx[None])


def test_only_known_voxels_change_the_loss() -> None:
    target_brdhw, weight_brdhw = as_batch(line_targets(LabelState.MANUAL, LabelState.UNKNOWN))
    logits_brdhw = torch.linspace(-2, 2, 24).reshape(1, 2, *LINE_ZYX)
    before = masked_loss([logits_brdhw], target_brdhw, weight_brdhw, LossWeights()).total
    unknown, known = target_brdhw.clone(), target_brdhw.clone()
    unknown[0, TUMOUR, 0, 0, 5] = 1
    known[0, TUMOUR, 0, 0, 0] = 1  # outside the liver, where the tumour is known to be absent
    assert masked_loss([logits_brdhw], unknown, weight_brdhw, LossWeights()).total == before
    assert masked_loss([logits_brdhw], known, weight_brdhw, LossWeights()).total != before


PARTLY_KNOWN = [
    line_targets(LabelState.PSEUDO, LabelState.MANUAL, weight=0.4),
    line_targets(LabelState.MANUAL, LabelState.UNKNOWN),
    line_targets(LabelState.PSEUDO, LabelState.UNKNOWN, weight=0.4),
    line_targets(LabelState.UNKNOWN, LabelState.MANUAL),
    line_targets(LabelState.UNKNOWN, LabelState.UNKNOWN),
]


@pytest.mark.parametrize("targets", PARTLY_KNOWN)
def test_targets_and_logits_of_unknown_voxels_are_ignored(targets: Targets) -> None:
    target_brdhw, weight_brdhw = as_batch(targets)
    logits_brdhw = torch.linspace(-2, 2, 24).reshape(1, 2, *LINE_ZYX)
    other_target_brdhw = torch.where(weight_brdhw == 0, 1 - target_brdhw, target_brdhw)
    other_logits_brdhw = torch.where(weight_brdhw == 0, 9.0, logits_brdhw)
    assert not torch.equal(other_target_brdhw, target_brdhw)
    parts = masked_loss([logits_brdhw], target_brdhw, weight_brdhw, LossWeights())
    other_parts = masked_loss([other_logits_brdhw], other_target_brdhw, weight_brdhw, LossWeights())
    assert parts.bce == other_parts.bce
    assert parts.dice == other_parts.dice


def test_the_loss_follows_the_formulas() -> None:
    # with loops: three voxels at two scales, of weight 1, 0.4 and 0
    target = [[1, 0, 1], [1, 0, 0]]
    weight = [[1.0, 0.4, 0.0], [0.4, 1.0, 0.0]]
    scales = [[[0.3, -0.7, 1.1], [0.9, -0.2, 2.0]], [[-0.4, 0.5, 0.0], [0.1, -1.3, 0.6]]]
    shares, weights = (2 / 3, 1 / 3), LossWeights((1.0, 0.2), (0.3, 0.7), 0.1)

    def p(logit: float) -> float:
        return 1 / (1 + math.exp(-logit))

    expected = 0.0
    for share, z in zip(shares, scales, strict=True):
        for r in range(2):
            y, m = target[r], weight[r]
            ce = [m[v] * -(y[v] * math.log(p(z[r][v])) + (1 - y[v]) * math.log(1 - p(z[r][v]))) for v in range(3)]
            expected += share * weights.bce[r] * sum(ce) / max(sum(m), 1)
            expected += share * weights.inside[r] * sum(ce[v] * y[v] for v in range(3)) / 20
            overlap = sum(m[v] * p(z[r][v]) * y[v] for v in range(3))
            in_target, predicted = sum(m[v] * y[v] for v in range(3)), sum(m[v] * p(z[r][v]) for v in range(3))
            expected += share * (1 - (2 * overlap + 1) / (predicted + in_target + 1))
    first = scales[0]
    expected += weights.nesting * sum(max(0.0, p(first[1][v]) - p(first[0][v])) for v in range(3)) / 3

    def as_brdhw(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).reshape(1, 2, 1, 1, 3)

    logits_per_scale = [as_brdhw(z) for z in scales]
    loss = masked_loss(logits_per_scale, as_brdhw(target), as_brdhw(weight), weights)
    assert loss.total.item() == pytest.approx(expected)


def test_cross_entropy_is_the_mean_over_known_voxels() -> None:
    target_brdhw, weight_brdhw = torch.zeros(1, 2, 1, 1, 4), torch.zeros(1, 2, 1, 1, 4)
    weight_brdhw[0, LIVER, ..., :2] = 1
    target_brdhw[0, LIVER, ..., 0] = 1
    logits_brdhw = torch.full((1, 2, 1, 1, 4), math.log(3))  # probability 3/4
    expected = (-math.log(0.75) - math.log(0.25)) / 2
    assert masked_bce(logits_brdhw, target_brdhw, weight_brdhw, LossWeights()).item() == pytest.approx(
        expected, rel=1e-6
    )
    halved = masked_bce(logits_brdhw, target_brdhw, weight_brdhw, LossWeights(bce=(0.5, 1.0))).item()
    assert halved == pytest.approx(expected / 2, rel=1e-6)


def test_the_cross_entropy_of_a_lesion_does_not_depend_on_the_voxels_around_it() -> None:
    """40 of 50 and of 50,000 voxels at probability 1/4, beside the mean over all; 10 voxels count half of 20."""
    weights = LossWeights(bce=(1.0, 1.0), inside=(0.0, 0.5))

    def added(inside: int, voxels: int) -> float:
        shape = (1, 2, 1, 1, voxels)
        target_brdhw, logits_brdhw = torch.zeros(shape), torch.full(shape, -math.log(3))
        target_brdhw[0, TUMOUR, ..., :inside] = 1
        both = [masked_bce(logits_brdhw, target_brdhw, torch.ones(shape), one) for one in (weights, LossWeights())]
        return float(both[0] - both[1])

    for voxels in (50, 50_000):
        assert added(40, voxels) == pytest.approx(0.5 * math.log(4), rel=1e-4)
    assert added(10, 50) == pytest.approx(0.5 * math.log(4) / 2, rel=1e-4)
    assert added(0, 50) == 0


def test_the_cross_entropy_of_lesions_fades_over_a_training(tiny: Params) -> None:
    params = toy_settings(tiny, steps=200, inside_weights=(0.4, 0.1), bce_weights=(1.0, 0.5), nesting_weight=0.3)
    first, half = (LossWeights.of(params, step) for step in (0, 100))
    assert first == LossWeights((1.0, 0.5), (0.4, 0.1), 0.3)
    assert half == LossWeights((1.0, 0.5), (0.2, 0.05), 0.3)


def test_dice_is_of_the_whole_batch() -> None:
    target_brdhw, weight_brdhw = torch.zeros(2, 2, 1, 1, 4), torch.ones(2, 2, 1, 1, 4)
    weight_brdhw[:, TUMOUR] = 0
    target_brdhw[0, LIVER, ..., :2] = 1  # the second case has no liver: its own Dice would be undefined
    probability_brdhw = torch.full((2, 2, 1, 1, 4), 0.5)
    expected = 1 - (2 * 1 + 1) / (4 + 2 + 1)
    assert masked_dice(probability_brdhw, target_brdhw, weight_brdhw).item() == pytest.approx(expected, rel=1e-6)


def test_an_absent_structure_costs_by_the_size_of_its_false_positives() -> None:
    target_brdhw, weight_brdhw = torch.zeros(2, 2, 5, 10, 10), torch.zeros(2, 2, 5, 10, 10)
    weight_brdhw[0, TUMOUR] = 1  # the liver is unknown, and so is the tumour of the second case
    probability_brdhw = torch.zeros(2, 2, 5, 10, 10)
    probability_brdhw[0, TUMOUR, 0] = 0.5  # 100 voxels
    probability_brdhw[0, LIVER] = probability_brdhw[1] = 1.0  # unknown

    def loss() -> float:
        return masked_dice(probability_brdhw, target_brdhw, weight_brdhw).item()

    assert loss() == pytest.approx(25 / (25 + FALSE_POSITIVE_VOXELS))
    probability_brdhw[0, TUMOUR, 0] = 1.0
    assert loss() == pytest.approx(0.5)
    weight_brdhw[0, TUMOUR] = 0.4  # known as far as its weight
    assert loss() == pytest.approx(40 / (40 + FALSE_POSITIVE_VOXELS))
    probability_brdhw[0, TUMOUR] = 0.0
    assert loss() == 0
    weight_brdhw[:] = 0
    assert loss() == 0


def gradient_on_lesion(is_true: bool, probability: float, background_logit: float) -> float:
    """Sum over a lesion of 42 voxels, in a batch of two patches, of the size of the gradient of the logits."""
    shape, inside = (2, 2, 32, 64, 64), (0, TUMOUR, slice(10, 13), slice(20, 22), slice(30, 37))
    target_brdhw = torch.zeros(shape)
    target_brdhw[:, LIVER, 4:28, 10:50, 10:50] = 1
    logits_brdhw = background_logit * (1 - 2 * target_brdhw)  # the liver is found
    target_brdhw[inside] = float(is_true)
    logits_brdhw[inside] = math.log(probability / (1 - probability))
    masked_loss(
        [logits_brdhw.requires_grad_()], target_brdhw, torch.ones(shape), LossWeights(nesting=0.1)
    ).total.backward()
    assert logits_brdhw.grad is not None
    assert logits_brdhw.grad[inside].numel() == 42
    return float(logits_brdhw.grad[inside].abs().sum())


@pytest.mark.parametrize("background_logit", [-12.0, -8.0, -6.0, -4.0])
def test_a_false_lesion_has_a_gradient_like_that_of_a_true_one(background_logit: float) -> None:
    false = gradient_on_lesion(is_true=False, probability=0.9, background_logit=background_logit)
    found = gradient_on_lesion(is_true=True, probability=0.9, background_logit=background_logit)
    missed = gradient_on_lesion(is_true=True, probability=0.1, background_logit=background_logit)
    assert 0.1 < false / found < 10
    assert 0.1 < false / missed < 10


def test_nothing_known_gives_no_loss() -> None:
    logits_brdhw, unknown = torch.full((1, 2, 1, 1, 4), 3.0), torch.zeros(1, 2, 1, 1, 4)
    parts = masked_loss([logits_brdhw], torch.ones(1, 2, 1, 1, 4), unknown, LossWeights(nesting=1.0))
    assert parts.total.item() == parts.bce.item() == parts.dice.item() == 0


def test_nesting_penalises_tumour_in_excess_of_liver() -> None:
    probability_brdhw = torch.zeros(1, 2, 1, 1, 2)
    probability_brdhw[0, TUMOUR, ..., 0], probability_brdhw[0, LIVER, ..., 1] = 0.6, 0.9
    assert nesting_penalty(probability_brdhw).item() == pytest.approx(0.3)


def test_each_scale_weighs_half_as_much_as_the_one_before() -> None:
    target_brdhw, weight_brdhw = as_batch(line_targets(LabelState.MANUAL, LabelState.MANUAL))
    fine_brdhw, coarse_brdhw = torch.randn(1, 2, *LINE_ZYX), torch.randn(1, 2, *LINE_ZYX)
    both = masked_loss([fine_brdhw, coarse_brdhw], target_brdhw, weight_brdhw, LossWeights()).total
    fine, coarse = (
        masked_loss([scale], target_brdhw, weight_brdhw, LossWeights()).total for scale in (fine_brdhw, coarse_brdhw)
    )
    assert both.item() == pytest.approx((2 * fine + coarse).item() / 3, rel=1e-5)


def test_consistency_counts_unknown_voxels_only() -> None:
    probability_brdhw, teacher_brdhw = torch.zeros(1, 2, 1, 1, 2), torch.zeros(1, 2, 1, 1, 2)
    weight_brdhw = torch.ones(1, 2, 1, 1, 2)
    assert consistency(probability_brdhw, teacher_brdhw + 1, weight_brdhw).item() == 0  # all is known
    weight_brdhw[0, TUMOUR, ..., 0], weight_brdhw[0, TUMOUR, ..., 1] = 0, 0.5
    teacher_brdhw[0, TUMOUR, ..., 0], teacher_brdhw[0, LIVER] = 0.6, 0.9
    assert consistency(probability_brdhw, teacher_brdhw, weight_brdhw).item() == pytest.approx(0.36 / 1.5)

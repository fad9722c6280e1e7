"""The masked loss, row by row of the mixed-label table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hepar.cases import LIVER, TUMOUR, LabelState
from hepar.pool.table import FULL, KnownLabels, Targets, make_targets
from hepar.training.losses import consistency, masked_bce, masked_dice, masked_loss, nesting_penalty

EQUAL = (1.0, 1.0)
SHAPE = (1, 1, 12)
SPACING = (1.0, 1.0, 2.0)  # along x 2 mm a voxel
LIVER_X, TUMOUR_X = slice(4, 8), slice(5, 6)


def row(liver: LabelState, tumour: LabelState, weight: float = 1.0, rule: str = "masked") -> Targets:
    """A liver in voxels 4 to 7 of a line, its tumour in voxel 5; voxel 4 is uncertain in a pseudo-liver."""
    liver_mask = np.zeros(SHAPE, bool)
    liver_mask[..., LIVER_X] = True
    tumour_mask = np.zeros(SHAPE, bool)
    tumour_mask[..., TUMOUR_X] = True
    uncertain = np.zeros(SHAPE, bool)
    uncertain[..., 4:6] = True
    known = KnownLabels(
        liver_state=liver,
        tumour_state=tumour,
        liver=None if liver == LabelState.UNKNOWN else liver_mask,
        tumour=tumour_mask if tumour == LabelState.MANUAL else None,
        weight=weight,
        uncertain=uncertain if liver == LabelState.PSEUDO else None,
    )
    return make_targets(known, SHAPE, SPACING, rule, margin_mm=5.0)  # type: ignore[arg-type]


def weights(targets: Targets, structure: int) -> list[int]:
    stored = (targets.liver_weight, targets.tumour_weight)[structure]
    return [int(v) for v in stored.ravel()]


def test_manual_liver_and_manual_tumour_are_known_everywhere() -> None:
    targets = row(LabelState.MANUAL, LabelState.MANUAL)
    assert weights(targets, LIVER) == weights(targets, TUMOUR) == [FULL] * 12


def test_pseudo_liver_has_its_weight_no_say_at_its_boundary_and_full_weight_on_the_tumour() -> None:
    targets = row(LabelState.PSEUDO, LabelState.MANUAL, weight=0.4)
    assert weights(targets, LIVER) == [102] * 4 + [0, FULL] + [102] * 6
    assert weights(targets, TUMOUR) == [FULL] * 12


def test_unknown_tumour_is_known_absent_only_beyond_the_margin() -> None:
    # voxels 4..7 are liver; 5 mm at 2 mm a voxel reaches two voxels further
    targets = row(LabelState.MANUAL, LabelState.UNKNOWN)
    assert weights(targets, TUMOUR) == [FULL, FULL] + [0] * 8 + [FULL, FULL]
    assert not targets.tumour.any()


def test_unknown_tumour_beside_a_pseudo_liver_counts_by_the_livers_weight() -> None:
    targets = row(LabelState.PSEUDO, LabelState.UNKNOWN, weight=0.4)
    assert weights(targets, TUMOUR) == [102, 102] + [0] * 8 + [102, 102]


def test_absent_tumour_is_a_negative_everywhere() -> None:
    targets = row(LabelState.MANUAL, LabelState.ABSENT)
    assert weights(targets, TUMOUR) == [FULL] * 12


def test_rejected_liver_teaches_nothing_but_its_manual_tumour() -> None:
    alone = row(LabelState.UNKNOWN, LabelState.UNKNOWN)
    assert weights(alone, LIVER) == weights(alone, TUMOUR) == [0] * 12
    with_tumour = row(LabelState.UNKNOWN, LabelState.MANUAL)
    assert weights(with_tumour, LIVER) == [0] * 12
    assert weights(with_tumour, TUMOUR) == [FULL] * 12


@pytest.mark.parametrize(("rule", "expected"), [("ignored", 0), ("background", FULL)])
def test_the_other_rules_for_unknown_tumours(rule: str, expected: int) -> None:
    assert weights(row(LabelState.MANUAL, LabelState.UNKNOWN, rule=rule), TUMOUR) == [expected] * 12


def test_a_tumour_outside_the_drawn_liver_belongs_to_the_liver() -> None:
    known = KnownLabels(LabelState.MANUAL, LabelState.MANUAL, np.zeros(SHAPE, bool), np.ones(SHAPE, bool))
    assert make_targets(known, SHAPE, SPACING, "masked", 5.0).liver.all()


def test_a_pseudo_liver_takes_in_its_manual_tumour_and_the_holes_between() -> None:
    pseudo, tumour = np.zeros((5, 5, 7), bool), np.zeros((5, 5, 7), bool)
    pseudo[1:4, 1:4, 1:4] = True
    pseudo[2, 2, 2] = False  # a hole
    tumour[2, 2, 4] = True  # beside it
    known = KnownLabels(LabelState.PSEUDO, LabelState.MANUAL, pseudo, tumour, weight=0.4)
    targets = make_targets(known, pseudo.shape, SPACING, "masked", 5.0)
    expected = np.zeros_like(pseudo)
    expected[1:4, 1:4, 1:4] = True
    expected[2, 2, 4] = True
    assert np.array_equal(targets.liver.astype(bool), expected)
    assert np.array_equal(targets.tumour.astype(bool), tumour)


def as_batch(targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    y = np.stack([targets.liver, targets.tumour]).astype(np.float32)[None]
    m = np.stack([targets.liver_weight, targets.tumour_weight]).astype(np.float32)[None] / FULL
    return torch.from_numpy(y), torch.from_numpy(m)


def test_an_unknown_voxel_changes_nothing_and_an_outside_liver_negative_does() -> None:
    y, m = as_batch(row(LabelState.MANUAL, LabelState.UNKNOWN))
    logits = torch.linspace(-2, 2, 24).reshape(1, 2, *SHAPE)
    before = masked_loss([logits], y, m, 0.0, EQUAL).total
    unknown, known = y.clone(), y.clone()
    unknown[0, TUMOUR, 0, 0, 5] = 1
    known[0, TUMOUR, 0, 0, 0] = 1
    assert masked_loss([logits], unknown, m, 0.0, EQUAL).total == before
    assert masked_loss([logits], known, m, 0.0, EQUAL).total != before


ROWS = [
    row(LabelState.PSEUDO, LabelState.MANUAL, weight=0.4),
    row(LabelState.MANUAL, LabelState.UNKNOWN),
    row(LabelState.PSEUDO, LabelState.UNKNOWN, weight=0.4),
    row(LabelState.UNKNOWN, LabelState.MANUAL),
    row(LabelState.UNKNOWN, LabelState.UNKNOWN),
]


@pytest.mark.parametrize("targets", ROWS)
def test_whatever_stands_where_nothing_is_known_changes_nothing(targets: Targets) -> None:
    y, m = as_batch(targets)
    logits = torch.linspace(-2, 2, 24).reshape(1, 2, *SHAPE)
    other_y, other_logits = torch.where(m == 0, 1 - y, y), torch.where(m == 0, 9.0, logits)
    assert not torch.equal(other_y, y)
    parts = [masked_loss([z], t, m, 0.0, EQUAL) for z, t in ((logits, y), (other_logits, other_y))]
    assert parts[0].bce == parts[1].bce
    assert parts[0].dice == parts[1].dice


def test_the_loss_is_what_the_formulas_say() -> None:
    # by hand, with loops: three voxels in two scales, known by 1, 0.4 and 0
    y = [[1, 0, 1], [1, 0, 0]]
    m = [[1.0, 0.4, 0.0], [0.4, 1.0, 0.0]]
    scales = [[[0.3, -0.7, 1.1], [0.9, -0.2, 2.0]], [[-0.4, 0.5, 0.0], [0.1, -1.3, 0.6]]]
    shares, of_structure, nesting_weight = (2 / 3, 1 / 3), (1.0, 0.2), 0.1

    def p(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    expected = 0.0
    for share, z in zip(shares, scales, strict=True):
        for r in range(2):
            known = sum(m[r])
            entropy = sum(
                m[r][v] * -(y[r][v] * math.log(p(z[r][v])) + (1 - y[r][v]) * math.log(1 - p(z[r][v]))) for v in range(3)
            )
            expected += share * of_structure[r] * entropy / max(known, 1)
            overlap = sum(m[r][v] * p(z[r][v]) * y[r][v] for v in range(3))
            wanted, found = sum(m[r][v] * y[r][v] for v in range(3)), sum(m[r][v] * p(z[r][v]) for v in range(3))
            expected += share * (1 - (2 * overlap + 1) / (found + wanted + 1))
    first = scales[0]
    expected += nesting_weight * sum(max(0.0, p(first[1][v]) - p(first[0][v])) for v in range(3)) / 3

    logits = [torch.tensor(z, dtype=torch.float32).reshape(1, 2, 1, 1, 3) for z in scales]
    target, weight = (torch.tensor(values, dtype=torch.float32).reshape(1, 2, 1, 1, 3) for values in (y, m))
    assert masked_loss(logits, target, weight, nesting_weight, of_structure).total.item() == pytest.approx(expected)


def test_cross_entropy_is_the_mean_over_what_is_known() -> None:
    y, m = torch.zeros(1, 2, 1, 1, 4), torch.zeros(1, 2, 1, 1, 4)
    m[0, LIVER, ..., :2] = 1
    y[0, LIVER, ..., 0] = 1
    logits = torch.full((1, 2, 1, 1, 4), math.log(3))  # p = 3/4
    expected = (-math.log(0.75) - math.log(0.25)) / 2
    assert masked_bce(logits, y, m, EQUAL).item() == pytest.approx(expected, rel=1e-6)
    assert masked_bce(logits, y, m, (0.5, 1.0)).item() == pytest.approx(expected / 2, rel=1e-6)


def test_dice_is_that_of_the_batch_and_skips_what_the_batch_has_not() -> None:
    y, m = torch.zeros(2, 2, 1, 1, 4), torch.ones(2, 2, 1, 1, 4)
    y[0, LIVER, ..., :2] = 1  # the second case has none: a Dice per case would be undefined
    p = torch.full((2, 2, 1, 1, 4), 0.5)
    expected = 1 - (2 * 1 + 1) / (4 + 2 + 1)
    assert masked_dice(p, y, m).item() == pytest.approx(expected, rel=1e-6)
    assert masked_dice(p, torch.zeros_like(y), m).item() == 0


def test_nesting_counts_tumour_that_is_likelier_than_liver() -> None:
    p = torch.zeros(1, 2, 1, 1, 2)
    p[0, TUMOUR, ..., 0], p[0, LIVER, ..., 1] = 0.6, 0.9
    assert nesting_penalty(p).item() == pytest.approx(0.3)


def test_scales_are_weighted_by_halves() -> None:
    y, m = as_batch(row(LabelState.MANUAL, LabelState.MANUAL))
    fine, coarse = torch.randn(1, 2, *SHAPE), torch.randn(1, 2, *SHAPE)
    both = masked_loss([fine, coarse], y, m, 0.0, EQUAL).total
    parts = [masked_loss([scale], y, m, 0.0, EQUAL).total for scale in (fine, coarse)]
    assert both.item() == pytest.approx((2 * parts[0] + parts[1]).item() / 3, rel=1e-5)


def test_consistency_counts_the_unknown_voxels_alone() -> None:
    p, taught, m = torch.zeros(1, 2, 1, 1, 2), torch.zeros(1, 2, 1, 1, 2), torch.ones(1, 2, 1, 1, 2)
    assert consistency(p, taught + 1, m).item() == 0  # nothing is unknown
    m[0, TUMOUR, ..., 0], m[0, TUMOUR, ..., 1] = 0, 0.5
    taught[0, TUMOUR, ..., 0], taught[0, LIVER] = 0.6, 0.9
    assert consistency(p, taught, m).item() == pytest.approx(0.36 / 1.5)

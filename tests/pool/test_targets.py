"""Targets and weights, row by row of the table in docs/mixed-labels.md."""

from __future__ import annotations

import numpy as np
import pytest
from toy_targets import LINE_ZYX, SPACING_ZYX_MM, line_targets

from hepar.cases import LIVER, TUMOUR, LabelState
from hepar.pool.targets import FULL, KnownLabels, Targets, UnknownTumour, make_targets, tumour_weight


def weights(targets: Targets, structure: int) -> list[int]:
    weight_zyx = (targets.liver_weight_zyx, targets.tumour_weight_zyx)[structure]
    return [int(value) for value in weight_zyx.ravel()]


def test_manual_liver_and_manual_tumour_are_known_everywhere() -> None:
    targets = line_targets(LabelState.MANUAL, LabelState.MANUAL)
    assert weights(targets, LIVER) == weights(targets, TUMOUR) == [FULL] * 12


def test_a_pseudo_liver_has_its_weight_0_at_its_uncertain_boundary_and_1_on_the_tumour() -> None:
    targets = line_targets(LabelState.PSEUDO, LabelState.MANUAL, weight=0.4)
    assert weights(targets, LIVER) == [102] * 4 + [0, FULL] + [102] * 6
    assert weights(targets, TUMOUR) == [FULL] * 12


def test_an_unknown_tumour_is_known_to_be_absent_only_beyond_the_margin() -> None:
    # the liver is voxels 4 to 7, and 5 mm at 2 mm per voxel reach two voxels further
    targets = line_targets(LabelState.MANUAL, LabelState.UNKNOWN)
    assert weights(targets, TUMOUR) == [FULL, FULL] + [0] * 8 + [FULL, FULL]
    assert not targets.tumour_zyx.any()


def test_the_absence_of_an_unknown_tumour_has_the_weight_of_the_pseudo_liver() -> None:
    targets = line_targets(LabelState.PSEUDO, LabelState.UNKNOWN, weight=0.4)
    assert weights(targets, TUMOUR) == [102, 102] + [0] * 8 + [102, 102]


def test_an_absent_tumour_is_negative_everywhere() -> None:
    targets = line_targets(LabelState.MANUAL, LabelState.ABSENT)
    assert weights(targets, TUMOUR) == [FULL] * 12


def test_without_a_liver_only_a_manual_tumour_is_known() -> None:
    unknown = line_targets(LabelState.UNKNOWN, LabelState.UNKNOWN)
    assert weights(unknown, LIVER) == weights(unknown, TUMOUR) == [0] * 12
    with_tumour = line_targets(LabelState.UNKNOWN, LabelState.MANUAL)
    assert weights(with_tumour, LIVER) == [0] * 12
    assert weights(with_tumour, TUMOUR) == [FULL] * 12


@pytest.mark.parametrize(("rule", "expected"), [("ignored", 0), ("left-out", 0), ("background", FULL)])
def test_other_rules_for_unknown_tumours(rule: UnknownTumour, expected: int) -> None:
    targets = line_targets(LabelState.MANUAL, LabelState.UNKNOWN, rule=rule)
    assert weights(targets, TUMOUR) == [expected] * 12


def test_a_tumour_outside_the_manual_liver_becomes_part_of_the_liver() -> None:
    known = KnownLabels(LabelState.MANUAL, LabelState.MANUAL, np.zeros(LINE_ZYX, bool), np.ones(LINE_ZYX, bool))
    assert make_targets(known, LINE_ZYX, SPACING_ZYX_MM, "masked", 5.0).liver_zyx.all()


def test_a_pseudo_liver_takes_in_its_manual_tumour_and_the_holes_between() -> None:
    pseudo_zyx, tumour_zyx = np.zeros((5, 5, 7), bool), np.zeros((5, 5, 7), bool)
    pseudo_zyx[1:4, 1:4, 1:4] = True
    pseudo_zyx[2, 2, 2] = False  # a hole
    tumour_zyx[2, 2, 4] = True  # beside the liver
    known = KnownLabels(LabelState.PSEUDO, LabelState.MANUAL, pseudo_zyx, tumour_zyx, liver_weight=0.4)
    targets = make_targets(known, pseudo_zyx.shape, SPACING_ZYX_MM, "masked", 5.0)
    expected_zyx = np.zeros_like(pseudo_zyx)
    expected_zyx[1:4, 1:4, 1:4] = True
    expected_zyx[2, 2, 4] = True
    assert np.array_equal(targets.liver_zyx.astype(bool), expected_zyx)
    assert np.array_equal(targets.tumour_zyx.astype(bool), tumour_zyx)


@pytest.mark.parametrize("rule", ["masked", "ignored", "background"])
@pytest.mark.parametrize("liver", [LabelState.MANUAL, LabelState.PSEUDO, LabelState.UNKNOWN])
@pytest.mark.parametrize("tumour", [LabelState.MANUAL, LabelState.ABSENT, LabelState.UNKNOWN])
def test_the_weight_of_a_tumour_label_is_the_largest_of_its_voxels(
    liver: LabelState, tumour: LabelState, rule: UnknownTumour
) -> None:
    targets = line_targets(liver, tumour, weight=0.4, rule=rule)
    liver_weight = {LabelState.MANUAL: 1.0, LabelState.PSEUDO: 0.4, LabelState.UNKNOWN: 0.0}[liver]
    assert max(weights(targets, TUMOUR)) == round(FULL * tumour_weight(tumour, rule, liver_weight))

"""Validation: which cases count, and how they make up the score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_pool import Toy, toy_pool
from toy_training import CPU, PATCH, TOYS, toy_settings

from hepar.cases import LabelState, Modality, Split
from hepar.evaluation.overlap import OverlapCounts
from hepar.params import Params
from hepar.training.validation import Overlaps, count_overlaps, validation_cases, validation_score

HELD_OUT = [
    *TOYS,
    Toy("healthy", Modality.MR, split=Split.VAL, shape=PATCH, liver=((8, 15, 16), 7.0), tumour_state=LabelState.ABSENT),
    Toy("no-liver", split=Split.VAL, shape=PATCH, liver_state=LabelState.UNKNOWN, lesions=(((8, 15, 13), 3.0),)),
]


class ConstantNetwork(torch.nn.Module):
    """Predicts liver everywhere, and tumour everywhere or nowhere."""

    def __init__(self, tumour_logit: float) -> None:
        super().__init__()
        self.tumour_logit = tumour_logit

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(image_bcdhw), torch.full_like(image_bcdhw, self.tumour_logit)], dim=1)


def test_false_positives_in_a_case_without_tumours_lower_the_score(tiny: Params, tmp_path: Path) -> None:
    pool, params = toy_pool(tmp_path, HELD_OUT), toy_settings(tiny)
    cases = validation_cases(pool, params.validation_cases)
    assert [entry.case_id for entries in cases.values() for entry in entries] == ["ct-2", "no-liver", "healthy"]

    def counted(modality: Modality, tumour_logit: float) -> Overlaps:
        return count_overlaps(
            ConstantNetwork(tumour_logit), pool, cases[modality], params, CPU, should_stop=lambda: False
        )

    everywhere, nowhere = counted(Modality.MR, 9.0), counted(Modality.MR, -9.0)
    assert [overlaps.tumours[0].prediction_voxels > 0 for overlaps in (everywhere, nowhere)] == [True, False]
    lesions = counted(Modality.CT, 9.0).tumours
    assert len(lesions) == 2
    found = [
        replace(counts, prediction_voxels=counts.reference_voxels, intersection_voxels=counts.reference_voxels)
        for counts in lesions
    ]
    assert Overlaps((), found).metrics() == {"tumour_dice": 1.0}
    assert Overlaps((), [*found, *everywhere.tumours]).metrics()["tumour_dice"] < 0.1
    assert Overlaps((), everywhere.tumours).metrics() == {}
    assert validation_score([Overlaps((), found)]) == 1
    score = validation_score([Overlaps((), found), Overlaps((), everywhere.tumours)])
    assert score is not None
    assert score < 0.1


def test_the_score_is_the_mean_of_liver_dice_by_modality_and_one_tumour_dice() -> None:
    ct = Overlaps([OverlapCounts(100, 100, 50), OverlapCounts(100, 100, 70)], [OverlapCounts(10, 10, 5)])
    mr = Overlaps([OverlapCounts(100, 100, 90)], [OverlapCounts(0, 20, 0)])
    assert ct.metrics() == pytest.approx({"liver_dice": 0.6, "tumour_dice": 0.5})
    assert mr.metrics() == pytest.approx({"liver_dice": 0.9})
    assert validation_score([ct, mr]) == pytest.approx((0.6 + 0.9 + 2 * 5 / 40) / 3)


def test_without_cases_there_is_no_score() -> None:
    assert Overlaps((), ()).metrics() == {}
    assert validation_score([]) is None
    assert validation_score([Overlaps((), ())]) is None

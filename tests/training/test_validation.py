"""Validation: which cases count, and how they make up the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_pool import PLAN, Toy, toy_pool
from toy_training import CPU, PATCH, TOYS, toy_settings

from hepar.cases import STRUCTURES, LabelState, Modality, Split
from hepar.evaluation.overlap import OverlapCounts
from hepar.params import Params
from hepar.pool.table import Pool
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
            ConstantNetwork(tumour_logit), pool, cases[modality], params, CPU, STRUCTURES, should_stop=lambda: False
        )

    everywhere, nowhere = counted(Modality.MR, 9.0), counted(Modality.MR, -9.0)
    assert [overlaps.tumours[0].prediction_voxels > 0 for overlaps in (everywhere, nowhere)] == [True, False]
    lesions = counted(Modality.CT, 9.0).tumours
    assert len(lesions) == 2
    found = [
        replace(counts, prediction_voxels=counts.reference_voxels, intersection_voxels=counts.reference_voxels)
        for counts in lesions
    ]
    assert replace(nowhere, livers=()).metrics() == {"tumour_free": 1.0}
    assert everywhere.voxel_ml == 0.008
    false_ml = everywhere.tumours[0].prediction_voxels * 0.008
    assert replace(everywhere, livers=()).metrics() == {"tumour_free": pytest.approx(5 / (5 + false_ml))}
    assert Overlaps((), found, 0.008).metrics() == {"tumour_dice": 1.0}
    assert Overlaps((), [*found, *everywhere.tumours], 0.008).metrics()["tumour_dice"] < 0.1
    assert validation_score([Overlaps((), found, 0.008), replace(nowhere, livers=())]) == 1
    score = validation_score([Overlaps((), found, 0.008), replace(everywhere, livers=())])
    assert score is not None
    assert score < 0.1


class BrightNetwork(torch.nn.Module):
    """Predicts liver where the image is above 0.5, and tumour where it is above 1.5."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        return 100 * torch.cat([image_bcdhw - 0.5, image_bcdhw - 1.5], dim=1)


def test_what_lies_apart_from_the_liver_does_not_count_because_a_prediction_drops_it(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = toy_pool(tmp_path, [Toy("ct", lesions=(), split=Split.VAL)])
    arrays = pool.arrays(pool.entries[0]).loaded()
    image_zyx = np.where(arrays.liver_zyx > 0, np.float16(1), np.float16(0))
    liver_voxels = int((arrays.liver_zyx > 0).sum())
    image_zyx[0, 0, :2] = 2  # an island with a tumour, in a corner
    assert arrays.liver_zyx[0, 0, :2].sum() == 0
    monkeypatch.setattr(Pool, "arrays", lambda *_: replace(arrays, image_zyx=image_zyx))
    entries, settings = pool.select(Split.VAL), toy_settings(tiny)

    def counted(taught: Sequence[str]) -> Overlaps:
        return count_overlaps(BrightNetwork(), pool, entries, settings, CPU, taught, should_stop=lambda: False)

    both = counted(STRUCTURES)
    assert both.livers[0].prediction_voxels == both.livers[0].intersection_voxels == liver_voxels
    assert both.tumours[0].prediction_voxels == 0
    assert counted(STRUCTURES[1:]).tumours[0].prediction_voxels == 2  # without a liver, tumours stay where they are


def test_the_score_is_the_mean_of_liver_and_healthy_cases_by_modality_and_one_tumour_dice() -> None:
    livers = [OverlapCounts(100, 100, 50), OverlapCounts(100, 100, 70)]
    ct = Overlaps(livers, [OverlapCounts(10, 10, 5)], voxel_ml=0.25)
    mr = Overlaps([OverlapCounts(100, 100, 90)], [OverlapCounts(0, 20, 0), OverlapCounts(0, 60, 0)], voxel_ml=0.25)
    free = (5 / (5 + 5) + 5 / (5 + 15)) / 2  # 5 and 15 ml of false tumour
    assert ct.metrics() == pytest.approx({"liver_dice": 0.6, "tumour_dice": 0.5})
    assert mr.metrics() == pytest.approx({"liver_dice": 0.9, "tumour_free": free})
    assert validation_score([ct, mr]) == pytest.approx((0.6 + 0.9 + free + 2 * 5 / 100) / 4)
    assert validation_score([mr]) == pytest.approx((0.9 + free) / 2)  # no tumour, so no Dice of one


def test_each_false_voxel_in_a_healthy_liver_lowers_the_score() -> None:
    def score(false_voxels: int) -> float | None:
        ct = Overlaps([OverlapCounts(100, 100, 90)], [OverlapCounts(10, 10, 9)], voxel_ml=0.25)
        return validation_score([ct, Overlaps((), [OverlapCounts(0, false_voxels, 0)], voxel_ml=0.25)])

    scores = [score(voxels) for voxels in (0, 1, 20, 400)]
    assert scores[0] == pytest.approx((0.9 + 1 + 0.9) / 3)
    assert scores == sorted(scores, key=float, reverse=True)  # type: ignore[arg-type]
    assert len(set(scores)) == 4


@pytest.mark.parametrize(
    ("healthy", "others", "max_cases", "chosen"),
    [
        (3, 5, 6, "o0 h0 o1 h1 o2 o3"),  # one in three is healthy
        (3, 5, 4, "o0 h0 o1 h1"),  # rounded up
        (3, 5, 1, "h0"),
        (0, 5, 3, "o0 o1 o2"),
        (4, 1, 4, "o0 h0 h1 h2"),  # more, for want of others
        (4, 0, 3, "h0 h1 h2"),
        (1, 1, 9, "o0 h0"),
        (2, 2, 0, ""),
    ],
)
def test_validation_cases_include_tumour_free_ones_in_the_order_of_the_pool(
    healthy: int, others: int, max_cases: int, chosen: str, tmp_path: Path
) -> None:
    (entry,) = toy_pool(tmp_path, [Toy("a", split=Split.VAL)]).entries
    states = [(f"o{n}", n, LabelState.MANUAL) for n in range(others)]
    states += [(f"h{n}", n + 0.5, LabelState.ABSENT) for n in range(healthy)]
    entries = [
        replace(entry, case_id=name, tumour=replace(entry.tumour, state=state))
        for name, _, state in sorted(states, key=lambda item: item[1])
    ]
    pseudo = replace(entry.liver, state=LabelState.PSEUDO)
    ignored = [  # neither liver nor tumour is manual, or another split
        replace(entry, case_id="x", liver=pseudo, tumour=replace(entry.tumour, state=LabelState.ABSENT)),
        replace(entry, case_id="y", split=Split.TRAIN),
    ]
    cases = validation_cases(Pool(tmp_path, PLAN, (*ignored, *entries)), max_cases)
    names = [entry.case_id for entries in cases.values() for entry in entries]
    assert names == chosen.split()


def test_without_cases_there_is_no_score() -> None:
    assert Overlaps((), (), 1.0).metrics() == {}
    assert validation_score([]) is None
    assert validation_score([Overlaps((), (), 1.0)]) is None

"""How bright the livers of a pool are, by modality."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_pool import Toy, toy_pool

from hepar.cases import LabelState, Modality
from hepar.training.liver_intensities import MIN_DEVIATION, liver_intensities


def test_the_intensity_is_over_the_medians_of_known_livers_without_their_tumours(tmp_path: Path) -> None:
    large = ((12, 12, 12), 8.5)  # most of the liver: with it, the median would be that of the tumour
    toys = [  # a liver is 1 brighter than its level
        Toy("a", level=1.0, lesions=(large,)),
        Toy("b", level=3.0, lesions=()),
        Toy("c", Modality.MR, level=7.0, lesions=()),
        Toy("d", level=50.0, liver_state=LabelState.UNKNOWN),
    ]
    found = liver_intensities(toy_pool(tmp_path, toys))
    assert found == {Modality.CT: pytest.approx((3.0, 1.0)), Modality.MR: pytest.approx((8.0, MIN_DEVIATION))}


def test_a_pool_without_livers_knows_none(tmp_path: Path) -> None:
    toys = [Toy("a", liver_state=LabelState.UNKNOWN), Toy("b", liver=((90, 90, 90), 1), lesions=())]
    assert liver_intensities(toy_pool(tmp_path, toys)) == {}

"""Learning rate and consistency weight against their formulas."""

from __future__ import annotations

import math

import pytest
from toy_training import toy_settings

from hepar.params import Params
from hepar.training.schedules import consistency_weight, learning_rate


def test_the_learning_rate_warms_up_linearly_and_decays_to_zero(tiny: Params) -> None:
    params = toy_settings(tiny, steps=12, warmup_steps=4, learning_rate=0.8)
    assert [learning_rate(step, params) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert learning_rate(8, params) == pytest.approx(0.8 * 0.5**0.9)
    assert learning_rate(11, params) == pytest.approx(0.8 * 0.125**0.9)
    assert learning_rate(0, toy_settings(tiny, steps=12, warmup_steps=0, learning_rate=0.8)) == 0.8
    cosine = toy_settings(tiny, steps=12, warmup_steps=4, learning_rate=0.8, schedule="cosine")
    assert [learning_rate(step, cosine) for step in (4, 8, 10)] == pytest.approx([0.8, 0.4, 0.4 * (1 - 0.5**0.5)])


def test_the_consistency_weight_ramps_up(tiny: Params) -> None:
    params = toy_settings(tiny, consistency_weight=3.0, consistency_rampup_steps=10)
    ramp = [consistency_weight(step, params) for step in (0, 5, 10, 50)]
    assert ramp == pytest.approx([3 * math.exp(-5), 3 * math.exp(-5 / 4), 3, 3])
    assert consistency_weight(0, toy_settings(tiny, consistency_weight=3.0, consistency_rampup_steps=0)) == 3

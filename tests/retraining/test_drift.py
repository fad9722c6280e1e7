"""The distance of two distributions by hand, and how often equal populations look different."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hepar.evaluation.bootstrap import Estimate
from hepar.retraining.drift import Measurement, measure_drift, weighted_distance


def measured(new: list[float], known: list[float]) -> list[Measurement]:
    found = [Measurement(f"n{number}", True, value) for number, value in enumerate(new)]
    return found + [Measurement(f"k{number}", False, value) for number, value in enumerate(known)]


def distance(new: list[float], known: list[float]) -> float | None:
    return measure_drift("CT", "x", measured(new, known), seed=1, resamples=20).estimate.value


def test_distances_by_hand() -> None:
    assert distance([3.0, 3.0], [3.0, 3.0, 3.0]) == 0
    assert distance([1.0, 2.0], [2.0, 1.0]) == pytest.approx(0)
    assert distance([5.0], [1.0, 1.0]) == pytest.approx(2)  # two points d apart have a mixture of SD d / 2
    # every value moves by 1; mixture of 0, 1 and 1, 2 has variance ½
    assert distance([1.0, 2.0], [0.0, 1.0]) == pytest.approx(1 / math.sqrt(0.5))


def test_the_distance_does_not_depend_on_unit_or_direction() -> None:
    new, known = [1.0, 4.0, 2.0], [7.0, 9.0, 3.0, 4.0]
    expected = distance(new, known)
    assert expected is not None
    assert distance([100 * v + 7 for v in new], [100 * v + 7 for v in known]) == pytest.approx(expected)
    assert distance(known, new) == pytest.approx(expected)


def test_weights_repeat_values_and_a_group_without_weight_has_no_distance() -> None:
    values, is_new = np.array([0.0, 1.0, 5.0]), np.array([False, True, True])
    twice, without = np.array([[1.0, 2.0, 1.0]]), np.array([[1.0, 0.0, 0.0]])
    repeated = distance([1.0, 1.0, 5.0], [0.0])
    assert weighted_distance(values, is_new, twice)[0] == pytest.approx(repeated)
    assert math.isnan(weighted_distance(values, is_new, without)[0])


def test_without_new_or_known_patients_there_is_no_distance() -> None:
    assert measure_drift("CT", "x", [], 1, 20).estimate == Estimate(None, None, 0, 0)
    found = measure_drift("CT", "x", measured([], [1.0, 2.0]), 1, 20)
    assert (found.estimate.value, found.estimate.ci95) == (None, None)
    assert (found.new_patients, found.known_patients) == (0, 2)


def test_lesions_of_a_patient_are_drawn_together() -> None:
    """Ten lesions of one new patient are no ten patients."""
    lesions = [Measurement("n", True, 10.0 + number) for number in range(10)]
    found = measure_drift("CT", "x", lesions + measured([], [1.0, 2.0, 3.0]), 1, 200)
    assert (found.new_patients, found.estimate.n, found.estimate.patients) == (1, 13, 4)


def test_equal_populations_do_not_drift_and_a_shift_by_two_deviations_does() -> None:
    """Of 10 new patients beside 60 known ones; the bound is that of `retrain.max_drift`."""
    rng, false_alarms, found_shifts = np.random.default_rng(0), 0, 0
    for seed in range(100):
        known, new = rng.normal(size=60).tolist(), rng.normal(size=10)
        lows = []
        for shift in (0.0, 2.0):
            ci95 = measure_drift("CT", "x", measured((new + shift).tolist(), known), seed, 200).estimate.ci95
            assert ci95 is not None
            lows.append(ci95[0])
        false_alarms, found_shifts = false_alarms + (lows[0] > 0.5), found_shifts + (lows[1] > 0.5)
    assert false_alarms <= 5
    assert found_shifts >= 95

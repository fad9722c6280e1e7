"""The bootstrap: what it resamples, what it leaves out, and its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepar.evaluation.bootstrap import (
    Resampling,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
    bootstrap_weighted,
    paired_difference,
    paired_ratio_difference,
)


def test_mean_over_defined_cases() -> None:
    estimate = bootstrap_mean([1.0, None, 3.0], ["a", "b", "c"], seed=0, resamples=100)
    assert (estimate.value, estimate.n, estimate.patients) == (2, 2, 2)


def test_without_defined_values_there_is_no_mean() -> None:
    for values in ([], [None]):
        estimate = bootstrap_mean(values, ["a"] * len(values), seed=0, resamples=100)
        assert (estimate.value, estimate.ci95, estimate.n) == (None, None, 0)


def test_one_patient_has_no_interval_whatever_the_number_of_cases() -> None:
    estimate = bootstrap_mean([0.1, 0.5, 0.9], ["a", "a", "a"], seed=0, resamples=100)
    assert estimate.value == pytest.approx(0.5)
    assert estimate.ci95 is None


def test_patients_are_resampled_not_cases() -> None:
    # within a patient the cases cancel out, so the mean is 0.5 whichever patients are drawn
    values = [0.0, 1.0] * 10
    patients = [f"p{index // 2}" for index in range(20)]
    assert bootstrap_mean(values, patients, seed=0, resamples=500).ci95 == (0.5, 0.5)
    low, high = bootstrap_mean(values, [f"p{index}" for index in range(20)], seed=0, resamples=500).ci95
    assert low < 0.4
    assert high > 0.6


def test_interval_of_two_patients_spans_both() -> None:
    # a mean of two draws is 0, 0.5 or 1 with probability 1/4, 1/2, 1/4
    assert bootstrap_mean([0.0, 1.0], ["a", "b"], seed=0, resamples=2000).ci95 == (0, 1)


def test_a_ratio_is_pooled_before_division() -> None:
    estimate = bootstrap_ratio([1.0, 0.0], [1.0, 9.0], ["a", "b"], seed=0, resamples=100)
    assert estimate.value == pytest.approx(0.1)


def test_a_ratio_without_denominator_is_undefined_and_such_resamples_are_left_out() -> None:
    assert bootstrap_ratio([0.0, 0.0], [0.0, 0.0], ["a", "b"], seed=0, resamples=100).value is None
    estimate = bootstrap_ratio([1.0, 0.0], [2.0, 0.0], ["a", "b"], seed=0, resamples=100)
    assert estimate.ci95 == (0.5, 0.5)


def test_without_a_resample_that_has_a_denominator_there_is_no_interval() -> None:
    drawn_p = np.random.default_rng(0).integers(0, 2, size=2)
    assert drawn_p.tolist() == [1, 1]  # the only resample is of b twice, who has no denominator
    for estimate in (
        bootstrap_ratio([1.0, 0.0], [2.0, 0.0], ["a", "b"], seed=0, resamples=1),
        paired_ratio_difference([(0, 2), (0, 0)], [(1, 2), (0, 0)], ["a", "b"], seed=0, resamples=1),
    ):
        assert (estimate.value, estimate.ci95, estimate.patients) == (0.5, None, 2)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2, 1 and 2"):
        bootstrap_ratio([1.0, 1.0], [1.0], ["a", "b"], seed=0, resamples=10)


def test_interval_coverage_is_close_to_nominal() -> None:
    rng = np.random.default_rng(5)
    patients = [str(index) for index in range(40)]
    trials = 200
    covered = 0
    for trial in range(trials):
        interval = bootstrap_mean(rng.normal(size=40).tolist(), patients, seed=trial, resamples=400).ci95
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    # 95 % plus or minus three standard errors, slightly lower because bootstrap intervals are too narrow
    assert 0.88 <= covered / trials <= 0.99


def test_paired_difference_is_second_minus_first_over_common_cases() -> None:
    estimate = paired_difference([0.5, 0.6, None], [0.7, 0.8, 0.9], ["a", "b", "c"], seed=0, resamples=200)
    assert estimate.value == pytest.approx(0.2)
    assert estimate.n == 2
    assert estimate.ci95 == pytest.approx((0.2, 0.2))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcd")), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_the_order_of_cases_does_not_matter(cases: list[tuple[float, str]], random: object) -> None:
    shuffled = list(cases)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (
        bootstrap_mean([value for value, _ in order], [patient for _, patient in order], seed=1, resamples=50)
        for order in (cases, shuffled)
    )
    assert one == other
    assert one.value is not None
    assert math.isclose(one.value, sum(value for value, _ in cases) / len(cases))


def test_a_statistic_on_the_cases_of_each_resample_has_the_interval_of_the_sums_by_patient() -> None:
    values, patients = np.random.default_rng(4).normal(size=30), [f"p{index % 7}" for index in range(30)]
    by_sums = bootstrap_mean(values.tolist(), patients, seed=2, resamples=300)
    by_cases = bootstrap_statistic(lambda chosen: float(values[chosen].mean()), patients, seed=2, resamples=300)
    assert (by_cases.n, by_cases.patients) == (30, 7)
    assert by_cases.value == pytest.approx(by_sums.value)
    assert by_cases.ci95 == pytest.approx(by_sums.ci95)
    assert bootstrap_statistic(lambda chosen: 1.0, ["a", "a"], seed=0, resamples=10).ci95 is None
    assert bootstrap_statistic(lambda chosen: 1.0, [], seed=0, resamples=10).value is None


def test_weighted_statistics_have_the_interval_of_the_ratio_that_they_compute() -> None:
    """The same patients are drawn, so that all intervals of a report are over the same resamples."""
    patients = ("p", "q", "q", "r", "s")
    top_c, bottom_c = np.array([1.0, 2.0, 0.0, 3.0, 5.0]), np.array([2.0, 2.0, 4.0, 3.0, 6.0])

    def statistics(weight_rc: np.ndarray) -> np.ndarray:
        return np.stack([(weight_rc @ top_c) / (weight_rc @ bottom_c), np.full(len(weight_rc), np.nan)], axis=1)

    found, undefined = bootstrap_weighted(statistics, Resampling(patients, 3, 250))
    expected = bootstrap_ratio(top_c, bottom_c, patients, 3, 250)
    assert found.value == pytest.approx(expected.value)
    assert found.ci95 == pytest.approx(expected.ci95)
    assert (found.n, found.patients) == (5, 4)
    assert undefined.summary() == {"value": None, "ci95": None, "n": 5}
    assert bootstrap_weighted(statistics, Resampling(("p",) * 5, 3, 250))[0].ci95 is None

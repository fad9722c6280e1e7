"""Paired statistics, against computations by hand and by scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hepar.evaluation.bootstrap import paired_difference, paired_ratio_difference
from hepar.evaluation.paired import (
    MIN_PATIENTS,
    compare_paired,
    holm,
    patient_differences,
    rank_biserial,
    signed_rank_p,
)


def means(*values: float) -> list[tuple[float, float]]:
    return [(value, 1.0) for value in values]


def p_by_counting(differences: list[float]) -> float:
    """The two-sided signed-rank p, by all assignments of signs to the ranks."""
    ranks = stats.rankdata(np.abs(differences))
    observed = sum(rank for rank, value in zip(ranks, differences, strict=True) if value > 0)
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(ranks))]
    centre = ranks.sum() / 2
    return sum(abs(one - centre) >= abs(observed - centre) for one in sums) / len(sums)


@pytest.mark.parametrize("differences", [[1, 2, 3], [1, -2, 3, 4, -5, 6, 7], [-0.1, 0.2, 0.4, 0.3, 0.5, 0.6]])
def test_the_signed_rank_test_counts_assignments_of_signs(differences: list[float]) -> None:
    assert signed_rank_p(differences) == pytest.approx(p_by_counting(differences))


def test_five_gains_cannot_reach_five_percent_and_six_can() -> None:
    assert MIN_PATIENTS == 6
    assert signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 2**5)
    assert signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 2**6)


def test_zeros_are_dropped_from_test_and_effect() -> None:
    assert signed_rank_p([0.0, 1.0, 2.0, 3.0, 0.0]) == signed_rank_p([1.0, 2.0, 3.0]) == pytest.approx(0.25)
    assert rank_biserial([0.0, 1.0, -3.0, 2.0]) == rank_biserial([1.0, -3.0, 2.0]) == 0


def test_rounding_is_no_difference() -> None:
    rounding = 0.1 + 0.2 - 0.3
    assert rounding != 0
    assert signed_rank_p([rounding, rounding]) == 1
    assert rank_biserial([rounding, -1.0]) == -1


def test_without_differences_there_is_no_test_and_without_a_change_p_is_1() -> None:
    assert (signed_rank_p([]), rank_biserial([])) == (None, None)
    assert (signed_rank_p([0.1]), rank_biserial([0.1])) == (None, 1)  # p would be 1 whatever the difference
    assert (signed_rank_p([0.0, 0.0]), rank_biserial([0.0, 0.0])) == (1, 0)


def test_the_effect_is_the_share_of_ranks_gained_less_that_lost() -> None:
    assert rank_biserial([0.1, 0.2, 0.3]) == 1
    assert rank_biserial([-0.1, -0.2]) == -1
    assert rank_biserial([-1.0, 2.0, 3.0, 4.0]) == pytest.approx((2 + 3 + 4 - 1) / 10)
    assert rank_biserial([1.0, -1.0, 5.0]) == pytest.approx((1.5 + 3 - 1.5) / 6)  # equal sizes share their ranks


def test_holm_by_hand() -> None:
    # ascending 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04 → never below the one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_that_of_bonferroni(p_values: list[float]) -> None:
    for p, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p <= adjusted <= min(1, len(p_values) * p)


def test_a_mean_of_scans_and_a_test_of_patients() -> None:
    found = compare_paired(means(0.5, 0.7, 0.6), means(0.6, 0.6, 0.9), ["a", "a", "b"], seed=0, resamples=500)
    assert found is not None
    assert (found.first, found.second) == pytest.approx((0.6, 0.7))
    assert found.difference.value == pytest.approx(0.1)  # of three scans
    assert found.difference.ci95 == pytest.approx((0, 0.3))  # of a alone, where the scans cancel out, and b alone
    assert (found.difference.n, found.difference.patients, found.tested) == (3, 2, 2)
    assert (found.p, found.effect) == (1, 1)  # only b changed
    assert found.too_few


def test_recall_is_pooled_and_patients_without_lesions_are_not_tested() -> None:
    first, second = [(1.0, 2.0), (0.0, 0.0), (3.0, 3.0)], [(2.0, 2.0), (0.0, 0.0), (0.0, 3.0)]
    found = compare_paired(first, second, ["a", "b", "c"], seed=0, resamples=100)
    assert found is not None
    assert (found.first, found.second) == pytest.approx((4 / 5, 2 / 5))
    assert patient_differences(first, second, ["a", "b", "c"]) == pytest.approx([0.5, -1])
    assert found.tested == 2


def test_an_undefined_ratio_has_no_comparison() -> None:
    assert compare_paired([], [], [], seed=0, resamples=10) is None
    assert compare_paired([(0.0, 0.0)], [(0.0, 1.0)], ["a"], seed=0, resamples=10) is None


def test_six_patients_are_enough() -> None:
    values = [0.1 * n for n in range(6)]
    found = compare_paired(means(*values), means(*values), list("abcdef"), seed=0, resamples=50)
    assert found is not None
    assert not found.too_few


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.sampled_from("abcde")), min_size=1, max_size=10))
def test_of_means_it_is_the_mean_difference(cases: list[tuple[float, float, str]]) -> None:
    first, second, patients = (list(column) for column in zip(*cases, strict=True))
    pooled = paired_ratio_difference(means(*first), means(*second), patients, seed=2, resamples=60)
    plain = paired_difference(first, second, patients, seed=2, resamples=60)
    assert (pooled.n, pooled.patients) == (plain.n, plain.patients)
    assert pooled.value == pytest.approx(plain.value, abs=1e-12)
    assert (pooled.ci95 is None) == (plain.ci95 is None)
    if pooled.ci95 is not None:
        assert pooled.ci95 == pytest.approx(plain.ci95, abs=1e-12)


def test_the_same_patients_are_drawn_for_both_ratios() -> None:
    # the patients differ by far more than the two ratios, which differ by 0.1 in each of them
    first = means(*(n / 10 for n in range(9)))
    second = means(*(n / 10 + 0.1 for n in range(9)))
    found = paired_ratio_difference(first, second, list("abcdefghi"), seed=0, resamples=300)
    assert found.ci95 == pytest.approx((0.1, 0.1))


def test_resamples_without_a_ratio_are_left_out_and_lengths_must_match() -> None:
    found = paired_ratio_difference([(1.0, 2.0), (0.0, 0.0)], [(2.0, 2.0), (0.0, 0.0)], ["a", "b"], 0, 200)
    assert found.ci95 == pytest.approx((0.5, 0.5))
    apart = paired_ratio_difference([(1.0, 1.0), (0.0, 0.0)], [(0.0, 0.0), (1.0, 1.0)], ["a", "b"], 3, 200)
    assert apart.value == 0
    assert apart.ci95 is not None
    assert not math.isnan(apart.ci95[0])
    with pytest.raises(ValueError, match="1 and 2"):
        paired_ratio_difference(means(0.1), means(0.2), ["a", "b"], 0, 10)

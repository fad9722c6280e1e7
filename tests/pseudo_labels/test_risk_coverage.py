"""Risk–coverage: curves and areas against hand-computed examples, and the order of their sizes."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from hepar.evaluation.reliability import risk_coverage_png
from hepar.pseudo_labels.risk_coverage import (
    OPTIMAL,
    aurc,
    aurc_difference,
    excess_aurc,
    risk_coverage_summary,
    risk_coverage_table,
    selective_risk,
)

RISK = np.array([0.1, 0.5, 0.2, 0.4])


def test_by_hand_the_risk_is_the_mean_over_the_cases_kept_so_far() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.6])
    assert selective_risk(score, RISK) == pytest.approx([0.1, 0.3, 0.8 / 3, 0.3])
    assert aurc(score, RISK) == pytest.approx((0.1 + 0.3 + 0.8 / 3 + 0.3) / 4)
    best = (0.1 + 0.15 + 0.7 / 3 + 0.3) / 4
    assert excess_aurc(score, RISK) == pytest.approx(aurc(score, RISK) - best)


def test_the_order_of_the_cases_does_not_matter_but_the_scores_do() -> None:
    score = np.array([3.0, 1.0, 2.0, 0.0])
    shuffled = [2, 0, 3, 1]
    assert aurc(score[shuffled], RISK[shuffled]) == pytest.approx(aurc(score, RISK))
    assert aurc(np.exp(score), RISK) == aurc(score, RISK)  # only the order counts


def test_a_perfect_order_has_the_smallest_area_of_all_orders() -> None:
    areas = {order: aurc(-np.array(order, float), RISK) for order in permutations(range(4))}
    perfect = tuple(int(place) for place in np.argsort(np.argsort(RISK)))
    assert min(areas, key=lambda order: areas[order]) == perfect
    assert excess_aurc(-RISK, RISK) == 0
    assert max(areas, key=lambda order: areas[order]) == tuple(3 - place for place in perfect)


def test_a_constant_score_has_the_mean_risk_at_every_coverage() -> None:
    assert selective_risk(np.full(4, 0.5), RISK) == pytest.approx([0.3] * 4)
    assert aurc(np.full(4, 0.5), RISK) == pytest.approx(RISK.mean())


def test_equal_scores_have_the_mean_area_of_all_their_orders() -> None:
    tied = np.array([0.9, 0.5, 0.5, 0.5])
    orders = [aurc(np.array([0.9, *order]), RISK) for order in permutations((0.4, 0.5, 0.6))]
    assert aurc(tied, RISK) == pytest.approx(np.mean(orders))


def test_one_pseudo_liver_has_its_own_risk() -> None:
    assert aurc(np.array([0.7]), np.array([0.25])) == 0.25


def test_the_interval_of_a_difference_excludes_zero_only_if_one_score_orders_better() -> None:
    rng = np.random.default_rng(0)
    risk = rng.uniform(0, 0.5, 60)
    patients = [f"p{number // 2}" for number in range(60)]
    noise = rng.uniform(size=60)
    worse = aurc_difference(-risk, noise, risk, patients, 1, 200)
    assert worse.value == pytest.approx(aurc(noise, risk) - aurc(-risk, risk))
    assert worse.ci95 is not None
    assert worse.patients == 30
    assert worse.ci95[0] > 0
    blurred = [-risk + rng.normal(0, 0.05, 60) for _ in range(2)]  # equally good
    other = aurc_difference(*blurred, risk, patients, 1, 200)
    assert other.ci95 is not None
    assert other.ci95[0] < 0 < other.ci95[1]
    same = aurc_difference(noise, noise, risk, patients, 1, 200)
    assert (same.value, same.ci95) == (0, (0, 0))


def test_table_and_summary_give_the_same_areas() -> None:
    dice = 1 - RISK
    scores = {"ours": np.array([0.9, 0.2, 0.8, 0.1]), "plain": np.full(4, 1.0)}
    table = risk_coverage_table(scores, dice)
    assert table[table.score == "ours"].coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert table[table.score == "plain"].mean_dice.tolist() == pytest.approx([0.7] * 4)
    found = risk_coverage_summary(scores, dice, ["a", "b", "c", "d"], 1, 50)
    areas = {name: float(curve.selective_risk.mean()) for name, curve in table.groupby("score")}
    assert areas == pytest.approx({**found["aurc"], OPTIMAL: found["optimal_aurc"]})
    assert found["excess_aurc"]["plain"] == pytest.approx(0.3 - found["optimal_aurc"])
    assert found["minus_ours"]["plain"]["value"] == pytest.approx(found["aurc"]["plain"] - found["aurc"]["ours"])
    with pytest.raises(ValueError, match="optimal"):
        risk_coverage_table({OPTIMAL: dice}, dice)


def test_the_figure_is_a_png_and_the_same_for_the_same_table() -> None:
    table = risk_coverage_table({"ours": np.array([0.9, 0.2, 0.8, 0.1])}, 1 - RISK)
    figure = risk_coverage_png(table)
    assert figure.startswith(b"\x89PNG")
    assert figure == risk_coverage_png(table)

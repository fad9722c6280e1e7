"""Risk against coverage: how bad the kept pseudo-livers are if only those with the highest scores are kept.

The risk of a pseudo-liver is 1 − Dice. At coverage k/n, the k of n with the highest scores are kept, and the selective
risk is the mean of theirs. AURC is its mean over k = 1…n, and excess AURC is what exceeds that of the best possible
order (Geifman and El-Yaniv, NeurIPS 2017; Geifman, Uziel and El-Yaniv, ICLR 2019). Cases with equal scores come in
every order with equal chance, and the curve is the mean over these orders, so a constant score has the mean risk
everywhere. Arrays end in `_n`, one value for each pseudo-liver, n > 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hepar.evaluation.bootstrap import Estimate, bootstrap_statistic

OPTIMAL = "optimal"  # the order by the true Dice
Values = npt.NDArray[np.float64]


def selective_risk(score_n: Values, risk_n: Values) -> Values:
    """Float64 (n,): the mean risk of the k cases with the highest scores, for k = 1…n."""
    _, group_n = np.unique(-score_n, return_inverse=True)
    mean_g = np.bincount(group_n, weights=risk_n) / np.bincount(group_n)
    expected_n = mean_g[np.sort(group_n)]  # of the case at each position, over the orders of equal scores
    return np.asarray(np.cumsum(expected_n) / np.arange(1, len(risk_n) + 1), np.float64)


def aurc(score_n: Values, risk_n: Values) -> float:
    """The area under the risk–coverage curve: 0 without any risk, and smaller for a better order."""
    return float(selective_risk(score_n, risk_n).mean())


def excess_aurc(score_n: Values, risk_n: Values) -> float:
    """AURC minus that of the order by risk, which is the smallest possible; 0 for a perfect order."""
    return aurc(score_n, risk_n) - aurc(-risk_n, risk_n)


def aurc_difference(
    first_n: Values, second_n: Values, risk_n: Values, patient_ids: Sequence[str], seed: int, resamples: int
) -> Estimate:
    """AURC by the second score minus that by the first, with an interval from resampled patients.

    Both are computed on the same cases in every resample. Below 0 the second score orders better.
    """

    def difference(chosen: npt.NDArray[np.intp]) -> float:
        return aurc(second_n[chosen], risk_n[chosen]) - aurc(first_n[chosen], risk_n[chosen])

    return bootstrap_statistic(difference, patient_ids, seed, resamples)


def risk_coverage_table(scores: Mapping[str, Values], dice_n: Values) -> pd.DataFrame:
    """The curves by score and of the best possible order: columns score, coverage, mean_dice and selective_risk.

    The last two are those of the cases kept. Rows run from one case kept to all. Raises ValueError if a score is called
    `OPTIMAL`.
    """
    if OPTIMAL in scores:
        raise ValueError(f"{OPTIMAL} is the name of the order by true Dice")
    coverage_n, curves = np.arange(1, len(dice_n) + 1) / len(dice_n), []
    for name, score_n in {**scores, OPTIMAL: dice_n}.items():
        risk_n = selective_risk(score_n, 1 - dice_n)
        curves.append(
            pd.DataFrame({"score": name, "coverage": coverage_n, "mean_dice": 1 - risk_n, "selective_risk": risk_n})
        )
    return pd.concat(curves, ignore_index=True)


def risk_coverage_summary(
    scores: Mapping[str, Values], dice_n: Values, patient_ids: Sequence[str], seed: int, resamples: int
) -> dict[str, Any]:
    """AURC and excess AURC of each score, that of the best order, and each difference from the first score.

    A difference is AURC minus that of the first, so above 0 the first orders better; `ci95` is None with one patient.
    """
    (first, first_n), *others = scores.items()
    risk_n = 1 - dice_n
    differences = {
        name: aurc_difference(first_n, score_n, risk_n, patient_ids, seed, resamples) for name, score_n in others
    }
    return {
        "mean_risk": float(risk_n.mean()),
        "optimal_aurc": aurc(dice_n, risk_n),
        "aurc": {name: aurc(score_n, risk_n) for name, score_n in scores.items()},
        "excess_aurc": {name: excess_aurc(score_n, risk_n) for name, score_n in scores.items()},
        f"minus_{first}": {
            name: {"value": found.value, "ci95": found.ci95, "patients": found.patients}
            for name, found in differences.items()
        },
    }

"""How the signals of a pseudo-liver predict its true Dice, and the bounds that follow from a target Dice.

Pure: observations in, a predictor and its out-of-fold errors out. Whatever is reported about a predictor comes from
patients that it was not fitted on. Arrays end in `_n`, one value for each observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.params import DicePredictor, GateParams, SignalName
from hepar.pseudo_labels.gates import ACCEPT, judge, predict_dice
from hepar.pseudo_labels.signals import Signals

# signal sets to try, smallest first; small, since few livers can be hidden, and the other signals have their own gates
CANDIDATES: tuple[tuple[SignalName, ...], ...] = (
    ("agreement",),
    ("agreement", "right_share"),
    ("agreement", "right_share", "roughness"),
)
FOLDS = 5
MIN_PATIENTS = 4
UNREACHABLE = 1.01  # a bound above every possible Dice
REVIEW_MARGIN = 0.1  # labels whose Dice may be this far below the target go to review
PREDICTED_DICE, PAIRWISE_DICE = "predicted_dice", "pairwise_dice"  # names of scores, and columns of the observations
RIDGE_PENALTIES = np.logspace(-2, 3, 11)
Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Observation:
    """A pseudo-liver whose manual liver was hidden from its teacher, and its Dice against that liver.

    `pairwise_dice` is the mean Dice between its predictions, see `mean_pairwise_dice`.
    """

    case_id: str
    patient_id: str
    modality: Modality
    trained_share: float  # fraction of its training steps that the teacher had done
    signals: Signals
    dice: float
    pairwise_dice: float


@dataclass(frozen=True)
class DicePredictions:
    """Predicted and true Dice of n pseudo-livers, and which of them pass every gate but that of the predicted Dice."""

    predicted_n: Values
    true_n: Values
    passes_n: Flags


@dataclass(frozen=True)
class Calibration:
    """A predictor, its bounds, and its performance on patients that it was not fitted on.

    `accept` and `reject` bound the predicted Dice of labels that pass the other gates; at or above `accept`, at least
    `coverage` of them reach the target Dice. `out_of_fold` holds the observations in their order.
    """

    predictor: DicePredictor
    out_of_fold: DicePredictions
    accept: float
    reject: float
    spearman: float
    mean_absolute_error: float


def calibrate(
    observations: Sequence[Observation], gates: GateParams, target_dice: float, coverage: float
) -> Calibration:
    """The predictor with the smallest out-of-fold error, and the bounds that follow from the target Dice.

    Raises DataError for fewer than `MIN_PATIENTS` patients, or if every pseudo-liver has the same Dice.
    """
    patients = {observation.patient_id for observation in observations}
    if len(patients) < MIN_PATIENTS:
        raise DataError(f"{len(patients)} patients have a manual liver, but calibration needs at least {MIN_PATIENTS}")
    true_n = np.array([observation.dice for observation in observations])
    if np.ptp(true_n) == 0:
        raise DataError(f"every pseudo-liver has Dice {true_n[0]:.3f}: calibration needs good and bad ones")
    candidates = [_predict_out_of_fold(observations, names) for names in CANDIDATES]
    errors = [float(np.abs(predicted_n - true_n).mean()) for predicted_n in candidates]
    best = int(np.argmin(np.round(errors, 4)))  # the smaller set on ties
    predicted_n, passes_n = candidates[best], pass_other_gates(observations, gates)
    passing = predicted_n[passes_n], true_n[passes_n]
    return Calibration(
        predictor=fit(observations, CANDIDATES[best]),
        out_of_fold=DicePredictions(predicted_n, true_n, passes_n),
        accept=threshold(*passing, target_dice, coverage),
        reject=threshold(*passing, target_dice - REVIEW_MARGIN, coverage),
        spearman=float(stats.spearmanr(predicted_n, true_n).statistic) if np.ptp(predicted_n) else 0.0,
        mean_absolute_error=errors[best],
    )


def pass_other_gates(observations: Sequence[Observation], gates: GateParams) -> Flags:
    """Bool (n,): which pseudo-livers pass every gate but that of the predicted Dice."""
    others = gates.model_copy(update={"predictor": None})
    verdicts = [judge(observation.signals, observation.modality, others) for observation in observations]
    return np.array([verdict.gate == ACCEPT for verdict in verdicts], bool)


def fit(observations: Sequence[Observation], names: Sequence[SignalName]) -> DicePredictor:
    """Ridge regression of the Dice on some signals and the modality, then an isotonic curve from score to Dice."""
    signals_nk, true_n = _signal_values(observations, names), np.array([item.dice for item in observations])
    low, high = signals_nk.min(axis=0), signals_nk.max(axis=0)
    is_mr_n1 = np.array([[observation.modality == Modality.MR] for observation in observations], float)
    features_nk = np.hstack([signals_nk, is_mr_n1])
    scaler = StandardScaler().fit(features_nk)
    ridge = RidgeCV(alphas=RIDGE_PENALTIES).fit(scaler.transform(features_nk), true_n)
    weights = ridge.coef_ / scaler.scale_
    scores_n = features_nk @ weights
    isotonic = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores_n, true_n)
    return DicePredictor(
        signals=tuple(names),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        coefficients=tuple(weights[:-1].tolist()),
        mr_offset=float(weights[-1]),
        scores=tuple(isotonic.X_thresholds_.tolist()),
        dice=tuple(isotonic.y_thresholds_.tolist()),
    )


def predict(observations: Sequence[Observation], predictor: DicePredictor) -> Values:
    """Float64 (n,): the predicted Dice of each observation."""
    return np.array([predict_dice(item.signals, item.modality, predictor) for item in observations])


def _predict_out_of_fold(observations: Sequence[Observation], names: Sequence[SignalName]) -> Values:
    """Float64 (n,): the Dice of each observation, predicted without its patient."""
    groups = [observation.patient_id for observation in observations]
    predicted_n = np.zeros(len(observations))
    for train, test in GroupKFold(min(FOLDS, len(set(groups)))).split(groups, groups=groups):
        predictor = fit([observations[i] for i in train], names)
        predicted_n[test] = predict([observations[i] for i in test], predictor)
    return predicted_n


def _signal_values(observations: Sequence[Observation], names: Sequence[SignalName]) -> Values:
    """Float64 (n, k), with each infinity replaced by the signal's largest finite value."""
    rows = [[getattr(observation.signals, name) for name in names] for observation in observations]
    values_nk = np.array(rows, float)
    finite_nk = np.where(np.isfinite(values_nk), values_nk, np.nan)
    worst_k = np.nan_to_num(
        np.nanmax(finite_nk, axis=0), nan=1.0
    )  # infinite roughness or entropy: an (almost) empty mask
    return np.asarray(np.where(np.isfinite(values_nk), values_nk, worst_k))


def threshold(predicted_n: Values, true_n: Values, target_dice: float, coverage: float) -> float:
    """The lowest predicted Dice, not below the target, from which at least `coverage` of the labels reach the target.

    The fraction is estimated by Laplace's rule of succession, (k + 1) / (n + 2) for k of n labels, so that a handful of
    good labels proves little. `UNREACHABLE` if no bound satisfies this, or without labels.
    """
    eligible_n = predicted_n >= target_dice
    predicted_n, true_n = predicted_n[eligible_n], true_n[eligible_n]
    if len(predicted_n) == 0:
        return UNREACHABLE
    order_n = np.argsort(-predicted_n, kind="stable")
    reached_n = (np.cumsum(true_n[order_n] >= target_dice) + 1) / (np.arange(1, len(order_n) + 1) + 2)
    # equal predictions are accepted together: a bound may only follow the last of them
    ends = [i for i, (a, b) in enumerate(pairwise(predicted_n[order_n])) if a > b] + [len(order_n) - 1]
    valid = [end for end in ends if reached_n[end] >= coverage]
    return float(predicted_n[order_n][valid[-1]]) if valid else UNREACHABLE


def target_curve(
    calibration: DicePredictions, evaluation: DicePredictions, coverage: float, targets: Sequence[float]
) -> pd.DataFrame:
    """One row for each target Dice: the bound, the accepted fraction, and the true Dice of the accepted labels.

    Bounds come from `calibration`, all else from `evaluation`, which may be the same. Columns: target_dice, bound,
    accepted_share, mean_dice, min_dice and share_at_target; the last three are NaN if no label is accepted.
    """
    rows = []
    for target in targets:
        passing = calibration.predicted_n[calibration.passes_n], calibration.true_n[calibration.passes_n]
        bound = threshold(*passing, target, coverage)
        accepted_n = evaluation.true_n[evaluation.passes_n & (evaluation.predicted_n >= bound)]
        found = accepted_n.size > 0
        rows.append(
            {
                "target_dice": target,
                "bound": bound,
                "accepted_share": accepted_n.size / evaluation.true_n.size,
                "mean_dice": float(accepted_n.mean()) if found else float("nan"),
                "min_dice": float(accepted_n.min()) if found else float("nan"),
                "share_at_target": float((accepted_n >= target).mean()) if found else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def quality_scores(observations: Sequence[Observation], predicted_n: Values) -> dict[str, Values]:
    """The scores by which pseudo-livers can be ordered: our predictor, and the agreement of the ensemble alone."""
    return {
        PREDICTED_DICE: predicted_n,
        PAIRWISE_DICE: np.array([observation.pairwise_dice for observation in observations]),
    }


def observations_frame(observations: Sequence[Observation], predicted_n: Values) -> pd.DataFrame:
    """One row an observation: its signals, true Dice and predicted Dice."""
    rows = []
    for observation, predicted in zip(observations, predicted_n, strict=True):
        row = asdict(observation)
        rows.append({**row, **row.pop("signals"), PREDICTED_DICE: float(predicted)})
    return pd.DataFrame(rows).drop(columns="signals")

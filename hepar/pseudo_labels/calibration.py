"""How the signals of a pseudo-liver predict its true Dice, and the thresholds that follow from a wished-for Dice.

Pure: observations in, a predictor and its honest errors out. Everything that is reported of a predictor comes from
patients that it was not fitted on.
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
from hepar.pseudo_labels.gates import ACCEPT, Signals, judge, predict_dice

# sets of signals that are tried, the smallest first; few, since few livers can be hidden, and others have their gates
CANDIDATES: tuple[tuple[SignalName, ...], ...] = (
    ("agreement",),
    ("agreement", "right_share"),
    ("agreement", "right_share", "roughness"),
)
FOLDS = 5
MIN_PATIENTS = 4
BEYOND = 1.01  # a bound that no expected Dice reaches
REVIEW_STEP = 0.1  # below the wished-for Dice a label still may wait for review
PENALTIES = np.logspace(-2, 3, 11)
Values = npt.NDArray[np.float64]
Told = tuple[Values, Values, npt.NDArray[np.bool_]]  # expected and true Dice, and which pass the other gates


@dataclass(frozen=True)
class Observation:
    """A pseudo-liver of a case whose manual liver was hidden from its teacher, and its Dice with that liver."""

    case_id: str
    patient_id: str
    modality: Modality
    trained_share: float  # of the teacher's steps that it had done: 1 is a whole training
    signals: Signals
    dice: float


@dataclass(frozen=True)
class Calibration:
    """A predictor, its bounds, and what both are worth for patients that they have not seen.

    `accept` and `reject` are bounds of the expected Dice of labels that pass the other gates; above `accept` at least
    `coverage` of them have the wished-for Dice. `predicted` is the expected Dice of each observation, out of fold, and
    `passes` tells which pass the other gates.
    """

    predictor: DicePredictor
    predicted: Values
    passes: npt.NDArray[np.bool_]
    accept: float
    reject: float
    spearman: float
    mean_absolute_error: float


def calibrate(
    observations: Sequence[Observation], gates: GateParams, wished_dice: float, coverage: float
) -> Calibration:
    """Fit the predictor that is best out of fold, and the bounds that follow from the wished-for Dice.

    Raises DataError for fewer than `MIN_PATIENTS` patients, or where all labels are equally good.
    """
    patients = {observation.patient_id for observation in observations}
    if len(patients) < MIN_PATIENTS:
        raise DataError(f"{len(patients)} patients have a manual liver to hide, at least {MIN_PATIENTS} are needed")
    dice = np.array([observation.dice for observation in observations])
    if np.ptp(dice) == 0:
        raise DataError(f"every pseudo-liver has Dice {dice[0]:.3f}: nothing tells good ones from bad ones")
    out_of_fold = [_out_of_fold(observations, names) for names in CANDIDATES]
    errors = [float(np.abs(predicted - dice).mean()) for predicted in out_of_fold]
    best = int(np.argmin(np.round(errors, 4)))  # of equals the smaller set
    predicted, passes = out_of_fold[best], passing(observations, gates)
    told = predicted[passes], dice[passes]
    return Calibration(
        predictor=fit(observations, CANDIDATES[best]),
        predicted=predicted,
        passes=passes,
        accept=threshold(*told, wished_dice, coverage),
        reject=threshold(*told, wished_dice - REVIEW_STEP, coverage),
        spearman=float(stats.spearmanr(predicted, dice).statistic) if np.ptp(predicted) else 0.0,
        mean_absolute_error=errors[best],
    )


def passing(observations: Sequence[Observation], gates: GateParams) -> npt.NDArray[np.bool_]:
    """Which labels the gates accept, but for that of the expected Dice."""
    others = gates.model_copy(update={"predictor": None})
    verdicts = [judge(observation.signals, observation.modality, others) for observation in observations]
    return np.array([verdict.gate == ACCEPT for verdict in verdicts], bool)


def fit(observations: Sequence[Observation], names: Sequence[SignalName]) -> DicePredictor:
    """Ridge regression of the Dice on some signals and the modality, then an isotonic curve from score to Dice."""
    table, dice = _table(observations, names), np.array([observation.dice for observation in observations])
    low, high = table.min(axis=0), table.max(axis=0)
    is_mr = np.array([[observation.modality == Modality.MR] for observation in observations], float)
    table = np.hstack([table, is_mr])
    scaler = StandardScaler().fit(table)
    ridge = RidgeCV(alphas=PENALTIES).fit(scaler.transform(table), dice)
    weights = ridge.coef_ / scaler.scale_
    scores = table @ weights
    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, dice)
    return DicePredictor(
        signals=tuple(names),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        coefficients=tuple(weights[:-1].tolist()),
        mr_offset=float(weights[-1]),
        scores=tuple(curve.X_thresholds_.tolist()),
        dice=tuple(curve.y_thresholds_.tolist()),
    )


def expected_dice(observation: Observation, predictor: DicePredictor) -> float:
    return predict_dice(observation.signals, observation.modality, predictor)


def _out_of_fold(observations: Sequence[Observation], names: Sequence[SignalName]) -> Values:
    """The expected Dice of each observation by a predictor that has not seen its patient."""
    groups = [observation.patient_id for observation in observations]
    predicted = np.zeros(len(observations))
    for train, test in GroupKFold(min(FOLDS, len(set(groups)))).split(groups, groups=groups):
        predictor = fit([observations[i] for i in train], names)
        predicted[test] = [expected_dice(observations[i], predictor) for i in test]
    return predicted


def _table(observations: Sequence[Observation], names: Sequence[SignalName]) -> Values:
    rows = [[getattr(observation.signals, name) for name in names] for observation in observations]
    table = np.array(rows, float)
    finite = np.where(np.isfinite(table), table, np.nan)
    worst = np.nan_to_num(np.nanmax(finite, axis=0), nan=1.0)  # only an empty mask is infinitely rough or doubtful
    return np.asarray(np.where(np.isfinite(table), table, worst))


def threshold(predicted: Values, dice: Values, wished: float, coverage: float) -> float:
    """The least expected Dice, not below the wished-for one, above which at least `coverage` of the labels have that.

    The share is estimated by Laplace's rule of succession, (k + 1) / (n + 2) for k of n labels, so that a few good ones
    prove little. `BEYOND` where no bound keeps the promise.
    """
    promising = predicted >= wished
    predicted, dice = predicted[promising], dice[promising]
    if len(predicted) == 0:
        return BEYOND
    order = np.argsort(-predicted, kind="stable")
    kept = (np.cumsum(dice[order] >= wished) + 1) / (np.arange(1, len(order) + 1) + 2)
    ends = [i for i, (a, b) in enumerate(pairwise(predicted[order])) if a > b] + [len(order) - 1]  # of equals, the last
    good = [end for end in ends if kept[end] >= coverage]
    return float(predicted[order][good[-1]]) if good else BEYOND


def curve(calibrating: Told, told: Told, coverage: float, wished: Sequence[float]) -> pd.DataFrame:
    """For each wished-for Dice: the bound, what it accepts, and how good those labels truly are.

    Bounds come from the labels of `calibrating`, all else from those of `told`, which may be the same.
    """
    predicted, dice, passes = told
    rows = []
    for target in wished:
        known_predicted, known_dice, known_passes = calibrating
        bound = threshold(known_predicted[known_passes], known_dice[known_passes], target, coverage)
        accepted = dice[passes & (predicted >= bound)]
        some = accepted.size > 0
        rows.append(
            {
                "wished_dice": target,
                "bound": bound,
                "accepted_share": accepted.size / dice.size,
                "mean_dice": float(accepted.mean()) if some else float("nan"),
                "least_dice": float(accepted.min()) if some else float("nan"),
                "share_as_wished": float((accepted >= target).mean()) if some else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def observations_frame(observations: Sequence[Observation], predicted: Values) -> pd.DataFrame:
    """One row an observation: what was measured, the true Dice, and the expected one."""
    rows = []
    for observation, expected in zip(observations, predicted, strict=True):
        row = asdict(observation)
        rows.append({**row, **row.pop("signals"), "predicted_dice": float(expected)})
    return pd.DataFrame(rows).drop(columns="signals")

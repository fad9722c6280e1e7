"""The gates: accept, review or reject a pseudo-liver by its signals. Pure; the worst outcome of all gates counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hepar.cases import Modality
from hepar.params import Bounds, DicePredictor, GateParams
from hepar.pseudo_labels.signals import Signals

ACCEPT, REVIEW, REJECT = "accept", "review", "reject"
Finding = tuple[str, str] | None  # outcome and reason; None if the gate passes


@dataclass(frozen=True)
class Verdict:
    """The outcome of the gates. `weight` is 0 for a rejected pseudo-liver; `reasons` is empty for an accepted one.

    `predicted_dice` comes from the calibrated predictor, None without one.
    """

    gate: str
    weight: float
    reasons: tuple[str, ...]
    predicted_dice: float | None = None

    def row(self) -> dict[str, Any]:
        """The verdict as columns of a table."""
        predicted = float("nan") if self.predicted_dice is None else self.predicted_dice
        return asdict(self) | {"reasons": "; ".join(self.reasons), "predicted_dice": predicted}


def judge(signals: Signals, modality: Modality, gates: GateParams) -> Verdict:
    """Apply every gate; each reason reads NAME VALUE < BOUND."""
    predicted = predict_dice(signals, modality, gates.predictor) if gates.predictor else None
    findings = [
        _within("liver volume", signals.volume_ml, gates.volume_ml),
        _at_least("liver component fraction", signals.component_share, gates.min_component_share),
        _at_most("hole fraction", signals.hole_share, gates.max_hole_share),
        _at_most("surface roughness", signals.roughness, gates.max_roughness),
        _at_least("right-side fraction", signals.right_share, gates.min_right_share),
        _at_most("fraction on the field-of-view border", signals.cut_share, gates.max_cut_share),
        _at_least("agreement", signals.agreement, gates.min_agreement),
        _at_most("entropy", signals.entropy, gates.max_entropy),
        _at_least("fraction of the manual tumour inside", signals.tumour_inside, gates.min_tumour_inside),
        _at_most("intensity distance", signals.intensity_distance, gates.max_intensity_distance),
        None if predicted is None else _at_least("predicted Dice", predicted, gates.min_predicted_dice),
    ]
    found = [finding for finding in findings if finding is not None]
    reasons = tuple(reason for _, reason in found)
    trust = 1.0 if predicted is None else predicted
    if any(gate == REJECT for gate, _ in found):
        return Verdict(REJECT, 0.0, reasons, predicted)
    if found:
        return Verdict(REVIEW, gates.review_weight * trust, reasons, predicted)
    return Verdict(ACCEPT, trust, (), predicted)


def predict_dice(signals: Signals, modality: Modality, predictor: DicePredictor) -> float:
    """The Dice that a calibrated predictor expects of a pseudo-liver with these signals."""
    values = np.array([getattr(signals, name) for name in predictor.signals], float)
    values = np.nan_to_num(values, posinf=1e6)
    low, high = np.array(predictor.low), np.array(predictor.high)  # the calibrated range: no extrapolation
    score = float(np.sum(np.clip(values, low, high) * predictor.coefficients))
    score += predictor.mr_offset if modality == Modality.MR else 0.0
    return float(np.interp(score, predictor.scores, predictor.dice))


def _within(name: str, value_ml: float, range_ml: tuple[float, float]) -> Finding:
    low, high = range_ml
    if low <= value_ml <= high:
        return None
    return REJECT, f"{name} {value_ml:.0f} ml is outside {low:.0f}–{high:.0f} ml"


def _at_least(name: str, value: float, bounds: Bounds) -> Finding:
    accept, reject = bounds
    if value >= accept:
        return None
    gate, bound = (REJECT, reject) if value < reject else (REVIEW, accept)
    return gate, f"{name} {value:.5g} < {bound:g}"


def _at_most(name: str, value: float, bounds: Bounds) -> Finding:
    accept, reject = bounds
    if value <= accept:
        return None
    gate, bound = (REJECT, reject) if value > reject else (REVIEW, accept)
    return gate, f"{name} {value:.5g} > {bound:g}"

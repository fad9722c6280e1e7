"""The gates that a pseudo-liver has to pass: what is measured of it, and what follows.

Measuring and judging are pure. A gate says accept, review or reject; the worst word of all gates counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import Modality
from hepar.evaluation.overlap import dice
from hepar.imaging.masks import Mask, label_components
from hepar.params import Bounds, DicePredictor, GateParams

TABLE = "quality.parquet"  # of pseudo-labels: signals and verdicts
ACCEPT, REVIEW, REJECT = "accept", "review", "reject"
SMOOTHING_MM = 5.0  # what a liver's surface is compared with
Probability = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """What a pseudo-liver is judged by, arrays zyx on one grid in the canonical orientation.

    `mean` is the mean probability of all predictions, `votes` each prediction cut at one half, the plain one first;
    `raw` is the mean cut at one half, `liver` what was made of it. `tumour` is the manual one, None where there is
    none. `body` is True where there is no air. `intensity` holds the prepared image's values inside the liver.
    """

    mean: Probability
    votes: Sequence[Mask]
    raw: Mask
    liver: Mask
    tumour: Mask | None
    body: Mask
    intensity: npt.NDArray[np.float32]
    spacing_zyx_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Signals:
    """What is measured of a pseudo-liver."""

    volume_ml: float
    component_share: float  # of the largest component in all that was predicted; 0 without any
    hole_share: float  # of the liver that was filled in
    roughness: float  # surface against that of the same liver smoothed; 1 is smooth
    right_share: float  # of the liver on the patient's right of the body's centre
    cut_share: float  # of the liver on the border of the field of view
    agreement: float  # least Dice between the plain prediction and another; 1 with one prediction only
    entropy: float  # of the mean probability, in bits for each voxel of the liver
    tumour_inside: float  # share of the manual tumour inside the predicted liver; 1 where there is none
    intensity_distance: float  # from the median of manual livers, in their standard deviations; 0 if not known

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(item.name for item in fields(cls))


@dataclass(frozen=True)
class Verdict:
    """What becomes of a pseudo-liver. `weight` is 0 for a rejected one; `reasons` are empty for an accepted one.

    `predicted_dice` is what a calibrated predictor expects, None without one.
    """

    gate: str
    weight: float
    reasons: tuple[str, ...]
    predicted_dice: float | None = None

    def row(self) -> dict[str, Any]:
        """As columns of a table."""
        predicted = float("nan") if self.predicted_dice is None else self.predicted_dice
        reasons = "; ".join(self.reasons)
        return {"gate": self.gate, "weight": self.weight, "reasons": reasons, "predicted_dice": predicted}


def measure(evidence: Evidence, manual_intensity: tuple[float, float] | None) -> Signals:
    """Signals of one pseudo-liver. `manual_intensity` is mean and standard deviation of manual livers' medians."""
    plain = evidence.votes[0]
    return Signals(
        volume_ml=float(evidence.liver.sum() * np.prod(evidence.spacing_zyx_mm) / 1000),
        component_share=component_share(evidence.raw),
        hole_share=hole_share(evidence.raw, evidence.liver),
        roughness=roughness(evidence.liver, evidence.spacing_zyx_mm),
        right_share=right_share(evidence.liver, evidence.body),
        cut_share=cut_share(evidence.liver),
        agreement=min((agreement(plain, other) for other in evidence.votes[1:]), default=1.0),
        entropy=entropy(evidence.mean, evidence.liver),
        tumour_inside=tumour_inside(evidence.liver, evidence.tumour),
        intensity_distance=intensity_distance(evidence.intensity, manual_intensity),
    )


def component_share(mask: Mask) -> float:
    """Share of the largest face-connected component in the mask; 0 for an empty one."""
    _, voxels = label_components(mask)
    return float(voxels.max() / voxels.sum()) if len(voxels) else 0.0


def hole_share(raw: Mask, liver: Mask) -> float:
    """Share of the liver's voxels that the prediction left out, as holes are; 0 for an empty liver."""
    total = int(liver.sum())
    return float((liver & ~raw).sum() / total) if total else 0.0


def roughness(liver: Mask, spacing_zyx_mm: tuple[float, float, float]) -> float:
    """Surface of the mask against that of the mask smoothed by a Gaussian of `SMOOTHING_MM`, at least 1.

    An empty mask is 1. One of which smoothing leaves nothing is infinitely rough.
    """
    if not liver.any():
        return 1.0
    box = ndimage.find_objects(liver.astype(np.uint8))[0]
    margin = [int(np.ceil(3 * SMOOTHING_MM / mm)) for mm in spacing_zyx_mm]
    mask = np.pad(liver[box], [(m, m) for m in margin])
    sigma = [SMOOTHING_MM / mm for mm in spacing_zyx_mm]
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), sigma, truncate=3.0) > 0.5
    smoothed = surface_mm2(smooth, spacing_zyx_mm)
    return max(1.0, surface_mm2(mask, spacing_zyx_mm) / smoothed) if smoothed else float("inf")


def surface_mm2(mask: Mask, spacing_zyx_mm: tuple[float, float, float]) -> float:
    """Area of the faces between a mask's voxels and others; what lies outside the array counts as other."""
    area = 0.0
    for axis in range(3):
        face_mm2 = float(np.prod([mm for other, mm in enumerate(spacing_zyx_mm) if other != axis]))
        padded = np.pad(mask, [(1, 1) if other == axis else (0, 0) for other in range(3)])
        area += face_mm2 * int(np.count_nonzero(np.diff(padded, axis=axis)))
    return area


def right_share(liver: Mask, body: Mask) -> float:
    """Share of the liver on the patient's right of the body's centre; x grows to the patient's left.

    0 for an empty liver. Without a body the volume's centre is taken.
    """
    total = int(liver.sum())
    if total == 0:
        return 0.0
    columns = body.sum(axis=(0, 1)).astype(float)
    if not columns.any():
        columns = np.ones(body.shape[2])
    centre = float(np.average(np.arange(body.shape[2]), weights=columns))
    left_edges = np.arange(body.shape[2]) - 0.5
    right_of_centre = np.clip(centre - left_edges, 0, 1)  # share of each column of voxels
    return float((liver.sum(axis=(0, 1)) * right_of_centre).sum() / total)


def cut_share(liver: Mask) -> float:
    """Share of the liver's voxels on the outermost layer of the volume; 0 for an empty liver."""
    total = int(liver.sum())
    if total == 0:
        return 0.0
    inner = liver[1:-1, 1:-1, 1:-1]
    return (total - int(inner.sum())) / total


def agreement(a: Mask, b: Mask) -> float:
    """Dice of two predictions. That of two empty ones is not defined; as a signal it is 0: neither shows a liver."""
    return dice(a, b) or 0.0


def entropy(mean: Probability, liver: Mask) -> float:
    """Binary entropy of the mean probability, summed over all voxels, in bits for each voxel of the liver.

    Infinite for an empty liver about which there is doubt, 0 for one about which there is none.
    """
    doubtful = mean[(mean > 0) & (mean < 1)].astype(np.float64)
    bits = float(-(doubtful * np.log2(doubtful) + (1 - doubtful) * np.log2(1 - doubtful)).sum())
    total = int(liver.sum())
    return bits / total if total else (float("inf") if bits else 0.0)


def tumour_inside(liver: Mask, tumour: Mask | None) -> float:
    """Share of a manual tumour inside the liver; 1 where there is none to contradict it."""
    if tumour is None or not tumour.any():
        return 1.0
    return float(liver[tumour].mean())


def intensity_distance(inside: npt.NDArray[np.float32], manual: tuple[float, float] | None) -> float:
    """How far the median inside the liver is from that of manual livers, in their standard deviations; 0 if unknown."""
    if manual is None or inside.size == 0:
        return 0.0
    mean, deviation = manual
    return abs(float(np.median(inside)) - mean) / deviation


def predict_dice(signals: Signals, modality: Modality, predictor: DicePredictor) -> float:
    """The Dice that a calibrated predictor expects of a pseudo-liver with these signals."""
    values = np.array([getattr(signals, name) for name in predictor.signals], float)
    values = np.nan_to_num(values, posinf=1e6)
    low, high = np.array(predictor.low), np.array(predictor.high)  # what was seen while calibrating; not beyond it
    score = float(np.dot(np.clip(values, low, high), predictor.coefficients))
    score += predictor.mr_offset if modality == Modality.MR else 0.0
    return float(np.interp(score, predictor.scores, predictor.dice))


def judge(signals: Signals, modality: Modality, gates: GateParams) -> Verdict:
    """Apply every gate; the reasons name what was measured and what is asked for."""
    low, high = gates.volume_ml
    predicted = predict_dice(signals, modality, gates.predictor) if gates.predictor else None
    findings = [
        _within("liver volume", signals.volume_ml, low, high),
        _at_least("largest component's share", signals.component_share, gates.min_component_share),
        _at_most("share of the liver that was holes", signals.hole_share, gates.max_hole_share),
        _at_most("roughness of the surface", signals.roughness, gates.max_roughness),
        _at_least("share of the liver on the patient's right", signals.right_share, gates.min_right_share),
        _at_most("share of the liver cut by the field of view", signals.cut_share, gates.max_cut_share),
        _at_least("agreement", signals.agreement, gates.min_agreement),
        _at_most("entropy", signals.entropy, gates.max_entropy),
        _at_least("share of the manual tumour inside", signals.tumour_inside, gates.min_tumour_inside),
        _at_most("distance from the intensity of livers", signals.intensity_distance, gates.max_intensity_distance),
        None if predicted is None else _at_least("expected Dice", predicted, gates.min_predicted_dice),
    ]
    found = [finding for finding in findings if finding is not None]
    reasons = tuple(reason for _, reason in found)
    trust = 1.0 if predicted is None else predicted
    if any(gate == REJECT for gate, _ in found):
        return Verdict(REJECT, 0.0, reasons, predicted)
    if found:
        return Verdict(REVIEW, gates.review_weight * trust, reasons, predicted)
    return Verdict(ACCEPT, trust, (), predicted)


Finding = tuple[str, str] | None


def _within(what: str, value: float, low: float, high: float) -> Finding:
    if low <= value <= high:
        return None
    return REJECT, f"{what} {value:.0f} ml is not within {low:.0f}–{high:.0f} ml"


def _at_least(what: str, value: float, bounds: Bounds) -> Finding:
    accept, reject = bounds
    if value >= accept:
        return None
    gate, bound = (REJECT, reject) if value < reject else (REVIEW, accept)
    return gate, f"{what} {value:.5g} < {bound:g}"


def _at_most(what: str, value: float, bounds: Bounds) -> Finding:
    accept, reject = bounds
    if value <= accept:
        return None
    gate, bound = (REJECT, reject) if value > reject else (REVIEW, accept)
    return gate, f"{what} {value:.5g} > {bound:g}"

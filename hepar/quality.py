"""The gates that a pseudo-liver has to pass: what is measured of it, and what follows.

Measuring and judging are pure. A gate says accept, downweight or reject; the worst word of all gates counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from hepar.params import GateParams
from hepar.pool import Mask

ACCEPT, DOWNWEIGHT, REJECT = "accept", "downweight", "reject"


@dataclass(frozen=True)
class Signals:
    """What is measured of a pseudo-liver. `tumour_inside` is 1 where no manual tumour can contradict it."""

    volume_ml: float
    component_share: float  # of the largest component in all that was predicted; 0 without any
    agreement: float  # least Dice between the plain prediction and a variant; 1 with one prediction only
    tumour_inside: float  # share of the manual tumour that lies inside the predicted liver
    cut_share: float  # share of the liver on the border of the field of view


@dataclass(frozen=True)
class Verdict:
    """What becomes of a pseudo-liver. `weight` is 0 for a rejected one; `reasons` are empty for an accepted one."""

    gate: str
    weight: float
    reasons: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """As columns of a table."""
        return {"gate": self.gate, "weight": self.weight, "reasons": "; ".join(self.reasons)}


def measure(
    raw: Mask,
    liver: Mask,
    variants: Sequence[Mask],
    tumour: Mask | None,
    spacing_zyx_mm: tuple[float, float, float],
) -> Signals:
    """Signals of one pseudo-liver, all masks bool zyx on one grid. `raw` is the prediction before cleaning."""
    plain = variants[0]
    return Signals(
        volume_ml=float(liver.sum() * np.prod(spacing_zyx_mm) / 1000),
        component_share=component_share(raw),
        agreement=min((agreement(plain, other) for other in variants[1:]), default=1.0),
        tumour_inside=tumour_inside(liver, tumour),
        cut_share=cut_share(liver),
    )


def component_share(mask: Mask) -> float:
    """Share of the largest face-connected component in the mask; 0 for an empty one."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return 0.0
    sizes = np.bincount(labels.ravel())[1:]
    return float(sizes.max() / sizes.sum())


def agreement(a: Mask, b: Mask) -> float:
    """Dice of two predictions; two empty ones do not agree on a liver: 0."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 0.0


def tumour_inside(liver: Mask, tumour: Mask | None) -> float:
    """Share of a manual tumour inside the liver; 1 where there is none to contradict it."""
    if tumour is None or not tumour.any():
        return 1.0
    return float(liver[tumour].mean())


def cut_share(liver: Mask) -> float:
    """Share of the liver's voxels on the outermost layer of the volume; 0 for an empty liver."""
    total = int(liver.sum())
    if total == 0:
        return 0.0
    inner = liver[1:-1, 1:-1, 1:-1]
    return (total - int(inner.sum())) / total


def judge(signals: Signals, gates: GateParams) -> Verdict:
    """Apply every gate; the reasons name what was measured and what is asked for."""
    low, high = gates.volume_ml
    findings = [
        _within("liver volume", signals.volume_ml, low, high),
        _at_least("largest component's share", signals.component_share, (gates.min_component_share,)),
        _at_least("agreement", signals.agreement, (gates.min_agreement_accept, gates.min_agreement_review)),
        _at_least(
            "share of the manual tumour inside",
            signals.tumour_inside,
            (gates.min_tumour_inside_accept, gates.min_tumour_inside_review),
        ),
        _at_most("share of the liver cut by the field of view", signals.cut_share, gates.max_cut_share),
    ]
    found = [finding for finding in findings if finding is not None]
    reasons = tuple(reason for _, reason in found)
    if any(gate == REJECT for gate, _ in found):
        return Verdict(REJECT, 0.0, reasons)
    if found:
        return Verdict(DOWNWEIGHT, gates.downweight, reasons)
    return Verdict(ACCEPT, 1.0, ())


Finding = tuple[str, str] | None


def _within(what: str, value: float, low: float, high: float) -> Finding:
    if low <= value <= high:
        return None
    return REJECT, f"{what} {value:.0f} ml is not within {low:.0f}–{high:.0f} ml"


def _at_least(what: str, value: float, steps: tuple[float, ...]) -> Finding:
    """`steps` are the values below which a label is down-weighted and rejected, or rejected alone."""
    if value >= steps[0]:
        return None
    return (REJECT if value < steps[-1] else DOWNWEIGHT), f"{what} {value:.2f} < {steps[0]:.2f}"


def _at_most(what: str, value: float, limit: float) -> Finding:
    return None if value <= limit else (DOWNWEIGHT, f"{what} {value:.2f} > {limit:.2f}")

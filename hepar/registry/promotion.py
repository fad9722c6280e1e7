"""Whether a challenger replaces the champion. Pure: numbers in, a decision with its reasons out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hepar.cases import STRUCTURES
from hepar.params import PromotionGates

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """Promote or not. `reasons` say what stands against it; they are empty for a promotion."""

    promote: bool
    reasons: tuple[str, ...]


def decide(challenger: Metrics, champion: Metrics | None, gates: PromotionGates) -> Decision:
    """Compare two `metrics.json`, made on the same test patients. Without a champion there is nothing to protect, and
    the challenger takes its place.

    A mean Dice that is not defined (no test case has that structure) is not compared. One that the champion has and
    the challenger lacks stands against the challenger.
    """
    if champion is None:
        return Decision(True, ())
    floors = {"liver": gates.min_liver_dice, "tumour": gates.min_tumour_dice}
    own = mean_dice(challenger)
    reasons = [
        f"{modality} {structure} Dice {dice:.3f} < {floors[structure]:.3f}"
        for (modality, structure), dice in own.items()
        if dice < floors[structure]
    ]
    if not own:
        reasons.append("the challenger was scored on no case")
    for (modality, structure), before in mean_dice(champion).items():
        after = own.get((modality, structure))
        if after is None:
            reasons.append(f"{modality} {structure} Dice is missing, the champion has {before:.3f}")
        elif after < before - gates.max_drop:
            reasons.append(f"{modality} {structure} Dice {after:.3f} < champion's {before:.3f} - {gates.max_drop:.3f}")
    return Decision(not reasons, tuple(reasons))


def mean_dice(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Mean Dice by modality and structure, those that are defined."""
    found = {
        (modality, structure): metrics[modality][structure]["dice"]["mean"]
        for modality in sorted(metrics)
        for structure in STRUCTURES
        if structure in metrics[modality]
    }
    return {key: float(value) for key, value in found.items() if value is not None}

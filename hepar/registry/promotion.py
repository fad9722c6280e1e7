"""Whether a challenger replaces the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hepar.cases import LIVER, STRUCTURES, TUMOUR
from hepar.errors import DataError
from hepar.params import PromotionGates, RegisterParams
from hepar.registry.model_registry import CHALLENGER, CHAMPION, ModelVersion, RegisteredModel
from hepar.registry.tracking import connect, server

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Decision:
    """Promote or not. `reasons` say why not; empty for a promotion by the gates."""

    promote: bool
    reasons: tuple[str, ...]

    @property
    def alias(self) -> str:
        """The alias of a version by this decision."""
        return CHAMPION if self.promote else CHALLENGER

    @property
    def summary(self) -> str:
        """The decision as one line of text."""
        return "promoted" if self.promote else "; ".join(self.reasons)


def decide(challenger: Metrics, champion: Metrics | None, gates: PromotionGates) -> Decision:
    """Compare the summary metrics of two models on the same test set. Without a champion the challenger is promoted.

    A mean Dice that is undefined, because no test case has the structure, is not compared. If the champion has one that
    the challenger lacks, the challenger is not promoted.
    """
    if champion is None:
        return Decision(True, ())
    floors = {STRUCTURES[LIVER]: gates.min_liver_dice, STRUCTURES[TUMOUR]: gates.min_tumour_dice}
    own = mean_dice(challenger)
    reasons = [
        f"{modality} {structure} Dice {dice:.3f} < {floors[structure]:.3f}"
        for (modality, structure), dice in own.items()
        if dice < floors[structure]
    ]
    if not own:
        reasons.append("the challenger has no scores")
    for (modality, structure), before in mean_dice(champion).items():
        after = own.get((modality, structure))
        if after is None:
            reasons.append(f"{modality} {structure} Dice is missing, but the champion has {before:.3f}")
        elif after < before - gates.max_drop:
            reasons.append(f"{modality} {structure} Dice {after:.3f} < champion's {before:.3f} - {gates.max_drop:.3f}")
    return Decision(not reasons, tuple(reasons))


def mean_dice(metrics: Metrics) -> dict[tuple[str, str], float]:
    """The defined mean Dice by modality and structure."""
    found = {
        (modality, structure): metrics[modality][structure]["dice"]["mean"]
        for modality in sorted(metrics)
        for structure in STRUCTURES
        if structure in metrics[modality]
    }
    return {key: float(value) for key, value in found.items() if value is not None}


def decide_against(champion: ModelVersion | None, metrics: Metrics, test_set: str, gates: PromotionGates) -> Decision:
    """Decide as `decide` does. Scores on another test set are not comparable, so they keep the champion."""
    if champion is not None and champion.test_set != test_set:
        return Decision(False, (f"version {champion.number} was scored on another test set",))
    return decide(metrics, None if champion is None else champion.metrics, gates)


def decide_on(challenger: ModelVersion, model: RegisteredModel, gates: PromotionGates) -> Decision:
    """Decide on a version, registered or not yet, against the champion that the registry has now."""
    champion = model.version_by_alias(CHAMPION)
    if champion is not None and champion.number == challenger.number:
        return Decision(True, ("it is already the champion",))
    return decide_against(champion, challenger.metrics, challenger.test_set, gates)


def promote(number: str, params: RegisterParams, force: bool) -> Decision:
    """Make a registered version the champion if the gates allow it, or regardless with `force`.

    Raises DataError if there is no such version.
    """
    model = RegisteredModel(connect(), params.model_name)
    challenger = model.version(number)
    if challenger is None:
        raise DataError(f"model {model.name} has no version {number} at {server()}")
    decision = decide_on(challenger, model, params.gates)
    if force:
        decision = Decision(True, decision.reasons)
    if decision.promote:
        model.set_alias(decision.alias, number)
    return decision

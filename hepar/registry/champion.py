"""Promotion and its undoing in the registry: decide on a version, make it the champion, return to the previous one."""

from __future__ import annotations

from dataclasses import dataclass

from hepar.errors import DataError
from hepar.params import PromotionGates, RegisterParams
from hepar.registry.model_registry import CHAMPION, PREVIOUS, ModelVersion, RegisteredModel
from hepar.registry.promotion import Decision, decide
from hepar.registry.registration import Registration
from hepar.registry.tracking import connect, server, storage_errors, tag_name

DECISION_TAG = tag_name("decision")  # of a version: the last decision on it, with its reasons
RESULT_TAG = tag_name("registration")  # of a version: how its registration ended; missing if that was cut short


@dataclass(frozen=True)
class Rollback:
    """The version that is champion again, and the one that it replaced; empty if there was no champion."""

    restored: str
    replaced: str


def decide_against(champion: ModelVersion | None, challenger: ModelVersion, gates: PromotionGates) -> Decision:
    """Decide as `decide` does. Versions whose scores cannot be compared keep the champion."""
    if challenger.cases is None:
        return Decision(False, (f"version {challenger.number} was registered without its scores by case",))
    if champion is None:
        return decide(challenger.cases, None, gates)
    if champion.cases is None:
        reason = f"not comparable: version {champion.number}, the champion, was registered without its scores by case"
        return Decision(False, (reason,))
    if champion.test_set != challenger.test_set:
        return Decision(False, (f"not comparable: version {champion.number} was scored on another test set",))
    return decide(challenger.cases, champion.cases, gates)


def decide_on(challenger: ModelVersion, model: RegisteredModel, gates: PromotionGates) -> Decision:
    """Decide on a version against the champion that the registry has now."""
    champion = model.version_by_alias(CHAMPION)
    if champion is not None and champion.number == challenger.number:
        return Decision(True, ("it is already the champion",))
    return decide_against(champion, challenger, gates)


def settle(number: str, model: RegisteredModel, gates: PromotionGates) -> Registration:
    """Decide on a version that was just registered, and give it its alias.

    Its last step is a tag with the result, so a registration without that tag was cut short and can be settled again.
    Raises DataError if there is no such version.
    """
    decision = decide_on(_version(model, number), model, gates)
    if decision.promote:
        model.make_champion(number)
    else:
        model.make_challenger(number)
    result = Registration(model.name, number, decision.alias, () if decision.promote else decision.reasons)
    model.tag_version(number, {DECISION_TAG: decision.summary, RESULT_TAG: result.to_json()})
    return result


def promote(number: str, params: RegisterParams, force: bool = False, dry_run: bool = False) -> Decision:
    """Make a registered version the champion if the gates allow it, or regardless with `force`.

    The version is tagged with the decision. With `dry_run` the registry stays as it is. Raises DataError if there is no
    such version, StorageError if the registry fails.
    """
    with storage_errors():
        model = RegisteredModel(connect(), params.model_name)
        decision = decide_on(_version(model, number), model, params.gates)
        if force and not decision.promote:
            decision = Decision(True, ("by force", *decision.reasons))
        if dry_run:
            return decision
        before = model.aliases().get(CHAMPION)
        if decision.promote:
            model.make_champion(number)
        if before != number:
            model.tag_version(number, {DECISION_TAG: decision.summary})
        return decision


def rollback(params: RegisterParams) -> Rollback:
    """Make the previous champion the champion again; a second call without a promotion in between finds none.

    Both versions are tagged with what happened. Raises DataError if there is no previous champion, StorageError if the
    registry fails.
    """
    with storage_errors():
        model = RegisteredModel(connect(), params.model_name)
        aliases = model.aliases()
        if PREVIOUS not in aliases:
            raise DataError(f"model {model.name} has no previous champion at {server()}")
        done = Rollback(aliases[PREVIOUS], aliases.get(CHAMPION, ""))
        model.restore_previous()
        model.tag_version(done.restored, {DECISION_TAG: f"champion again after version {done.replaced}"})
        if done.replaced:
            model.tag_version(done.replaced, {DECISION_TAG: f"rolled back to version {done.restored}"})
        return done


def _version(model: RegisteredModel, number: str) -> ModelVersion:
    found = model.version(number)
    if found is None:
        raise DataError(f"model {model.name} has no version {number} at {server()}")
    return found

"""Promotion: floors, the largest tolerated drop, and reasons that name values."""

from __future__ import annotations

from typing import Any

import pytest

from hepar.params import PromotionGates
from hepar.registry.model_registry import ModelVersion, RegisteredModel
from hepar.registry.promotion import Decision, decide, decide_against, decide_on, mean_dice

GATES = PromotionGates(min_liver_dice=0.8, min_tumour_dice=0.5, max_drop=0.02)
Dice = float | None


def metrics(ct: tuple[Dice, Dice] = (0.9, 0.6), mr: tuple[Dice, Dice] = (0.88, 0.58)) -> dict[str, Any]:
    """Mean Dice of liver and tumour in CT and MR."""
    return {
        modality: {
            structure: {"dice": {"mean": mean}} for structure, mean in zip(("liver", "tumour"), pair, strict=True)
        }
        for modality, pair in (("CT", ct), ("MR", mr))
    }


def test_without_a_champion_the_challenger_is_promoted() -> None:
    assert decide(metrics(), None, GATES) == Decision(True, ())
    assert decide(metrics(ct=(0.1, 0.0)), None, GATES) == Decision(True, ())


def test_a_challenger_as_good_as_the_champion_is_promoted() -> None:
    assert decide(metrics(), metrics(), GATES) == Decision(True, ())


def test_a_small_drop_in_one_mean_is_tolerated() -> None:
    assert decide(metrics(ct=(0.89, 0.59)), metrics(), GATES) == Decision(True, ())


@pytest.mark.parametrize(
    ("challenger", "reason"),
    [
        (metrics(ct=(0.87, 0.6)), "CT liver Dice 0.870 < champion's 0.900 - 0.020"),
        (metrics(ct=(0.9, 0.57)), "CT tumour Dice 0.570 < champion's 0.600 - 0.020"),
        (metrics(mr=(0.85, 0.58)), "MR liver Dice 0.850 < champion's 0.880 - 0.020"),
        (metrics(mr=(0.88, 0.55)), "MR tumour Dice 0.550 < champion's 0.580 - 0.020"),
    ],
)
def test_a_larger_drop_in_any_mean_keeps_the_champion(challenger: dict[str, Any], reason: str) -> None:
    assert decide(challenger, metrics(), GATES) == Decision(False, (reason,))


def test_a_gain_in_one_mean_does_not_offset_a_drop_in_another() -> None:
    assert not decide(metrics(ct=(0.99, 0.99), mr=(0.85, 0.99)), metrics(), GATES).promote


@pytest.mark.parametrize(
    ("weak", "reason"),
    [
        (metrics(ct=(0.7, 0.6)), "CT liver Dice 0.700 < 0.800"),
        (metrics(mr=(0.88, 0.4)), "MR tumour Dice 0.400 < 0.500"),
    ],
)
def test_floors_apply_whatever_the_champion_scored(weak: dict[str, Any], reason: str) -> None:
    assert decide(weak, weak, GATES) == Decision(False, (reason,))


def test_a_mean_at_its_floor_passes() -> None:
    edge = metrics(ct=(0.8, 0.5), mr=(0.8, 0.5))
    assert decide(edge, edge, GATES).promote


def test_all_reasons_are_given() -> None:
    decision = decide(metrics(ct=(0.5, 0.1)), metrics(), GATES)
    assert len(decision.reasons) == 4  # both structures fall below their floors and below the champion


def test_a_structure_that_no_test_case_has_is_not_compared() -> None:
    without = metrics(mr=(0.88, None))
    assert decide(without, without, GATES).promote
    assert decide(metrics(), without, GATES).promote


def test_a_mean_that_only_the_champion_has_keeps_it() -> None:
    decision = decide(metrics(mr=(0.88, None)), metrics(), GATES)
    assert decision == Decision(False, ("MR tumour Dice is missing, but the champion has 0.580",))
    only_ct = {"CT": metrics()["CT"]}
    assert len(decide(only_ct, metrics(), GATES).reasons) == 2


@pytest.mark.parametrize("empty", [{}, metrics(ct=(None, None), mr=(None, None))])
def test_a_challenger_without_scores_is_not_promoted(empty: dict[str, Any]) -> None:
    assert decide(empty, {}, GATES) == Decision(False, ("the challenger has no scores",))


def test_mean_dice_is_keyed_by_modality_and_structure() -> None:
    assert mean_dice(metrics(ct=(0.9, None), mr=(0.0, 0.5))) == {
        ("CT", "liver"): 0.9,
        ("MR", "liver"): 0.0,
        ("MR", "tumour"): 0.5,
    }


def test_scores_on_another_test_set_keep_the_champion() -> None:
    champion = ModelVersion("hepar", "3", metrics(), test_set="a")
    reason = "version 3 was scored on another test set"
    assert decide_against(champion, metrics(), "b", GATES) == Decision(False, (reason,))
    assert decide_against(champion, metrics(), "a", GATES) == Decision(True, ())
    assert decide_against(None, metrics(), "b", GATES) == Decision(True, ())


class Registry(RegisteredModel):
    """A registry whose champion is version 3."""

    def version_by_alias(self, alias: str) -> ModelVersion | None:
        return ModelVersion("hepar", "3", metrics(), test_set="a") if alias == "champion" else None


def test_a_version_is_compared_with_the_champion_of_the_registry() -> None:
    registry = Registry(None, "hepar")
    equal, worse = (ModelVersion("hepar", "", scores, "a") for scores in (metrics(), metrics(ct=(0.8, 0.6))))
    assert (decide_on(equal, registry, GATES).alias, decide_on(worse, registry, GATES).alias) == (
        "champion",
        "challenger",
    )
    assert decide_on(worse, registry, GATES).summary == "CT liver Dice 0.800 < champion's 0.900 - 0.020"
    champion = ModelVersion("hepar", "3", metrics(), "a")
    assert decide_on(champion, registry, GATES) == Decision(True, ("it is already the champion",))

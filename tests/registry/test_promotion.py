"""Promotion: floors, margins by paired intervals, too little evidence, and reasons that name values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from hepar.cases import PHANTOM
from hepar.evaluation.lesions import LesionCounts
from hepar.params import PromotionGates
from hepar.registry.case_results import CaseResult
from hepar.registry.promotion import Decision, decide

GATES = PromotionGates(
    min_liver_dice=0.5,
    min_tumour_dice=0.2,
    min_recall=0.0,
    max_false_lesions=10.0,
    min_specificity=0.0,
    max_false_ml=50.0,
    min_source_liver_dice=0.3,
    min_source_tumour_dice=0.0,
    allow_phantoms=False,
    max_liver_drop=0.02,
    max_tumour_drop=0.05,
    max_recall_drop=0.1,
    max_false_lesions_rise=0.5,
    max_specificity_drop=0.2,
    max_false_ml_rise=2.0,
    min_patients=5,
    min_tumour_free_patients=3,
    bootstrap_resamples=500,
    bootstrap_seed=1,
)
Change = Callable[[CaseResult], CaseResult]


def with_tumour(number: int, modality: str = "CT") -> CaseResult:
    """A patient of two lesions, of which both are found, among them patients of unequal difficulty."""
    found = LesionCounts(true_positives=2, false_negatives=0, false_positives=0)
    case = f"{modality}-{number}"
    return CaseResult(case, case, modality, "lits", 0.9 + 0.01 * (number % 3), 0.6, found, None, None)


def tumour_free(number: int, modality: str = "CT") -> CaseResult:
    """A patient without a tumour, in whom none is predicted."""
    case = f"{modality}-free-{number}"
    return CaseResult(case, case, modality, "chaos", 0.9, None, LesionCounts(0, 0, 0), True, 0.0)


def cohort(modality: str = "CT", patients: int = 8, free: int = 4) -> tuple[CaseResult, ...]:
    return (
        *(with_tumour(number, modality) for number in range(patients)),
        *(tumour_free(number, modality) for number in range(free)),
    )


def changed(results: Sequence[CaseResult], change: Change) -> tuple[CaseResult, ...]:
    return tuple(change(result) for result in results)


def liver(by: float) -> Change:
    """Every liver Dice changes by the same amount, so that the interval is this amount."""
    return lambda result: replace(result, liver_dice=None if result.liver_dice is None else result.liver_dice + by)


def tumour(by: float) -> Change:
    return lambda result: replace(result, tumour_dice=None if result.tumour_dice is None else result.tumour_dice + by)


def false_tumours(ml: float) -> Change:
    """A tumour of this volume is predicted in every tumour-free patient, apart from which nothing changes."""
    return lambda result: replace(result, specific=False, false_positive_ml=ml) if result.tumour_free else result


def counted(found: int, missed: int, false: int) -> Change:
    """Lesion counts of the patients with tumours."""
    return lambda result: result if result.tumour_free else replace(result, lesions=LesionCounts(found, missed, false))


def test_equal_scores_promote() -> None:
    assert decide(cohort(), cohort(), GATES) == Decision(True, ())


def test_better_scores_promote() -> None:
    assert decide(changed(changed(cohort(), liver(0.03)), tumour(0.2)), cohort(), GATES) == Decision(True, ())


def test_at_equal_dice_a_tumour_in_every_healthy_patient_keeps_the_champion() -> None:
    decision = decide(changed(cohort(), false_tumours(1.0)), cohort(), GATES)
    reason = "CT specificity: change -1.000 [-1.000, -1.000] may lie below -0.200 (n = 4 patients)"
    assert decision == Decision(False, (reason,))


def test_at_equal_dice_a_large_false_volume_keeps_the_champion() -> None:
    before = changed(cohort(), false_tumours(1.0))
    decision = decide(changed(cohort(), false_tumours(4.0)), before, GATES)
    reason = "CT false tumour ml: change +3.000 [+3.000, +3.000] may lie above +2.000 (n = 4 patients)"
    assert decision == Decision(False, (reason,))
    reason = "CT false tumour ml: change +1.500 [+1.500, +1.500] is a loss, and no score gains (n = 4 patients)"
    assert decide(changed(cohort(), false_tumours(2.5)), before, GATES) == Decision(False, (reason,))


def test_at_equal_dice_a_lesion_f1_of_a_tenth_keeps_the_champion() -> None:
    good, bad = counted(8, 2, 2), counted(1, 9, 9)  # F1 of 16/20 and of 2/20
    assert [change(with_tumour(0)).lesions.f1 for change in (good, bad)] == [0.8, 0.1]  # type: ignore[union-attr]
    decision = decide(changed(cohort(), bad), changed(cohort(), good), GATES)
    assert not decision.promote
    recall, false = decision.reasons
    assert recall == "CT lesion recall: change -0.700 [-0.700, -0.700] may lie below -0.100 (n = 8 patients)"
    # 7 more false lesions in 8 of the 12 scans
    assert false.startswith("CT false lesions: change +4.667 [+")
    assert false.endswith("] may lie above +0.500 (n = 12 patients)")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (liver(-0.03), "CT liver Dice: change -0.030 [-0.030, -0.030] may lie below -0.020 (n = 12 patients)"),
        (tumour(-0.06), "CT tumour Dice: change -0.060 [-0.060, -0.060] may lie below -0.050 (n = 8 patients)"),
    ],
)
def test_a_dice_that_drops_beyond_its_margin_keeps_the_champion(change: Change, reason: str) -> None:
    assert decide(changed(cohort(), change), cohort(), GATES) == Decision(False, (reason,))


def test_an_uncertain_loss_within_the_margin_is_tolerated() -> None:
    def one_worse(result: CaseResult) -> CaseResult:
        return liver(-0.015 if result.case_id == "CT-0" else 0.0)(result)

    assert decide(changed(cohort(), one_worse), cohort(), GATES) == Decision(True, ())


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (liver(-0.015), "liver Dice: change -0.015 [-0.015, -0.015] is a loss, and no score gains (n = 12 patients)"),
        (tumour(-0.04), "tumour Dice: change -0.040 [-0.040, -0.040] is a loss, and no score gains (n = 8 patients)"),
        (
            counted(19, 1, 0),
            "lesion recall: change -0.050 [-0.050, -0.050] is a loss, and no score gains (n = 8 patients)",
        ),
    ],
)
def test_a_certain_loss_within_the_margin_must_be_paid_for_by_a_gain(change: Change, lost: str) -> None:
    """Else a chain of challengers, each within the margin of the one before, would lose whatever there is."""
    worse = changed(cohort(), change)
    assert decide(worse, cohort(), GATES) == Decision(False, (f"CT {lost}",))
    fewer_false = changed(cohort(), lambda result: replace(result, lesions=replace(result.lesions, false_positives=1)))
    assert decide(worse, fewer_false, GATES.model_copy(update={"max_false_lesions_rise": 2.0})) == Decision(True, ())


def test_few_patients_need_a_wider_interval_than_resampling_gives() -> None:
    """Three of eight patients lose 0.06: Student's interval reaches below the margin, the resampled one does not.

    Mean -0.0225, SD 0.0311: -0.0225 - 2.365 · 0.0311 / √8 = -0.0484, and no resampled mean below -0.0450 in 97.5 %.
    """

    def three_worse(result: CaseResult) -> CaseResult:
        return tumour(-0.06 if result.case_id in ("CT-0", "CT-1", "CT-2") else 0.0)(result)

    gates = GATES.model_copy(update={"max_tumour_drop": 0.047})
    (reason,) = decide(changed(cohort(), three_worse), cohort(), gates).reasons
    assert reason.startswith("CT tumour Dice: change -0.022 [-0.048, ")


def test_a_mean_that_is_equal_but_uncertain_keeps_the_champion() -> None:
    """Half the patients gain what the others lose: the mean stays, its interval reaches beyond the margin."""

    def swing(result: CaseResult) -> CaseResult:
        return tumour(0.3 if int(result.case_id[-1]) % 2 else -0.3)(result)

    (reason,) = decide(changed(cohort(), swing), cohort(), GATES).reasons
    assert re.fullmatch(
        r"CT tumour Dice: change [+-]0\.000 \[-0\.\d+, \+0\.\d+\] may lie below -0\.050 \(n = 8 .*", reason
    )


def test_two_scans_of_a_patient_are_one_patient() -> None:
    def one_patient(result: CaseResult) -> CaseResult:
        return replace(result, patient_id="same")

    results = changed(cohort(), one_patient)
    assert "CT liver Dice: not enough evidence, n = 1 paired patients < 5" in decide(results, results, GATES).reasons


def test_too_few_patients_are_not_enough_evidence_however_good_they_are() -> None:
    few = cohort(patients=3, free=1)
    better = changed(changed(few, liver(0.05)), tumour(0.3))
    names = ("liver Dice", "tumour Dice", "lesion recall", "false lesions", "specificity", "false tumour ml")
    patients = (4, 3, 3, 4, 1, 1)
    assert decide(better, few, GATES).reasons == tuple(
        f"CT {name}: not enough evidence, n = {n} paired patients < {3 if n == 1 else 5}"
        for name, n in zip(names, patients, strict=True)
    )


def test_without_tumour_free_patients_nothing_is_known_about_specificity() -> None:
    results = cohort(free=0)
    reason = "CT specificity: not enough evidence, n = 0 paired patients < 3"
    assert decide(results, results, GATES) == Decision(False, (reason,))
    unneeded = GATES.model_copy(update={"min_tumour_free_patients": 0})
    assert decide(results, results, unneeded).promote


@pytest.mark.parametrize("needed", [0, 1])
def test_a_change_in_one_patient_is_held_against_the_margin_itself(needed: int) -> None:
    """Where one tumour-free patient is enough there is no interval; 3 ml more is beyond the margin, 1 ml is not."""
    gates = GATES.model_copy(update={"min_tumour_free_patients": needed, "max_specificity_drop": 1.5})
    one = cohort(free=1)
    decision = decide(changed(one, false_tumours(3.0)), one, gates)
    assert decision == Decision(False, ("CT false tumour ml: change +3.000 is not below +2.000 (n = 1 patient)",))
    assert decide(changed(one, false_tumours(1.0)), one, gates).promote
    stricter = gates.model_copy(update={"max_specificity_drop": 0.2})
    decision = decide(changed(one, false_tumours(1.0)), one, stricter)
    assert decision == Decision(False, ("CT specificity: change -1.000 is not above -0.200 (n = 1 patient)",))
    assert decide(one, one, stricter).promote


def test_a_model_of_livers_alone_is_compared_by_livers_alone() -> None:
    results = changed(cohort(), lambda result: replace(result, tumour_dice=None, lesions=None, specific=None))
    assert decide(results, results, GATES) == Decision(True, ())


def test_each_modality_is_judged_by_itself() -> None:
    before = (*cohort("CT"), *cohort("MR"))
    after = (*changed(cohort("CT"), liver(0.05)), *changed(cohort("MR"), liver(-0.05)))
    (reason,) = decide(after, before, GATES).reasons
    assert reason.startswith("MR liver Dice: change -0.050 ")


def test_a_modality_or_structure_that_only_the_champion_was_scored_on_is_not_enough_evidence() -> None:
    decision = decide(cohort("CT"), (*cohort("CT"), *cohort("MR")), GATES)
    assert "MR liver Dice: not enough evidence, n = 0 paired patients < 5" in decision.reasons
    assert not any(reason.startswith("CT") for reason in decision.reasons)
    untaught = changed(cohort(), lambda result: replace(result, liver_dice=None))
    reason = "CT liver Dice: not enough evidence, n = 0 paired patients < 5"
    assert decide(untaught, cohort(), GATES) == Decision(False, (reason,))
    assert decide(cohort(), untaught, GATES).promote


def test_the_order_of_cases_does_not_matter() -> None:
    after = changed(cohort(), liver(-0.03))
    assert decide(after[::-1], cohort(), GATES) == decide(after, cohort(), GATES)


def test_a_first_version_must_reach_the_floors() -> None:
    assert decide(cohort(), None, GATES) == Decision(True, ())
    useless = decide(changed(cohort(), lambda result: replace(result, liver_dice=0.01)), None, GATES)
    assert (useless.promote, useless.alias) == (False, "challenger")
    assert "CT liver Dice 0.010 < 0.500 (n = 12 scans)" in useless.reasons
    weak = decide(changed(cohort(), tumour(-0.5)), None, GATES)
    assert weak.reasons == ("CT tumour Dice 0.100 < 0.200 (n = 8 scans)",)


def test_a_first_version_must_be_specific_enough() -> None:
    gates = GATES.model_copy(update={"min_specificity": 0.5})
    unspecific = changed(cohort(), false_tumours(1.0))
    assert decide(unspecific, None, gates).reasons == ("CT specificity 0.000 < 0.500 (n = 4 scans)",)
    assert decide(cohort(free=0), None, gates).promote


def test_a_good_mean_does_not_hide_a_source_below_its_floor() -> None:
    def weak_in_chaos(result: CaseResult) -> CaseResult:
        return replace(result, liver_dice=0.25) if result.source == "chaos" else result

    results = changed(cohort(), weak_in_chaos)
    assert decide(results, None, GATES).reasons == ("CT chaos liver Dice 0.250 < 0.300 (n = 4 scans)",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lesions": LesionCounts(0, 2, 0)}, "CT lesion recall 0.000 < 0.100 (n = 8 scans)"),
        ({"lesions": LesionCounts(2, 0, 18)}, "CT false lesions 12.000 > 10.000 (n = 12 scans)"),
        ({"false_positive_ml": 50.1}, "CT false tumour ml 50.100 > 50.000 (n = 4 scans)"),
    ],
)
def test_a_first_version_must_find_lesions_and_not_invent_them(change: dict[str, Any], reason: str) -> None:
    def worse(result: CaseResult) -> CaseResult:
        return replace(result, **change) if result.tumour_free == ("false_positive_ml" in change) else result

    gates = GATES.model_copy(update={"min_recall": 0.1})
    assert decide(cohort(), None, gates).promote
    assert decide(changed(cohort(), worse), None, gates).reasons == (reason,)


def test_a_source_that_loses_its_tumours_stays_challenger() -> None:
    gates = GATES.model_copy(update={"min_source_tumour_dice": 0.02})
    lost = [replace(with_tumour(number), source="other", tumour_dice=0.0) for number in range(100, 102)]
    (reason,) = decide((*cohort(), *lost), None, gates).reasons
    assert reason == "CT other tumour Dice 0.000 < 0.020 (n = 2 scans)"


def test_phantoms_alone_promote_nothing_unless_they_may() -> None:
    phantoms = changed(cohort(), lambda result: replace(result, source=PHANTOM))
    reason = "scored on phantoms alone, which register.gates.allow_phantoms does not allow"
    assert decide(phantoms, None, GATES).reasons == (reason,)
    assert decide(phantoms, phantoms, GATES).reasons == (reason,)
    assert decide(phantoms, None, GATES.model_copy(update={"allow_phantoms": True})).promote


def test_phantoms_do_not_count_beside_real_scans() -> None:
    """Many good ones do not hide that the real scan among them fails, and their own failure costs nothing."""
    phantoms = changed(cohort(), lambda result: replace(result, source=PHANTOM))
    failed = replace(cohort()[0], liver_dice=0.1, source="real")
    assert "CT liver Dice 0.100 < 0.500 (n = 1 scans)" in decide((*phantoms[1:], failed), None, GATES).reasons
    useless = changed(phantoms, lambda result: replace(result, liver_dice=0.0))
    assert decide((*useless, *cohort("MR")), (*useless, *cohort("MR")), GATES) == Decision(True, ())
    assert decide((*useless, *cohort("MR")), useless, GATES) == Decision(True, ())


def test_floors_hold_against_a_champion_that_is_no_better() -> None:
    weak = changed(cohort(), tumour(-0.5))
    assert decide(weak, weak, GATES).reasons == ("CT tumour Dice 0.100 < 0.200 (n = 8 scans)",)


def test_a_mean_at_its_floor_passes() -> None:
    edge = changed(cohort(), lambda result: replace(result, liver_dice=0.5))
    assert decide(edge, None, GATES).promote


def test_a_margin_of_zero_asks_for_a_gain() -> None:
    gates = GATES.model_copy(update={"max_tumour_drop": 0.0})
    assert not decide(cohort(), cohort(), gates).promote
    assert decide(changed(cohort(), tumour(0.01)), cohort(), gates).promote


@pytest.mark.parametrize("champion", [None, cohort()])
def test_a_challenger_without_scores_is_not_promoted(champion: tuple[CaseResult, ...] | None) -> None:
    unscored = changed(cohort(), lambda result: replace(result, liver_dice=None, tumour_dice=None))
    for challenger in ((), unscored):
        assert decide(challenger, champion, GATES) == Decision(False, ("the challenger has no scores",))


def test_a_patient_that_a_model_learned_from_counts_in_neither_floors_nor_margins() -> None:
    def fails_in_one(result: CaseResult) -> CaseResult:
        return replace(result, liver_dice=0.0) if result.patient_id == "CT-1" else result

    after, gates = changed(cohort(), fails_in_one), GATES.model_copy(update={"min_liver_dice": 0.9})
    left_out = ("patient CT-1 is left out: version 3 learned from this patient",)
    assert decide(after, cohort(), gates, {"CT-1": "version 3", "somebody": "version 3"}) == Decision(
        True, (), left_out
    )
    assert decide(after, None, gates, {"CT-1": "version 3"}) == Decision(True, (), left_out)
    without = decide(after, cohort(), gates)
    assert [reason[:14] for reason in without.reasons] == ["CT liver Dice ", "CT liver Dice:"]
    assert decide(after, cohort(), gates, {"CT-1": "version 3"}).summary == f"promoted; {left_out[0]}"


def test_a_modality_whose_patients_are_all_left_out_is_not_enough_evidence() -> None:
    """The champion learned from every MR patient: nothing tells whether the challenger is as good in MR."""
    both, learned = (*cohort("CT"), *cohort("MR")), {result.patient_id: "version 1" for result in cohort("MR")}
    decision = decide(both, both, GATES, learned)
    assert (decision.promote, len(decision.left_out)) == (False, 12)
    assert decision.reasons[0] == "MR liver Dice: not enough evidence, n = 0 paired patients < 5"
    assert decide(cohort(), cohort(), GATES, {result.patient_id: "version 1" for result in cohort()}).reasons == (
        "the challenger has no scores",
    )

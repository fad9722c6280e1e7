"""What is new in a cohort: scans by content, labels by state and mask, decisions of reviewers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from toy_state import a_case, known

from hepar.cases import Case, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.pseudo_labels.reviews import Review, ReviewDecision, Reviews
from hepar.retraining.case_changes import (
    BecameKnown,
    compare_cases,
    count_by_group,
    decided_reviews,
    known_cases,
)

UNKNOWN, MANUAL, ABSENT = LabelState.UNKNOWN, LabelState.MANUAL, LabelState.ABSENT


def test_nothing_changed() -> None:
    cases = [a_case("a"), a_case("b", split=Split.TEST)]
    changes = compare_cases(map(known, cases), cases)
    assert (changes.new, changes.new_test, changes.became_known, changes.labelled, changes.gone) == ((), (), (), (), 0)
    assert changes.known == tuple(cases)


def test_a_scan_is_known_by_its_content_and_not_by_its_name() -> None:
    case = a_case("a")
    renamed, other = replace(case, case_id="b"), replace(case, image_sha256="other")
    assert compare_cases([known(case)], [renamed]).new == ()
    changes = compare_cases([known(case)], [other])
    assert (changes.new, changes.gone) == ((other,), 1)


def test_new_test_patients_are_counted_apart() -> None:
    train, val, test = (a_case(str(split), split=split) for split in Split)
    changes = compare_cases([], [train, val, test])
    assert (changes.new, changes.new_test) == ((train, val), (test,))


@pytest.mark.parametrize(
    ("before", "now", "what"),
    [
        ((UNKNOWN, MANUAL), (MANUAL, MANUAL), ["liver drawn"]),
        ((MANUAL, UNKNOWN), (MANUAL, ABSENT), ["tumour confirmed absent"]),
        ((UNKNOWN, UNKNOWN), (MANUAL, MANUAL), ["liver drawn", "tumour drawn"]),
        ((MANUAL, MANUAL), (MANUAL, ABSENT), []),
        ((MANUAL, UNKNOWN), (MANUAL, UNKNOWN), []),
        ((MANUAL, MANUAL), (UNKNOWN, MANUAL), []),
        ((UNKNOWN, MANUAL), (LabelState.PSEUDO, MANUAL), []),  # a model says so, and no expert
    ],
)
def test_an_unknown_becomes_known(
    before: tuple[LabelState, LabelState], now: tuple[LabelState, LabelState], what: list[str]
) -> None:
    old, new = (a_case("a", liver_state=liver, tumour_state=tumour) for liver, tumour in (before, now))
    found = compare_cases([known(old)], [new])
    assert found.became_known == tuple(BecameKnown("a", "CT", "LiTS", text) for text in what)
    tested = compare_cases([known(old)], [replace(new, split=Split.TEST)])
    assert tested.became_known == ()


def test_a_redrawn_mask_is_a_new_label_and_no_unknown() -> None:
    case = a_case("a")
    redrawn = replace(case, liver_sha256="redrawn")
    changes = compare_cases([known(case)], [redrawn])
    assert (changes.labelled, changes.became_known) == ((redrawn,), ())


def test_a_new_scan_without_an_experts_label_is_not_labelled() -> None:
    bare = a_case("a", liver_state=UNKNOWN, tumour_state=UNKNOWN)
    healthy = a_case("b", liver_state=UNKNOWN, tumour_state=ABSENT)
    assert compare_cases([], [bare, healthy]).labelled == (healthy,)


def test_the_record_of_a_cohort_is_read_back() -> None:
    row = {"case_id": "a", "image_sha256": "1", "liver_state": "manual", "tumour_state": "unknown"}
    table = pd.DataFrame([{**row, "liver_sha256": "2", "tumour_sha256": ""}])
    (found,) = known_cases(table)
    assert (found.case_id, found.image_sha256) == ("a", "1")
    assert (found.states, found.masks_sha256) == ((MANUAL, UNKNOWN), ("2", ""))
    with pytest.raises(DataError, match=r"case a: tumour_state is 'maybe'"):
        known_cases(table.assign(tumour_state="maybe"))


def reviewed(case: Case, decision: ReviewDecision, mask: str = "") -> Reviews:
    review = Review(case.case_id, decision, "who", "when", case.image_sha256, "judged", mask)
    return Reviews(Path(), {case.case_id: review})


@pytest.mark.parametrize(
    ("decision", "mask", "gate", "used_mask", "counts"),
    [
        (ReviewDecision.REJECT, "", "review", "pseudo", True),
        (ReviewDecision.REJECT, "", "reject", "pseudo", False),
        (ReviewDecision.CORRECT, "new", "correct", "old", True),
        (ReviewDecision.CORRECT, "new", "correct", "new", False),
    ],
)
def test_a_decision_counts_until_a_champion_has_learned_from_it(
    decision: ReviewDecision, mask: str, gate: str, used_mask: str, counts: bool
) -> None:
    case = a_case("a", liver_state=UNKNOWN)
    pool = pd.DataFrame([{"case_id": "a", "gate": gate, "liver_sha256": used_mask}])
    found = decided_reviews(reviewed(case, decision, mask), pool, "", [case])
    assert [item.what for item in found] == (["liver reviewed"] if counts else [])


def test_a_decision_on_another_image_or_on_a_case_that_has_a_mask_now_does_not_count() -> None:
    case = a_case("a", liver_state=UNKNOWN)
    reviews = reviewed(case, ReviewDecision.ACCEPT)
    pool = pd.DataFrame([{"case_id": "a", "gate": "review", "liver_sha256": "pseudo"}])
    assert len(decided_reviews(reviews, pool, "", [case])) == 1
    for other in (replace(case, image_sha256="x"), a_case("a"), replace(case, split=Split.TEST)):
        assert decided_reviews(reviews, pool, "", [other]) == ()
    assert decided_reviews(reviews, pool.iloc[:0], "", [case]) == ()


def test_a_decision_that_a_pool_has_found_void_is_no_reason_to_train_again_and_again() -> None:
    """Its teacher had changed, and with it the mask that was judged."""
    case = a_case("a", liver_state=UNKNOWN)
    pool = pd.DataFrame([{"case_id": "a", "gate": "review", "liver_sha256": "pseudo"}])
    reviews = reviewed(case, ReviewDecision.ACCEPT)
    assert decided_reviews(reviews, pool, reviews.hash, [case]) == ()
    added = reviewed(case, ReviewDecision.REJECT)
    assert len(decided_reviews(added, pool, reviews.hash, [case])) == 1


def test_groups_are_modality_and_source() -> None:
    cases = [a_case("a"), a_case("b"), a_case("c", modality=Modality.MR, source="CHAOS")]
    assert count_by_group(cases) == {"CT/LiTS": 2, "MR/CHAOS": 1}

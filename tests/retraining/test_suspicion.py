"""Which new labels are suspicious, and what a reviewer's decision changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_state import a_case

from hepar.ingest.quarantine import Refused
from hepar.pseudo_labels.reviews import NO_REVIEWS, Review, ReviewDecision, Reviews
from hepar.retraining.suspicion import Suspect, SuspectBatch, judge_batch

CASE = a_case("a")


def decided(decision: ReviewDecision, judged: str = CASE.liver_sha256) -> Reviews:
    return Reviews(Path(), {"a": Review("a", decision, "who", "when", CASE.image_sha256, judged)})


def test_a_mask_is_suspicious_below_the_bound_only() -> None:
    cases = [a_case(name) for name in "abcd"]
    batch = judge_batch(cases, {"a": 0.49, "b": 0.5, "c": None}, [], 0.5, NO_REVIEWS)
    assert batch == SuspectBatch(4, (Suspect("a", "liver Dice with the champion's prediction 0.49 < 0.5", 0.49),))
    assert batch.share == 0.25


def test_a_scan_that_ingest_refused_is_suspicious() -> None:
    batch = judge_batch(
        [CASE], {"a": 0.9}, [Refused("z", "no scan occurs twice", "same voxels as case a")], 0.5, NO_REVIEWS
    )
    assert batch.suspects == (Suspect("z", "refused by ingest: no scan occurs twice: same voxels as case a"),)
    assert (batch.size, batch.case_ids) == (2, {"z"})


@pytest.mark.parametrize(
    ("decision", "rejected"),
    [(ReviewDecision.ACCEPT, ()), (ReviewDecision.REJECT, ("a",)), (ReviewDecision.CORRECT, ("a",))],
)
def test_a_decision_ends_the_suspicion(decision: ReviewDecision, rejected: tuple[str, ...]) -> None:
    batch = judge_batch([CASE], {"a": 0.1}, [], 0.5, decided(decision))
    assert (batch.suspects, tuple(found.case_id for found in batch.rejected)) == ((), rejected)


def test_a_decision_on_another_mask_or_image_is_void() -> None:
    for case, reviews in (
        (CASE, decided(ReviewDecision.ACCEPT, "another mask")),
        (replace(CASE, image_sha256="another image"), decided(ReviewDecision.ACCEPT)),
    ):
        assert [found.case_id for found in judge_batch([case], {"a": 0.1}, [], 0.5, reviews).suspects] == ["a"]


def test_the_share_is_that_of_suspects_alone() -> None:
    """A rejected mask holds the training whatever the share is; an empty batch has no suspects."""
    suspect, rejected = Suspect("a", "why", 0.1), Suspect("b", "why", 0.1)
    assert SuspectBatch(4, (suspect,), (rejected,)).share == 0.25
    assert SuspectBatch().share == 0

"""Reviews: an append-only log, of which the last decision counts as long as the mask is the same."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from hepar.cases import Case
from hepar.errors import DataError
from hepar.pseudo_labels.reviews import NO_REVIEWS, Review, ReviewDecision, Reviews, append_review
from hepar.runtime.artifacts import sha256_file


def review(decision: ReviewDecision, case: Case, judged: str = "m1", mask: str = "") -> Review:
    return Review(case.case_id, decision, "an expert", "2026-01-02T03:04:05Z", case.image_sha256, judged, mask)


def test_the_last_decision_counts_and_none_is_lost(case: Case, tmp_path: Path) -> None:
    for decision in (ReviewDecision.REJECT, ReviewDecision.ACCEPT):
        append_review(tmp_path, review(decision, case))
    assert len((tmp_path / Reviews.LOG).read_text().splitlines()) == 2
    found = Reviews.load(tmp_path).find(case, "m1")
    assert found == review(ReviewDecision.ACCEPT, case)
    assert found.summary == "accepted by an expert, 2026-01-02T03:04:05Z"


@pytest.mark.parametrize("decision", [ReviewDecision.ACCEPT, ReviewDecision.REJECT])
def test_a_decision_on_another_mask_is_void(decision: ReviewDecision, case: Case, tmp_path: Path) -> None:
    append_review(tmp_path, review(decision, case))
    reviews = Reviews.load(tmp_path)
    assert reviews.find(case, "m2") is None
    assert reviews.find_void([case], {"a": "m2"}) == [review(decision, case)]
    assert reviews.find_void([case], {"a": "m1"}) == []


def test_a_correction_survives_a_new_teacher_but_not_a_changed_image(case: Case, tmp_path: Path) -> None:
    append_review(tmp_path, review(ReviewDecision.CORRECT, case, mask="c1"))
    reviews = Reviews.load(tmp_path)
    assert reviews.find(case, "m2") is not None
    assert reviews.find(replace(case, image_sha256="other"), "m2") is None


def test_a_changed_mask_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / Reviews.MASKS).mkdir()
    path = tmp_path / Reviews.MASKS / "mask.nii.gz"
    path.write_bytes(b"mask")
    named = path.rename(path.with_name(f"{sha256_file(path)}.nii.gz"))
    corrected = review(ReviewDecision.CORRECT, case, mask=named.name.split(".")[0])
    append_review(tmp_path, corrected)
    reviews = Reviews.load(tmp_path)
    assert reviews.corrected_mask(corrected) == named
    named.write_bytes(b"another")
    with pytest.raises(DataError, match=r"^case a: the corrected mask .* is missing or has changed$"):
        reviews.corrected_mask(corrected)


def test_an_invalid_line_is_named(case: Case, tmp_path: Path) -> None:
    append_review(tmp_path, review(ReviewDecision.ACCEPT, case))
    with (tmp_path / Reviews.LOG).open("a") as stream:
        stream.write('{"case_id": "b"}\n')
    with pytest.raises(DataError, match=r"decisions.jsonl, line 2: not a review decision$"):
        Reviews.load(tmp_path)
    values = json.loads((tmp_path / Reviews.LOG).read_text().splitlines()[0])
    (tmp_path / Reviews.LOG).write_text(json.dumps({**values, "decision": "maybe"}) + "\n")
    with pytest.raises(DataError, match=r"^case a: decision is 'maybe' but must be one of accept, reject, correct$"):
        Reviews.load(tmp_path)


def test_an_empty_folder_has_no_decisions_yet(tmp_path: Path) -> None:
    """Another folder, or none, may be a slip of the pen in the params, and decisions would not be applied."""
    (tmp_path / "reviews").mkdir()
    found = Reviews.load(tmp_path / "reviews")
    assert (found.by_case, found.hash) == ({}, NO_REVIEWS.hash)
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="has no reviews"):
            Reviews.load(folder)


def test_an_incomplete_last_line_is_dropped_and_the_rest_kept(case: Case, tmp_path: Path) -> None:
    append_review(tmp_path, review(ReviewDecision.ACCEPT, case))
    whole = (tmp_path / Reviews.LOG).read_bytes()
    (tmp_path / Reviews.LOG).write_bytes(whole + whole[:40])
    assert Reviews.load(tmp_path).find(case, "m1") == review(ReviewDecision.ACCEPT, case)
    append_review(tmp_path, review(ReviewDecision.REJECT, case))
    assert (tmp_path / Reviews.LOG).read_bytes().startswith(whole)
    assert len((tmp_path / Reviews.LOG).read_text().splitlines()) == 2
    assert Reviews.load(tmp_path).find(case, "m1") == review(ReviewDecision.REJECT, case)


def test_a_complete_last_line_without_a_line_break_counts(case: Case, tmp_path: Path) -> None:
    append_review(tmp_path, review(ReviewDecision.ACCEPT, case))
    (tmp_path / Reviews.LOG).write_bytes((tmp_path / Reviews.LOG).read_bytes().rstrip())
    assert Reviews.load(tmp_path).find(case, "m1") == review(ReviewDecision.ACCEPT, case)
    append_review(tmp_path, replace(review(ReviewDecision.REJECT, case), case_id="b"))
    assert set(Reviews.load(tmp_path).by_case) == {"a", "b"}


def test_several_processes_append_to_one_log(case: Case, tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as executor:
        made = [replace(review(ReviewDecision.ACCEPT, case), case_id=f"c{number}") for number in range(100)]
        list(executor.map(append_review, [tmp_path] * 100, made))
    assert set(Reviews.load(tmp_path).by_case) == {f"c{number}" for number in range(100)}


def test_the_hash_covers_the_decisions_that_count(case: Case, tmp_path: Path) -> None:
    append_review(tmp_path / "a", review(ReviewDecision.ACCEPT, case))
    for decision in (ReviewDecision.REJECT, ReviewDecision.ACCEPT):
        append_review(tmp_path / "b", review(decision, case))
    append_review(tmp_path / "c", review(ReviewDecision.REJECT, case))
    hashes = [Reviews.load(tmp_path / name).hash for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]

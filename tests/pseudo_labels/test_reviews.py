"""Decisions of people: an append-only list, of which the last one counts as long as it is about the same mask."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from hepar.cases import Case
from hepar.errors import DataError
from hepar.pseudo_labels.reviews import LOG, Decision, Review, Reviews, append, void
from hepar.runtime.artifacts import sha256_file


def review(decision: Decision, case: Case, judged: str = "m1", mask: str = "") -> Review:
    return Review(case.case_id, decision, "an expert", "2026-01-02T03:04:05Z", case.image_sha256, judged, mask)


def test_the_last_decision_counts_and_none_is_lost(case: Case, tmp_path: Path) -> None:
    for decision in (Decision.REJECT, Decision.ACCEPT):
        append(tmp_path, review(decision, case))
    assert len((tmp_path / LOG).read_text().splitlines()) == 2
    found = Reviews.load(tmp_path).of(case, "m1")
    assert found == review(Decision.ACCEPT, case)
    assert found.in_words == "accepted by an expert, 2026-01-02T03:04:05Z"


@pytest.mark.parametrize("decision", [Decision.ACCEPT, Decision.REJECT])
def test_a_decision_on_another_mask_is_void(decision: Decision, case: Case, tmp_path: Path) -> None:
    append(tmp_path, review(decision, case))
    reviews = Reviews.load(tmp_path)
    assert reviews.of(case, "m2") is None
    assert void(reviews, [case], {"a": "m2"}) == [review(decision, case)]
    assert void(reviews, [case], {"a": "m1"}) == []


def test_a_correction_outlives_a_new_teacher_but_not_another_image(case: Case, tmp_path: Path) -> None:
    append(tmp_path, review(Decision.CORRECT, case, mask="c1"))
    reviews = Reviews.load(tmp_path)
    assert reviews.of(case, "m2") is not None
    assert reviews.of(replace(case, image_sha256="other"), "m2") is None


def test_a_changed_mask_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    path = tmp_path / "masks" / "mask.nii.gz"
    path.write_bytes(b"mask")
    named = path.rename(path.with_name(f"{sha256_file(path)}.nii.gz"))
    corrected = review(Decision.CORRECT, case, mask=named.name.split(".")[0])
    append(tmp_path, corrected)
    reviews = Reviews.load(tmp_path)
    assert reviews.corrected_mask(corrected) == named
    named.write_bytes(b"another")
    with pytest.raises(DataError, match=r"^case a: the corrected mask .* is missing or was changed$"):
        reviews.corrected_mask(corrected)


def test_a_line_that_is_no_decision_is_named(case: Case, tmp_path: Path) -> None:
    append(tmp_path, review(Decision.ACCEPT, case))
    with (tmp_path / LOG).open("a") as stream:
        stream.write('{"case_id": "b"}\n')
    with pytest.raises(DataError, match=r"decisions.jsonl, line 2: it is no decision$"):
        Reviews.load(tmp_path)
    values = json.loads((tmp_path / LOG).read_text().splitlines()[0])
    (tmp_path / LOG).write_text(json.dumps({**values, "decision": "maybe"}) + "\n")
    with pytest.raises(DataError, match=r"^case a: decision is 'maybe', must be one of accept, reject, correct$"):
        Reviews.load(tmp_path)
    with pytest.raises(DataError, match="holds no reviews"):
        Reviews.load(tmp_path / "none")


def test_a_line_that_a_power_cut_tore_is_dropped_and_the_rest_stays(case: Case, tmp_path: Path) -> None:
    append(tmp_path, review(Decision.ACCEPT, case))
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole + whole[:40])
    assert Reviews.load(tmp_path).of(case, "m1") == review(Decision.ACCEPT, case)
    append(tmp_path, review(Decision.REJECT, case))
    assert (tmp_path / LOG).read_bytes().startswith(whole)
    assert len((tmp_path / LOG).read_text().splitlines()) == 2
    assert Reviews.load(tmp_path).of(case, "m1") == review(Decision.REJECT, case)


def test_a_last_line_that_an_editor_left_without_its_end_counts(case: Case, tmp_path: Path) -> None:
    append(tmp_path, review(Decision.ACCEPT, case))
    (tmp_path / LOG).write_bytes((tmp_path / LOG).read_bytes().rstrip())
    assert Reviews.load(tmp_path).of(case, "m1") == review(Decision.ACCEPT, case)
    append(tmp_path, replace(review(Decision.REJECT, case), case_id="b"))
    assert set(Reviews.load(tmp_path).of_case) == {"a", "b"}


def test_several_processes_add_to_one_list(case: Case, tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as executor:
        made = [replace(review(Decision.ACCEPT, case), case_id=f"c{number}") for number in range(100)]
        list(executor.map(append, [tmp_path] * 100, made))
    assert set(Reviews.load(tmp_path).of_case) == {f"c{number}" for number in range(100)}


def test_the_hash_is_of_the_decisions_that_count(case: Case, tmp_path: Path) -> None:
    append(tmp_path / "a", review(Decision.ACCEPT, case))
    for decision in (Decision.REJECT, Decision.ACCEPT):
        append(tmp_path / "b", review(decision, case))
    append(tmp_path / "c", review(Decision.REJECT, case))
    hashes = [Reviews.load(tmp_path / name).hash for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]

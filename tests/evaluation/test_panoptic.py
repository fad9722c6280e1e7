"""Panoptic quality of lesions on a line, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from hepar.evaluation.lesions import detect_lesions, match_lesions
from hepar.evaluation.overlap import ratio
from hepar.evaluation.panoptic import PanopticCounts, panoptic_counts, pool_panoptic


def line(drawing: str) -> np.ndarray:
    return np.array([[[character == "#" for character in drawing]]])


def quality(reference: str, prediction: str) -> tuple[float | None, float | None, float | None]:
    """Panoptic, segmentation and recognition quality of two drawings."""
    counts = panoptic_counts(match_lesions(line(reference), line(prediction)))
    return ratio(*counts.pq_terms), ratio(*counts.sq_terms), ratio(*counts.rq_terms)


def test_a_match_a_miss_and_a_false_lesion() -> None:
    # the first lesion has IoU 3/4; the second is missed and the third predicted one is false
    pq, sq, rq = quality("####...##....", "###........##")
    assert (sq, rq) == (3 / 4, 1 / 2)
    assert pq == pytest.approx(3 / 4 / (1 + 1 / 2 + 1 / 2))


def test_an_iou_of_one_half_is_no_match() -> None:
    assert quality("##", "#.") == (0, None, 0)
    assert quality("###", "##.") == (pytest.approx(2 / 3), pytest.approx(2 / 3), 1)


def test_nothing_is_merged() -> None:
    """Two lesions under one prediction count as found by LiTS, whose matching merges them."""
    matching = match_lesions(line("####..####"), line("##########"))
    assert panoptic_counts(matching) == PanopticCounts(0, 2, 1, 0.0)
    assert detect_lesions(matching, 0.5, None).counts.true_positives == 2


def test_no_lesions_have_no_quality() -> None:
    assert quality("....", "....") == (None, None, None)
    assert quality("....", ".##.") == (0, None, 0)


def test_cases_are_pooled_by_their_counts() -> None:
    pooled = pool_panoptic([PanopticCounts(1, 0, 2, 0.75), PanopticCounts(2, 3, 0, 1.5)])
    assert pooled == PanopticCounts(3, 3, 2, 2.25)
    assert ratio(*pooled.pq_terms) == 2.25 / (3 + 3 / 2 + 2 / 2)


@given(arrays(np.bool_, (3, 5, 6)), arrays(np.bool_, (3, 5, 6)))
def test_panoptic_quality_is_symmetric_and_the_product_of_its_parts(one: np.ndarray, other: np.ndarray) -> None:
    counts, swapped = (panoptic_counts(match_lesions(*pair)) for pair in ((one, other), (other, one)))
    assert (counts.true_positives, counts.false_negatives) == (swapped.true_positives, swapped.false_positives)
    assert counts.iou_sum == pytest.approx(swapped.iou_sum)
    pq, sq, rq = ratio(*counts.pq_terms), ratio(*counts.sq_terms), ratio(*counts.rq_terms)
    if pq is not None and sq is not None and rq is not None:
        assert pq == pytest.approx(sq * rq)

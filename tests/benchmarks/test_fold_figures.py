"""Counts of a scan, figures pooled over scans, and comparisons, all computed by hand."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from folds.figures import LOW_DICE, case_table, compare, pool, pooled_table
from folds.scoring import ScanScores, cached, from_json, score_scan

from hepar.cases import Case, LabelState, Modality, Split
from hepar.evaluation.lesions import LesionCounts
from hepar.evaluation.overlap import OverlapCounts
from hepar.evaluation.references import References
from hepar.imaging.masks import LESION_SIZES

SMALL, MIDDLE, LARGE = LESION_SIZES
NONE = LesionCounts(0, 0, 0)


def scan(name, liver=None, tumour=None, lesions=None, tumour_ml=0.0, seed=1, modality="CT", patient=None):
    counts = dict.fromkeys(LESION_SIZES, NONE) | (lesions or {})
    return ScanScores(
        name,
        patient or name,
        modality,
        seed,
        "fold-1",
        None if liver is None else OverlapCounts(*liver),
        None if tumour is None else OverlapCounts(*tumour),
        None if tumour is None else counts,
        tumour_ml,
    )


SCANS = [
    scan("a", (100, 100, 80), (10, 10, 5), {SMALL: LesionCounts(1, 1, 0), LARGE: LesionCounts(1, 0, 2)}, 1.0),
    scan("b", (100, 50, 30), (30, 10, 10), {MIDDLE: LesionCounts(0, 1, 1)}, 1.0),
    scan("c", None, (0, 20, 0), {SMALL: LesionCounts(0, 0, 3)}, 2.5),
    scan("d", (100, 100, 90), (0, 0, 0)),
    scan("e", (100, 100, 90), None, tumour_ml=7.0),
]


def values(rows):
    return {row.name: row.value for row in rows}


def test_figures_are_those_by_hand():
    expected = {
        "CT liver Dice": (0.8 + 0.4 + 0.9 + 0.9) / 4,
        "CT liver Dice, least": 0.4,
        f"CT livers below {LOW_DICE:.2f}": 1,  # 0.80 itself is not below
        "CT tumour Dice per case": (0.5 + 0.5) / 2,
        "CT tumour Dice, global": 2 * (5 + 10) / (20 + 40 + 20),
        "CT lesion recall": 2 / 4,
        f"CT lesion recall, {SMALL}": 1 / 2,
        f"CT lesion recall, {MIDDLE}": 0 / 1,
        f"CT lesion recall, {LARGE}": 1 / 1,
        "CT false lesions per scan": (2 + 1 + 3 + 0) / 4,
        "CT specificity on tumour-free scans": 1 / 2,
        "CT false tumour on tumour-free scans, ml": (2.5 + 0) / 2,
    }
    assert values(pool(SCANS)) == pytest.approx(expected)
    notes = {row.name: row.note for row in pool(SCANS) if row.note}
    assert notes == {"CT liver Dice, least": "b", f"CT livers below {LOW_DICE:.2f}": "b"}


def test_modalities_are_apart_and_a_figure_without_a_scan_is_left_out():
    rows = values(pool([scan("m", (10, 10, 10), modality="MR")], "inverted"))
    assert rows == {
        "MR inverted: liver Dice": 1.0,
        "MR inverted: liver Dice, least": 1.0,
        f"MR inverted: livers below {LOW_DICE:.2f}": 0,
    }
    assert pool([]) == []


def test_intervals_are_over_patients_and_seeds_are_no_further_scans():
    both = [replace(one, seed=seed) for one in SCANS[:2] for seed in (1, 2)]
    row, _, low = pool(both)[:3]
    assert (row.scans, row.patients, row.ci95) == (2, 2, pytest.approx((0.4, 0.8)))
    assert (low.value, low.note) == (1, "b")
    alone = [replace(one, patient_id="p") for one in SCANS[:2]]
    assert (pool(alone)[0].patients, pool(alone)[0].ci95) == (1, None)


def test_a_comparison_pairs_the_scans_that_both_have():
    first = [scan("a", (100, 100, 50)), scan("b", (100, 100, 70)), scan("only", (100, 100, 0))]
    second = [scan("a", (100, 100, 50)), scan("a", (100, 100, 70), seed=2), scan("b", (100, 100, 90))]
    row, least, low = compare(first, second)
    assert (row.name, row.scans) == ("CT liver Dice", 2)
    assert (least.name, least.first, least.second) == ("CT liver Dice, least", 0.5, 0.5)
    assert (low.name, low.first, low.second) == ("CT livers below 0.80", 2, 1)
    assert (row.first, row.second) == pytest.approx((0.6, 0.75))
    assert row.ci95 == pytest.approx((0.1, 0.2))  # both patients gain that much


def test_a_comparison_resamples_whole_patients():
    names = {"a": "p", "b": "p", "c": "q"}
    first = [scan(name, (100, 100, 50), patient=patient) for name, patient in names.items()]
    gains = dict(zip(names, (60, 80, 90), strict=True))
    second = [scan(name, (100, 100, gains[name]), patient=patient) for name, patient in names.items()]
    assert compare(first, second)[0].ci95 == pytest.approx((0.2, 0.4))  # of p alone and of q alone


def test_a_ratio_is_compared_as_a_ratio():
    first = [scan("a", None, (10, 10, 5)), scan("b", None, (30, 30, 30))]
    second = [scan("a", None, (10, 10, 10)), scan("b", None, (30, 30, 15))]
    (row,) = [row for row in compare(first, second) if row.name == "CT tumour Dice, global"]
    assert (row.first, row.second) == pytest.approx((70 / 80, 50 / 80))
    assert row.ci95 == pytest.approx((-0.5, 0.5))  # of b alone and of a alone


MANUAL = LabelState.MANUAL
CASE = Case("x", "p", "s", Modality.CT, "", "i", "l", "t", MANUAL, MANUAL, Split.TEST, (2, 5, 10), (4, 4, 8))


def masks():
    liver_zyx, tumour_zyx = np.zeros((2, *CASE.size), bool)
    liver_zyx[:, :, :4] = True  # 64 voxels of 0.1 ml
    tumour_zyx[0, 0, 0:2] = True
    tumour_zyx[3, 3, 3] = True
    return liver_zyx, tumour_zyx


def test_a_scan_is_scored_by_geometry():
    liver_zyx, tumour_zyx = masks()
    labels_zyx = np.zeros(CASE.size, np.uint8)
    labels_zyx[:, :, :5] = 1
    labels_zyx[0, 0, 1] = 2  # half of the first lesion, nothing of the second, and one elsewhere
    labels_zyx[2, 0, 2] = 2
    scores = score_scan(CASE, 1, "fold-1", References(liver_zyx, tumour_zyx), labels_zyx)
    assert scores.liver == OverlapCounts(64, 80, 64)
    assert scores.tumour == OverlapCounts(3, 2, 1)
    assert scores.lesions == {SMALL: LesionCounts(1, 1, 1), MIDDLE: NONE, LARGE: NONE}
    assert scores.tumour_ml == pytest.approx(0.2)
    assert from_json(asdict(scores)) == scores


def test_what_is_unknown_is_not_scored_and_a_missed_liver_scores_0():
    liver_zyx, _ = masks()
    empty_zyx = np.zeros(CASE.size, np.uint8)
    unknown = score_scan(CASE, 1, "fold-1", References(None, None), empty_zyx)
    assert (unknown.liver, unknown.tumour, unknown.lesions, unknown.tumour_free) == (None, None, None, False)
    assert from_json(asdict(unknown)) == unknown
    missed = score_scan(CASE, 1, "fold-1", References(liver_zyx, liver_zyx & False), empty_zyx)
    assert (missed.liver_dice, missed.tumour_dice, missed.tumour_free) == (0.0, None, True)


def test_scores_are_kept_until_their_key_changes(tmp_path):
    path = tmp_path / "scores.json"
    assert cached(path, "one", lambda: SCANS[:1]) == SCANS[:1]
    assert cached(path, "one", lambda: SCANS) == SCANS[:1]
    assert cached(path, "two", lambda: SCANS) == SCANS


def test_tables_have_a_row_for_each_figure_and_scan():
    assert "| CT livers below 0.80 | 1 |" in pooled_table(pool(SCANS))
    lines = case_table(SCANS).splitlines()
    assert lines[2] == "| CT a | 1 | fold-1 | 0.800 | 0.500 | 2 of 3 | 2 | 1.0 |"
    assert lines[4] == "| CT c (tumour-free) | 1 | fold-1 |  |  |  | 3 | 2.5 |"
    assert lines[6] == "| CT e | 1 | fold-1 | 0.900 |  |  |  | 7.0 |"

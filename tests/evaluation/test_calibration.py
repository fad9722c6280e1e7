"""Reliability bins and calibration error of a few samples."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.evaluation.bootstrap import Resampling
from hepar.evaluation.calibration import BINS, count_reliability, reliability_bins
from hepar.evaluation.candidates import LesionCandidates
from hepar.evaluation.detection_summary import lesion_reliability, summarise_calibration

SURE = count_reliability(np.array([0.25, 0.25, 0.25, 0.25]), np.array([True, False, False, False]))
UNSURE = count_reliability(np.array([0.75, 0.95]), np.array([False, True]))
BOTH = Resampling(("p", "q"), 1, 200)


def test_samples_are_binned_by_probability() -> None:
    counts = count_reliability(np.array([0, 0.1, 0.99, 1], np.float32), np.array([True, False, False, True]))
    assert counts.samples == (1, 1, 0, 0, 0, 0, 0, 0, 0, 2)
    assert counts.positives == (1, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert counts.probability_sums[-1] == pytest.approx(1.99)


def test_the_error_is_the_mean_distance_over_all_samples() -> None:
    # the first bin is calibrated; the two other samples, each in its bin, are 0.75 too high and 0.05 too low
    summary = summarise_calibration([SURE, UNSURE], BOTH)
    assert summary["ece"]["value"] == pytest.approx((0.75 + 0.05) / 6)
    # the patients alone have errors 0 and 0.4
    assert summary["ece"]["ci95"] == pytest.approx([0, (0.75 + 0.05) / 2], abs=1e-12)
    assert summary["ece"]["n"] == 2


def test_opposite_errors_in_a_bin_cancel_out_over_cases() -> None:
    low = count_reliability(np.array([0.5]), np.array([False]))
    high = count_reliability(np.array([0.5]), np.array([True]))
    assert summarise_calibration([low, high], BOTH)["ece"]["value"] == 0
    assert summarise_calibration([low], Resampling(("p",), 1, 200))["ece"] == {"value": 0.5, "ci95": None, "n": 1}


def test_bins_are_pooled_and_an_empty_one_is_undefined() -> None:
    bins = reliability_bins([SURE, UNSURE, UNSURE])
    assert len(bins) == BINS
    assert bins[7] == {"low": 0.7, "high": 0.8, "count": 2, "mean_probability": 0.75, "fraction_positive": 0}
    assert bins[2]["fraction_positive"] == 0.25
    assert bins[0] == {"low": 0, "high": 0.1, "count": 0, "mean_probability": None, "fraction_positive": None}


def test_no_samples_have_no_error() -> None:
    none = summarise_calibration([], Resampling((), 1, 200))
    assert none["ece"] == {"value": None, "ci95": None, "n": 0}
    assert [one["count"] for one in none["bins"]] == [0] * BINS


def test_a_candidate_is_positive_if_it_overlaps_a_lesion() -> None:
    counts = lesion_reliability(LesionCandidates((0.95, 0.35, 0.3), 2, {(0, 0): 0.01}))
    assert counts.positives == (0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert counts.samples == (0, 0, 0, 2, 0, 0, 0, 0, 0, 1)

"""Bland–Altman: published figures, the exact intervals of independent scans, and several scans of a patient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from hepar.evaluation.agreement import QUANTITIES, Agreement, measure_agreement
from hepar.evaluation.agreement_chart import agreement_chart
from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase
from hepar.evaluation.scores import CaseScores, score_case

LIVER, TUMOUR, BURDEN = QUANTITIES
# peak expiratory flow by two meters, first readings: Bland and Altman, Lancet 327, 1986, table 1
LARGE_METER = (494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427)
MINI_METER = (512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451)


def strip(voxels: int) -> np.ndarray:
    mask_zyx = np.zeros((1, 1, 800), dtype=bool)
    mask_zyx[0, 0, :voxels] = True
    return mask_zyx


def case(
    name: str,
    liver: tuple[int | None, int] = (600, 600),
    tumour: tuple[int | None, int] = (10, 10),
    patient: str = "",
    distances_known: bool = True,
) -> CaseScores:
    """A case by the volumes in ml of its reference and predicted liver and tumour; None is unknown."""
    pairs = [LabelPair(None if known is None else strip(known), strip(found)) for known, found in (liver, tumour)]
    identity = CaseIdentity(name, patient or name, "CT", "", "A")
    return score_case(SegmentedCase(identity, pairs[0], pairs[1], (10.0, 10.0, 10.0), distances_known))


def livers(pairs: Sequence[tuple[int, int]], patients: Sequence[str] = ()) -> Agreement:
    scores = [
        case(f"c{number}", pair, patient=patients[number] if patients else "") for number, pair in enumerate(pairs)
    ]
    agreement = measure_agreement(scores, LIVER)
    assert agreement is not None
    return agreement


def test_bias_and_limits_of_the_paper_of_bland_and_altman() -> None:
    agreement = livers(list(zip(MINI_METER, LARGE_METER, strict=True)))
    assert (len(agreement.differences), agreement.patients) == (17, 17)
    assert agreement.bias == pytest.approx(-2.1, abs=0.05)
    assert agreement.bias_ci95 == pytest.approx((-22.0, 17.8), abs=0.05)
    assert agreement.limits is not None
    half = (agreement.limits.upper - agreement.limits.lower) / 2
    assert half == pytest.approx(1.96 * 38.8, abs=0.1)  # the paper rounds 1.96 to 2, so its limits are wider
    assert agreement.means[0] == (494 + 512) / 2


@pytest.mark.parametrize(("scans", "close"), [(5, 0.25), (17, 0.07), (60, 0.03)])
def test_intervals_of_limits_are_close_to_the_exact_ones(scans: int, close: float) -> None:
    """The exact interval of a quantile of a normal distribution follows from the noncentral t distribution."""
    ranks_n = stats.norm.ppf((np.arange(scans) + 0.5) / scans)
    agreement = livers([(300, 300 + round(40 * rank)) for rank in ranks_n])
    deviation = float(np.std(agreement.differences, ddof=1))
    exact = [
        agreement.bias + deviation * stats.nct.ppf(q, scans - 1, 1.96 * math.sqrt(scans)) / math.sqrt(scans)
        for q in (0.025, 0.975)
    ]
    assert agreement.limits is not None
    assert agreement.limits.upper_ci95 == pytest.approx(exact, abs=close * deviation)
    assert agreement.limits.lower_ci95[0] == pytest.approx(2 * agreement.bias - agreement.limits.upper_ci95[1])


def test_several_scans_of_a_patient() -> None:
    """By hand: means of patients 10, 20, 30; variance between them 100, within 2 (of 3 pairs, each ±1 about it)."""
    pairs = [(100, 100 + mean + shift) for mean in (10, 20, 30) for shift in (-1, 1)]
    agreement = livers(pairs, ["p", "p", "q", "q", "r", "r"])
    assert agreement.limits is not None
    assert (agreement.patients, agreement.bias) == (3, 20)
    half = 4.30265 * 10 / math.sqrt(3)  # t with two degrees of freedom
    assert agreement.bias_ci95 == pytest.approx((20 - half, 20 + half), abs=1e-3)
    assert agreement.limits.upper == pytest.approx(20 + 1.95996 * math.sqrt(100 + (1 - 1 / 2) * 2), abs=1e-3)
    # a patient's scans are alike, so that six scans of three patients tell far less than six patients
    independent = livers(pairs)
    assert independent.limits is not None
    assert np.ptp(agreement.limits.upper_ci95) > 2 * np.ptp(independent.limits.upper_ci95)


def test_each_patient_counts_once_in_the_bias() -> None:
    agreement = livers([(100, 110), (100, 110), (100, 110), (100, 120), (100, 130)], ["p", "p", "p", "q", "r"])
    assert agreement.bias == pytest.approx(20)


def test_two_patients_have_a_bias_but_no_limits() -> None:
    agreement = livers([(100, 104), (100, 106)])
    assert (agreement.bias, agreement.bias_ci95, agreement.limits) == (5, None, None)


def test_which_cases_have_a_share() -> None:
    scores = [
        case("a", liver=(500, 510), tumour=(50, 40)),
        case("tumour-free", tumour=(0, 5)),
        case("unknown tumour", tumour=(None, 5)),
        case("unknown liver", liver=(None, 600), tumour=(20, 22)),
        case("nominal", liver=(500, 500), tumour=(100, 50), distances_known=False),
    ]
    differences = {}
    for quantity in QUANTITIES:
        agreement = measure_agreement(scores, quantity)
        assert agreement is not None
        differences[quantity.name] = agreement.differences
    assert differences["Liver volume"] == pytest.approx((10, 0, 0))
    assert differences["Tumour volume"] == pytest.approx((-10, 2))
    assert differences["Tumour burden"] == pytest.approx((100 * (40 / 510 - 50 / 500), 100 * (50 / 500 - 100 / 500)))
    assert measure_agreement([scores[2]], TUMOUR) is None


def test_identical_volumes_have_limits_of_zero_and_are_drawn() -> None:
    agreement = livers([(100, 100)] * 4)
    assert agreement.limits is not None
    assert (agreement.limits.lower, agreement.limits.upper_ci95) == (0, (0, 0))
    drawn = agreement_chart({"CT": [agreement, None, None]})
    assert drawn is not None
    assert "CT: liver volume" in drawn
    assert "4 scans, 4 patients" in drawn
    assert "predicted − reference, ml" in drawn
    assert "tumour burden</text>" not in drawn


def test_nothing_is_drawn_of_nothing() -> None:
    assert agreement_chart({"CT": [None, None, None]}) is None

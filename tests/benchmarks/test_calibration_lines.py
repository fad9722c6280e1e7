"""Figures of teachers by how far they were trained, where shares of their steps are rounded to whole steps."""

from dataclasses import replace

import calibration
import numpy as np
from conftest import TINY

from hepar.cases import Modality
from hepar.params import load_params
from hepar.pseudo_labels.calibration import PAIRWISE_DICE, PREDICTED_DICE, Observation
from hepar.pseudo_labels.signals import Signals

SIGNALS = Signals(**dict.fromkeys(Signals.names(), 1.0))
ONE = Observation("c", "p", Modality.CT, 1.0, SIGNALS, 0.5, 0.5)
STEPS = 30
OF_STEPS = [replace(ONE, trained_share=step / STEPS) for step in (2, 4, 12, 30)]  # 0.05 of 30 steps are 1.5


def test_a_teacher_counts_for_the_nearest_share():
    assert [calibration.of_share(OF_STEPS, share) for share in (*calibration.SHARES, 1.0)] == [[0], [1], [2], [3]]


def test_what_no_teacher_or_patient_gives_is_a_dash():
    assert (
        calibration.share_line(np.array([0.5, 0.7]), 0.4)
        == "  teachers at  40% of their steps: true Dice 0.600 ± 0.100"
    )
    assert calibration.share_line(np.array([]), 0.05) == "  teachers at   5% of their steps: true Dice –"
    scores = {PREDICTED_DICE: np.arange(3.0), PAIRWISE_DICE: np.arange(3.0)}
    lines = calibration.risk_coverage_lines(scores, OF_STEPS[:3], load_params(TINY)).splitlines()
    assert lines[-1] == "AURC, 100%: –, 0 labels"
    assert lines[0].endswith("+0.0000 –, 1 patients, 3 labels")

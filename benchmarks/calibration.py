"""Whether accepted pseudo-livers have the Dice that was wished for, with whole and with deliberately damaged teachers.

`python benchmarks/calibration.py [--cases 64] [--picture FILE.png]`. Teachers of phantoms draw livers that are hidden from
them, at 5, 15, 40 and 100 % of their steps. Half of the patients calibrate; of the other half it is told what a wished-for
Dice lets pass, and how good that is.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

from hepar.calibration import calibrate, threshold
from hepar.evaluation.reliability import calibration_png
from hepar.params import load_params
from hepar.quality import predict_dice
from hepar.stages import calibrate_gates, ingest

ROOT = Path(__file__).parents[1]
SHARES = (0.05, 0.15, 0.4)
WISHED = (0.70, 0.80, 0.85, 0.90, 0.925, 0.95)
COVERAGE = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    shares = params.calibrate_gates.model_copy(update={"shares": SHARES, "folds": 2})
    phantoms = params.ingest.phantoms.model_copy(update={"cases": options.cases})
    params = params.model_copy(update={"calibrate_gates": shares})
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        ingest.run("phantoms", work / "cohort", params.ingest.model_copy(update={"phantoms": phantoms}))
        observations = calibrate_gates.observe(work / "cohort", work / "calibration", params)
    halves: tuple[list[int], list[int]] = ([], [])
    for index, observation in enumerate(observations):
        halves[hashlib.sha256(observation.patient_id.encode()).digest()[0] % 2].append(index)
    known, unseen = ([observations[index] for index in half] for half in halves)
    found = calibrate(known, 0.9, COVERAGE)
    known_dice = np.array([observation.dice for observation in known])
    dice = np.array([observation.dice for observation in unseen])
    expected = np.array([predict_dice(observation.signals, found.predictor) for observation in unseen])

    print(
        f"{len(known)} pseudo-livers calibrate by {', '.join(found.predictor.signals)}; {len(unseen)} of other patients:"
    )
    for share in (*SHARES, 1.0):
        own = np.array([observation.trained_share == share for observation in unseen])
        print(f"  teachers at {share:4.0%} of their steps: true Dice {dice[own].mean():.3f} ± {dice[own].std():.3f}")
    spearman = float(stats.spearmanr(expected, dice).statistic)
    print(
        f"expected against true Dice: Spearman {spearman:.3f}, mean absolute error {np.abs(expected - dice).mean():.3f}"
    )
    print("\nwished   bound   accepted   mean Dice   least Dice   have the wished-for Dice")
    for wished in WISHED:
        bound = threshold(found.predicted, known_dice, wished, COVERAGE)
        accepted = dice[expected >= bound]
        row = f"{wished:6.3f}   {bound:5.3f}   {accepted.size / dice.size:8.0%}"
        if accepted.size:
            row += f"   {accepted.mean():9.3f}   {accepted.min():10.3f}   {(accepted >= wished).mean():6.0%}"
        print(row)
    if options.picture:
        modalities = [observation.modality for observation in unseen]
        bounds = _curve(found.predicted, known_dice, expected, dice)
        options.picture.write_bytes(calibration_png(expected, dice, modalities, found.accept, bounds))


def _curve(predicted: np.ndarray, known_dice: np.ndarray, expected: np.ndarray, dice: np.ndarray):  # type: ignore[no-untyped-def]
    """The curve of `calibration.curve`, with bounds from one half of the patients and labels of the other."""
    import pandas as pd

    rows = []
    for wished in np.arange(0.5, 0.98, 0.025):
        bound = threshold(predicted, known_dice, float(wished), COVERAGE)
        accepted = dice[expected >= bound]
        mean, least = (float(accepted.mean()), float(accepted.min())) if accepted.size else (np.nan, np.nan)
        share = accepted.size / dice.size
        rows.append({"wished_dice": wished, "accepted_share": share, "mean_dice": mean, "least_dice": least})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()

"""Whether accepted pseudo-livers have the Dice that was wished for, with whole and with deliberately damaged teachers.

`python benchmarks/calibration.py [--cases 128] [--steps 200] [--picture FILE]`. Teachers of phantoms draw livers that
are hidden from them, at 5, 15, 40 and 100 % of their steps. Half of the patients calibrate; of the other half it is
told what a wished-for Dice lets pass, and how good that is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

from hepar.evaluation.reliability import calibration_png
from hepar.params import load_params
from hepar.planning import gates as calibrate_gates
from hepar.pseudo_labels.calibration import calibrate, curve, expected_dice, observations_frame, passing
from hepar.stages import ingest

ROOT = Path(__file__).parents[1]
SHARES = (0.05, 0.15, 0.4)
WISHED = (0.5, 0.6, 0.7, 0.75, 0.8, 0.825, 0.85, 0.875, 0.9, 0.925, 0.95)
COVERAGE = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="of each teacher")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--table", type=Path, help="write every observation of the unseen half")
    options = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    shares = params.calibrate_gates.model_copy(update={"shares": SHARES, "folds": 2})
    phantoms = params.ingest.phantoms.model_copy(update={"cases": options.cases})
    training = params.train_liver.training.model_copy(update={"steps": options.steps})
    teachers = params.train_liver.model_copy(update={"training": training})
    params = params.model_copy(update={"calibrate_gates": shares, "train_liver": teachers})
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work / 'mlflow.db'}"
        ingest.run("phantoms", work / "cohort", params.ingest.model_copy(update={"phantoms": phantoms}))
        observations = calibrate_gates.observe(work / "cohort", work / "calibration", params)
    halves: tuple[list[int], list[int]] = ([], [])
    for index, observation in enumerate(observations):
        halves[hashlib.sha256(observation.patient_id.encode()).digest()[0] % 2].append(index)
    known, unseen = ([observations[index] for index in half] for half in halves)
    gates = params.pseudo_label.gates
    found = calibrate(known, gates, 0.9, COVERAGE)
    known_dice = np.array([observation.dice for observation in known])
    dice = np.array([observation.dice for observation in unseen])
    expected = np.array([expected_dice(observation, found.predictor) for observation in unseen])

    signals = ", ".join(found.predictor.signals)
    print(f"{len(known)} pseudo-livers calibrate by {signals}; {len(unseen)} of other patients:")
    for share in (*SHARES, 1.0):
        own = np.array([observation.trained_share == share for observation in unseen])
        print(f"  teachers at {share:4.0%} of their steps: true Dice {dice[own].mean():.3f} ± {dice[own].std():.3f}")
    spearman, error = float(stats.spearmanr(expected, dice).statistic), np.abs(expected - dice).mean()
    print(f"expected against true Dice: Spearman {spearman:.3f}, mean absolute error {error:.3f}\n")
    told = (expected, dice, passing(unseen, gates))
    bounds = curve((found.predicted, known_dice, found.passes), told, COVERAGE, WISHED)
    print(bounds.to_string(index=False, float_format="{:.3f}".format))
    if options.table:
        observations_frame(unseen, expected).to_csv(options.table, index=False)
    if options.picture:
        modalities = [observation.modality for observation in unseen]
        options.picture.write_bytes(calibration_png(expected, dice, modalities, found.accept, bounds))


if __name__ == "__main__":
    main()

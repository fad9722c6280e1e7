"""Whether accepted pseudo-livers reach the target Dice, with fully trained and deliberately weak teachers.

`python benchmarks/calibration.py [--cases 128] [--steps 200] [--picture FILE]`. Teachers trained on phantoms predict
livers that were hidden from them, at 5, 15, 40 and 100 % of their steps. Half of the patients calibrate; on the other
half, each target Dice is compared with the true Dice of the labels that it accepts. The phantoms are drawn from the
release's seed, that of `params/demo.yaml`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

import hepar.planning.gate_calibration
import hepar.stages.ingest
from hepar.evaluation.reliability import calibration_png
from hepar.params import Params, load_params
from hepar.pseudo_labels.calibration import (
    DicePredictions,
    Observation,
    calibrate,
    observations_frame,
    pass_other_gates,
    predict,
    target_curve,
)

ROOT = Path(__file__).parents[1]
SHARES = (0.05, 0.15, 0.4)
TARGETS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.825, 0.85, 0.875, 0.9, 0.925, 0.95)
COVERAGE = 0.9


def benchmark_params(cases: int, steps: int) -> Params:
    """The demo's params with that many phantoms, teachers of that many steps, and weaker teachers at `SHARES`."""
    params = load_params(ROOT / "params" / "demo.yaml")
    phantoms = params.ingest.phantoms.model_copy(update={"cases": cases})
    training = params.train_liver.training.model_copy(update={"steps": steps})
    return params.model_copy(
        update={
            "ingest": params.ingest.model_copy(update={"phantoms": phantoms}),
            "calibrate_gates": params.calibrate_gates.model_copy(update={"shares": SHARES, "folds": 2}),
            "train_liver": params.train_liver.model_copy(update={"training": training}),
        }
    )


def observe(params: Params) -> list[Observation]:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work / 'mlflow.db'}"
        hepar.stages.ingest.run("phantoms", work / "cohort", params.ingest, params.modalities)
        return hepar.planning.gate_calibration.observe(work / "cohort", work / "calibration", params)


def split_patients(observations: Sequence[Observation]) -> tuple[list[Observation], list[Observation]]:
    """Two halves of the patients, by hash: to calibrate on, and unseen."""
    halves: tuple[list[Observation], list[Observation]] = ([], [])
    for observation in observations:
        halves[hashlib.sha256(observation.patient_id.encode()).digest()[0] % 2].append(observation)
    return halves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="of each teacher")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--table", type=Path, help="write every observation of the unseen half")
    options = parser.parse_args()
    params = benchmark_params(options.cases, options.steps)
    known, unseen = split_patients(observe(params))
    gates = params.pseudo_label.gates
    found = calibrate(known, gates, 0.9, COVERAGE)
    true_n = np.array([observation.dice for observation in unseen])
    predicted_n = predict(unseen, found.predictor)

    signals = ", ".join(found.predictor.signals)
    print(f"{len(known)} pseudo-livers calibrate with {signals}; {len(unseen)} of other patients evaluate:")
    for share in (*SHARES, 1.0):
        own_n = true_n[[observation.trained_share == share for observation in unseen]]
        print(f"  teachers at {share:4.0%} of their steps: true Dice {own_n.mean():.3f} ± {own_n.std():.3f}")
    spearman, error = float(stats.spearmanr(predicted_n, true_n).statistic), np.abs(predicted_n - true_n).mean()
    print(f"predicted against true Dice: Spearman {spearman:.3f}, mean absolute error {error:.3f}\n")
    evaluation = DicePredictions(predicted_n, true_n, pass_other_gates(unseen, gates))
    curve = target_curve(found.out_of_fold, evaluation, COVERAGE, TARGETS)
    print(curve.to_string(index=False, float_format="{:.3f}".format))
    if options.table:
        observations_frame(unseen, predicted_n).to_csv(options.table, index=False)
    if options.picture:
        modalities = [observation.modality for observation in unseen]
        options.picture.write_bytes(calibration_png(predicted_n, true_n, modalities, found.accept, curve))


if __name__ == "__main__":
    main()

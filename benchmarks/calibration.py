"""Whether accepted pseudo-livers reach the target Dice, with fully trained and deliberately weak teachers.

`python benchmarks/calibration.py [--cases 128] [--steps 200] [--picture FILE] [--risk-picture FILE]`. Teachers trained
on phantoms predict livers that were hidden from them, at 5, 15, 40 and 100 % of their steps. Half of the patients
calibrate; on the other half, each target Dice is compared with the true Dice of the labels that it accepts. AURC (see
`hepar.pseudo_labels.risk_coverage`) compares the predictor with the mean pairwise Dice of the predictions alone, on the
same labels. The phantoms are drawn from the release's seed, that of `params/demo.yaml`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

import hepar.planning.gate_calibration
import hepar.stages.ingest
from hepar.evaluation.reliability import calibration_png, risk_coverage_png
from hepar.evaluation.tables import UNDEFINED
from hepar.params import Params, load_params
from hepar.pseudo_labels.calibration import (
    PAIRWISE_DICE,
    PREDICTED_DICE,
    DicePredictions,
    Observation,
    Values,
    calibrate,
    observations_frame,
    pass_other_gates,
    predict,
    quality_scores,
    target_curve,
)
from hepar.pseudo_labels.risk_coverage import risk_coverage_summary, risk_coverage_table

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


def of_share(observations: Sequence[Observation], share: float) -> list[int]:
    """The places of the observations of teachers that were trained for about this share of their steps.

    Teachers stop at whole steps, so of few steps they have done somewhat more or less: the nearest share counts.
    """
    shares = (*SHARES, 1.0)
    nearest = [min(shares, key=lambda wanted: abs(wanted - item.trained_share)) for item in observations]
    return [place for place, found in enumerate(nearest) if found == share]


def share_line(true_n: Values, share: float) -> str:
    """Mean and SD of the true Dice of teachers at a share of their steps."""
    dice = f"{true_n.mean():.3f} ± {true_n.std():.3f}" if len(true_n) else UNDEFINED
    return f"  teachers at {share:4.0%} of their steps: true Dice {dice}"


def risk_coverage_lines(scores: Mapping[str, Values], unseen: Sequence[Observation], params: Params) -> str:
    """AURC and excess AURC of each score and their paired difference, for all labels and for each state of teachers."""
    seed, resamples = params.evaluate.bootstrap_seed, params.evaluate.bootstrap_resamples
    lines = []
    for share in (None, *SHARES, 1.0):
        kept = list(range(len(unseen))) if share is None else of_share(unseen, share)
        group = "all states" if share is None else f"{share:4.0%}"
        if not kept:
            lines.append(f"AURC, {group}: {UNDEFINED}, 0 labels")
            continue
        dice_n, patients = np.array([unseen[i].dice for i in kept]), [unseen[i].patient_id for i in kept]
        found = risk_coverage_summary({n: v[kept] for n, v in scores.items()}, dice_n, patients, seed, resamples)
        change = found[f"minus_{PREDICTED_DICE}"][PAIRWISE_DICE]
        interval = UNDEFINED if change["ci95"] is None else "[{:+.4f}, {:+.4f}]".format(*change["ci95"])
        of_scores = ", ".join(
            f"{name} {found['aurc'][name]:.4f} (excess {found['excess_aurc'][name]:.4f})" for name in scores
        )
        lines.append(
            f"AURC, {group}: {of_scores}; {PAIRWISE_DICE} minus {PREDICTED_DICE} {change['value']:+.4f}"
            f" {interval}, {change['patients']} patients, {len(kept)} labels"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="of each teacher")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--risk-picture", type=Path)
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
        print(share_line(true_n[of_share(unseen, share)], share))
    spearman, error = float(stats.spearmanr(predicted_n, true_n).statistic), np.abs(predicted_n - true_n).mean()
    print(f"predicted against true Dice: Spearman {spearman:.3f}, mean absolute error {error:.3f}\n")
    evaluation = DicePredictions(predicted_n, true_n, pass_other_gates(unseen, gates))
    curve = target_curve(found.out_of_fold, evaluation, COVERAGE, TARGETS)
    print(curve.to_string(index=False, float_format="{:.3f}".format))
    scores = quality_scores(unseen, predicted_n)
    print(f"\n{risk_coverage_lines(scores, unseen, params)}")
    if options.risk_picture:
        options.risk_picture.write_bytes(risk_coverage_png(risk_coverage_table(scores, true_n)))
    if options.table:
        observations_frame(unseen, predicted_n).to_csv(options.table, index=False)
    if options.picture:
        modalities = [observation.modality for observation in unseen]
        options.picture.write_bytes(calibration_png(predicted_n, true_n, modalities, found.accept, curve))


if __name__ == "__main__":
    main()

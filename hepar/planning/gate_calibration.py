"""Calibrate the gates, outside the pipeline: hide manual livers from teachers, and learn how well signals predict Dice.

For each modality, k teachers are trained, each without one fold of the patients. Each teacher then predicts the livers
of its fold, and so do its earlier states, which stand for weaker teachers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.cases import Case, Cohort, Modality, Split
from hepar.errors import ParamsError
from hepar.evaluation.reliability import calibration_png, risk_coverage_png
from hepar.imaging.volumes import read_mask
from hepar.inference.model_folder import ModelFolder
from hepar.inference.prediction import load_ensemble
from hepar.params import CalibrateGatesParams, Params, TrainingParams
from hepar.pool.table import Pool
from hepar.pseudo_labels.calibration import (
    PAIRWISE_DICE,
    PREDICTED_DICE,
    Calibration,
    Observation,
    calibrate,
    observations_frame,
    quality_scores,
    target_curve,
)
from hepar.pseudo_labels.prediction import predict_pseudo_liver
from hepar.pseudo_labels.risk_coverage import risk_coverage_summary, risk_coverage_table
from hepar.pseudo_labels.signals import agreement, mean_pairwise_dice
from hepar.runtime.artifacts import read_manifest, sha256_json, write_artifact, write_json
from hepar.runtime.csv_cells import frame_to_csv
from hepar.runtime.device import pick_device, use_threads
from hepar.runtime.progress import current_stage, stage
from hepar.runtime.scratch import scratch_folder
from hepar.runtime.unfinished import checkpoint_folder
from hepar.runtime.whole_files import write_bytes, write_text
from hepar.training.distributed import refuse_torchrun
from hepar.training.fit import EXECUTION_SETTINGS, Recipe
from hepar.training.folds import assign_teacher_folds, fit_folds
from hepar.training.loop import snapshot_steps
from hepar.training.teacher_pool import teacher_pool

TARGETS = tuple(round(0.5 + 0.025 * i, 3) for i in range(20))  # target Dice of the curve


@dataclass(frozen=True)
class CalibrationFolder:
    """The folder `calibration/`: results and gates, every observation, the curves over target Dice and over coverage,
    and a figure of each curve."""

    folder: Path

    KIND = "calibration"
    RESULTS = "calibration.json"
    OBSERVATIONS = "observations.csv"
    CURVE, FIGURE = "curve.csv", "calibration.png"
    RISK_COVERAGE, RISK_FIGURE = "risk_coverage.csv", "risk_coverage.png"

    def save(self, results: dict[str, Any], tables: Mapping[str, pd.DataFrame], figures: Mapping[str, bytes]) -> None:
        """Write the results, and the tables and PNGs by the names of their files."""
        write_json(self.folder / self.RESULTS, results)
        for name, table in tables.items():
            write_text(self.folder / name, frame_to_csv(table))
        for name, figure in figures.items():
            write_bytes(self.folder / name, figure)

    def results(self) -> dict[str, Any]:
        """The results, by `_results`."""
        loaded: dict[str, Any] = json.loads((self.folder / self.RESULTS).read_text())
        return loaded


def run(cohort: Path, calibration: Path, params: Params) -> dict[str, Any]:
    """Calibrate the gates on a cohort: writes the folder `calibration`, returns values for `pseudo_label.gates`.

    Raises DataError if too few patients have a manual liver.
    """
    with stage("calibrate-gates"):
        settings = params.calibrate_gates
        observations = observe(cohort, calibration, params)
        found = calibrate(observations, params.pseudo_label.gates, settings.min_dice, settings.coverage)
        curve = target_curve(found.out_of_fold, found.out_of_fold, settings.coverage, TARGETS)
        predicted_n, true_n = found.out_of_fold.predicted_n, found.out_of_fold.true_n
        scores = quality_scores(observations, predicted_n)
        patients, evaluated = [observation.patient_id for observation in observations], params.evaluate
        results = _results(observations, found, curve, settings) | {
            "risk_coverage": risk_coverage_summary(
                scores, true_n, patients, evaluated.bootstrap_seed, evaluated.bootstrap_resamples
            )
        }
        risk_coverage = risk_coverage_table(scores, true_n)
        tables = {
            CalibrationFolder.OBSERVATIONS: observations_frame(observations, predicted_n),
            CalibrationFolder.CURVE: curve,
            CalibrationFolder.RISK_COVERAGE: risk_coverage,
        }
        modalities = [observation.modality for observation in observations]
        figures = {
            CalibrationFolder.FIGURE: calibration_png(predicted_n, true_n, modalities, found.accept, curve),
            CalibrationFolder.RISK_FIGURE: risk_coverage_png(risk_coverage),
        }
        parents = {Cohort.KIND: read_manifest(cohort, Cohort.KIND).hash}
        with write_artifact(calibration, CalibrationFolder.KIND, parents) as folder:
            CalibrationFolder(folder).save(results, tables, figures)
        gates: dict[str, Any] = results["gates"]
        return gates


def observe(cohort: Path, calibration: Path, params: Params) -> list[Observation]:
    """Pseudo-livers of cases whose manual liver was hidden; the teachers are kept beside `calibration`.

    Raises ParamsError for an ensemble of teachers.
    """
    refuse_torchrun("calibrate-gates")
    if params.train_liver.folds > 1 or params.train_liver.training.snapshots:
        raise ParamsError(
            "calibrate-gates works with single teachers: set train_liver.folds to 1 and train_liver.training.snapshots"
            " to []"
        )
    cohort_hash, cases = read_manifest(cohort, Cohort.KIND).hash, Cohort.load(cohort)
    cases.verify(cases)
    # only what a teacher is made from, so that teachers are reused when gates change
    teacher_params = [
        params.preprocessing.model_dump(mode="json"),
        params.network.model_dump(mode="json"),
        params.train_liver.training.model_dump(mode="json", exclude=EXECUTION_SETTINGS),
        params.calibrate_gates.model_dump(mode="json", include={"folds", "shares"}),
    ]
    checkpoints = checkpoint_folder(calibration, sha256_json([cohort_hash, teacher_params]))
    return [
        observation
        for modality in cases.modalities
        for observation in _observe(cases, modality, params, cohort_hash, checkpoints)
    ]


def _results(
    observations: Sequence[Observation], found: Calibration, curve: pd.DataFrame, settings: CalibrateGatesParams
) -> dict[str, Any]:
    labels = found.out_of_fold
    accepts_n = labels.passes_n & (labels.predicted_n >= found.accept)
    accepted_n = labels.true_n[accepts_n]
    reachable = curve[curve.accepted_share > 0]
    return {
        "observations": len(observations),
        "patients": len({observation.patient_id for observation in observations}),
        "signals": list(found.predictor.signals),
        "target_dice": settings.min_dice,
        "coverage": settings.coverage,
        "spearman": found.spearman,
        "mean_absolute_error": found.mean_absolute_error,
        "accepted_share": float(accepts_n.mean()),
        "accepted_mean_dice": float(accepted_n.mean()) if accepted_n.size else None,
        "accepted_min_dice": float(accepted_n.min()) if accepted_n.size else None,
        "highest_target": float(reachable.target_dice.iloc[-1]) if len(reachable) else None,
        "highest_target_share": float(reachable.accepted_share.iloc[-1]) if len(reachable) else None,
        "gates": {
            "predictor": found.predictor.model_dump(mode="json"),
            "min_predicted_dice": [found.accept, min(found.accept, found.reject)],
        },
    }


@dataclass(frozen=True)
class _HeldOutFold:
    """The cases of one fold, and the model folder of the teacher trained without them."""

    cases: list[Case]
    teacher: Path


def _observe(
    cohort: Cohort, modality: Modality, params: Params, cohort_hash: str, checkpoints: Path
) -> Iterator[Observation]:
    """Pseudo-livers of a modality, predicted by teachers that have not seen the case's manual liver."""
    training = _with_snapshots(params)
    shares = [1.0, *training.snapshots]  # the final state, then the earlier ones
    use_threads(training.threads)
    with scratch_folder("gates") as scratch:
        pool = teacher_pool(cohort, modality, params.preprocessing, scratch)
        recipe = Recipe(params.network, training, (modality,), params.experiment)
        folds = params.calibrate_gates.folds
        held_out = list(_train_teachers(cohort, pool, recipe, folds, cohort_hash, checkpoints / modality))
    device = pick_device()
    use_threads(params.pseudo_label.threads)
    with current_stage().counting(sum(len(fold.cases) for fold in held_out), f"{modality} livers") as count:
        for fold in held_out:
            members = load_ensemble(fold.teacher, device)
            for case in fold.cases:
                manual_zyx = read_mask(cohort.file(case.liver))
                for share, member in zip(shares, members, strict=True):
                    predicted = predict_pseudo_liver(case, cohort.folder, [member], params.pseudo_label)
                    dice = agreement(manual_zyx, predicted.liver_zyx)
                    pairwise = mean_pairwise_dice(predicted.votes_zyx)
                    signals = predicted.signals
                    yield Observation(case.case_id, case.patient_id, modality, share, signals, dice, pairwise)
                count.advance(case=case.case_id)


def _train_teachers(
    cohort: Cohort, pool: Pool, recipe: Recipe, folds: int, cohort_hash: str, checkpoints: Path
) -> Iterator[_HeldOutFold]:
    fold = assign_teacher_folds(pool.select(Split.TRAIN), folds)
    origin = {Cohort.KIND: cohort_hash, ModelFolder.ROLE: "calibration"}
    teachers = fit_folds(pool, fold, checkpoints, recipe, origin)
    for number, teacher in enumerate(teachers):
        names = {entry.case_id for entry in pool.select(Split.TRAIN) if fold[entry.patient_id] == number}
        yield _HeldOutFold([case for case in cohort if case.case_id in names], teacher)


def _with_snapshots(params: Params) -> TrainingParams:
    """Training params that keep earlier states at distinct steps before the last one, and disable early stopping."""
    training = params.train_liver.training
    steps = snapshot_steps(params.calibrate_gates.shares, training.steps) - {training.steps}
    shares = tuple(step / training.steps for step in sorted(steps))
    return training.model_copy(update={"snapshots": shares, "patience": 0})


def summary(calibration: Path) -> str:
    """A summary of a calibration, a few lines for the terminal."""
    results = CalibrationFolder(calibration).results()
    lines = [
        f"{results['observations']} pseudo-livers of {results['patients']} patients; predictor uses"
        f" {', '.join(results['signals'])}",
        f"predicted against true Dice, out of fold: Spearman {results['spearman']:.2f},"
        f" mean absolute error {results['mean_absolute_error']:.3f}",
        _aurc_line(results["risk_coverage"]),
        f"accepted for a target Dice of {results['target_dice']:g}: {results['accepted_share']:.0%}",
    ]
    if results["accepted_mean_dice"] is not None:
        lines[-1] += (
            f", with a true Dice of {results['accepted_mean_dice']:.3f} on average and"
            f" {results['accepted_min_dice']:.3f} at least"
        )
    elif results["highest_target"] is not None and results["highest_target"] < results["target_dice"]:
        lines[-1] += (
            f"; the highest target that any label meets is {results['highest_target']:g}, which would accept"
            f" {results['highest_target_share']:.0%} (set calibrate_gates.min_dice)"
        )
    return "\n".join(lines)


def _aurc_line(risk_coverage: Mapping[str, Any]) -> str:
    """The areas under the risk–coverage curves: of the predictor, of the agreement alone, and of the best order."""
    areas, change = risk_coverage["aurc"], risk_coverage[f"minus_{PREDICTED_DICE}"][PAIRWISE_DICE]
    interval = "" if change["ci95"] is None else f" [{change['ci95'][0]:+.4f}, {change['ci95'][1]:+.4f}]"
    return (
        f"AURC (mean 1 − Dice of the labels kept, over all coverages): predictor {areas[PREDICTED_DICE]:.4f}, mean"
        f" pairwise Dice of the predictions {areas[PAIRWISE_DICE]:.4f} ({change['value']:+.4f}{interval}), best order"
        f" {risk_coverage['optimal_aurc']:.4f}"
    )

"""Beside the pipeline: hide manual livers from teachers, and learn how the signals of pseudo-livers tell their Dice.

For each modality k teachers are trained, each without one fold of the patients, whose livers it then draws; so do its
earlier states, which stand for worse teachers. Writes `observations.csv`, `calibration.json`, `curve.csv` and
`calibration.png`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hepar.cases import Case, Cohort, Modality, Split
from hepar.errors import ParamsError
from hepar.evaluation.reliability import calibration_png
from hepar.imaging.volumes import read_image, to_array
from hepar.inference.prediction import load_ensemble
from hepar.params import Params, TrainingParams
from hepar.pool.table import Pool
from hepar.pseudo_labels.calibration import Calibration, Observation, calibrate, curve, observations_frame
from hepar.pseudo_labels.gates import agreement
from hepar.pseudo_labels.prediction import label_case
from hepar.runtime.artifacts import read_manifest, sha256_json, write_json, writing
from hepar.runtime.device import pick_device, use_threads
from hepar.runtime.progress import current, stage
from hepar.training.checkpoint import checkpoint_folder
from hepar.training.distributed import refuse_torchrun
from hepar.training.fit import HOW_IT_RUNS, Recipe
from hepar.training.teacher_pool import fit_folds, fold_of, teaching_pool

KIND = "calibration"
FILE = "calibration.json"
WISHED = tuple(round(0.5 + 0.025 * i, 3) for i in range(20))


def run(cohort: Path, calibration: Path, params: Params) -> dict[str, Any]:
    """Calibrate the gates on a cohort: writes the folder `calibration`, gives the values of `pseudo_label.gates`.

    Raises DataError where too few patients have a manual liver.
    """
    with stage("calibrate-gates"):
        wished = params.calibrate_gates
        observations = observe(cohort, calibration, params)
        found = calibrate(observations, params.pseudo_label.gates, wished.min_dice, wished.coverage)
        gates = {
            "predictor": found.predictor.model_dump(mode="json"),
            "min_predicted_dice": [found.accept, min(found.accept, found.reject)],
        }
        with writing(calibration, KIND, {"cohort": read_manifest(cohort, "cohort").hash}) as folder:
            _write(folder, observations, found, gates, params)
        return gates


def observe(cohort: Path, calibration: Path, params: Params) -> list[Observation]:
    """What teachers draw for the manual livers that are hidden from them; teachers are kept beside `calibration`."""
    refuse_torchrun("calibrate-gates")
    if params.train_liver.folds > 1 or params.train_liver.training.snapshots:
        raise ParamsError(
            "calibrate-gates tells how far single teachers can be trusted: set train_liver.folds to 1 and"
            " train_liver.training.snapshots to []"
        )
    cohort_hash, cases = read_manifest(cohort, "cohort").hash, Cohort.load(cohort)
    # of what a teacher is made of, and nothing else, so that teachers are kept when gates change
    makes = [
        params.preprocessing.model_dump(mode="json"),
        params.network.model_dump(mode="json"),
        params.train_liver.training.model_dump(mode="json", exclude=HOW_IT_RUNS),
        params.calibrate_gates.model_dump(mode="json", include={"folds", "shares"}),
    ]
    key = sha256_json([cohort_hash, makes])
    place = checkpoint_folder(calibration, key)
    return [found for modality in Modality for found in _observe(cases, modality, params, cohort_hash, place)]


def _write(
    folder: Path, observations: list[Observation], found: Calibration, gates: dict[str, Any], params: Params
) -> None:
    dice = np.array([observation.dice for observation in observations])
    wished = params.calibrate_gates
    labels = (found.predicted, dice, found.passes)
    bounds = curve(labels, labels, wished.coverage, WISHED)
    possible = bounds[bounds.accepted_share > 0]
    passed = found.passes & (found.predicted >= found.accept)
    accepted = dice[passed]
    facts = {
        "observations": len(observations),
        "patients": len({observation.patient_id for observation in observations}),
        "signals": list(found.predictor.signals),
        "wished_dice": wished.min_dice,
        "coverage": wished.coverage,
        "spearman": found.spearman,
        "mean_absolute_error": found.mean_absolute_error,
        "accepted_share": float(passed.mean()),
        "accepted_mean_dice": float(accepted.mean()) if accepted.size else None,
        "accepted_least_dice": float(accepted.min()) if accepted.size else None,
        "highest_wish": float(possible.wished_dice.iloc[-1]) if len(possible) else None,
        "highest_wish_share": float(possible.accepted_share.iloc[-1]) if len(possible) else None,
        "gates": gates,
    }
    write_json(folder / FILE, facts)
    observations_frame(observations, found.predicted).to_csv(folder / "observations.csv", index=False)
    bounds.to_csv(folder / "curve.csv", index=False)
    modalities = [observation.modality for observation in observations]
    (folder / "calibration.png").write_bytes(calibration_png(found.predicted, dice, modalities, found.accept, bounds))


@dataclass(frozen=True)
class _Hidden:
    """The cases of one fold, and the model folder of the teacher that has not seen them."""

    cases: list[Case]
    teacher: Path


def _observe(
    cohort: Cohort, modality: Modality, params: Params, cohort_hash: str, place: Path
) -> Iterator[Observation]:
    """What teachers of a modality draw for the livers that are hidden from them."""
    training = _with_snapshots(params)
    shares = [1.0, *training.snapshots]  # the last state, then the earlier ones
    use_threads(training.threads)
    with tempfile.TemporaryDirectory(prefix="hepar-") as scratch:
        pool = teaching_pool(cohort, modality, params.preprocessing, Path(scratch))
        recipe = Recipe(params.network, training, (modality,))
        hidden = list(_teachers(cohort, pool, recipe, params.calibrate_gates.folds, cohort_hash, place / modality))
    device = pick_device()
    use_threads(params.pseudo_label.threads)
    with current().counting(sum(len(fold.cases) for fold in hidden), f"{modality} livers") as count:
        for fold in hidden:
            members = load_ensemble(fold.teacher, device)
            for case in fold.cases:
                manual = to_array(read_image(cohort.file(case.liver))) > 0
                for share, member in zip(shares, members, strict=True):
                    drawn = label_case(case, cohort.folder, [member], params.pseudo_label)
                    dice = agreement(drawn.liver, manual)
                    yield Observation(case.case_id, case.patient_id, modality, share, drawn.signals, dice)
                count.advance(case=case.case_id)


def _teachers(
    cohort: Cohort, pool: Pool, recipe: Recipe, folds: int, cohort_hash: str, place: Path
) -> Iterator[_Hidden]:
    fold = fold_of(pool.select(Split.TRAIN), folds)
    teachers = fit_folds(pool, fold, place, recipe, {"cohort": cohort_hash, "role": "calibration"})
    for number, teacher in enumerate(teachers):
        names = {e.case_id for e in pool.select(Split.TRAIN) if fold[e.patient_id] == number}
        yield _Hidden([case for case in cohort if case.case_id in names], teacher)


def _with_snapshots(params: Params) -> TrainingParams:
    """A teacher's training that keeps its earlier states, at distinct steps before the last, and does not end early."""
    training = params.train_liver.training
    steps = {max(1, round(share * training.steps)) for share in params.calibrate_gates.shares} - {training.steps}
    shares = tuple(step / training.steps for step in sorted(steps))
    return training.model_copy(update={"snapshots": shares, "patience": 0})


def summary(calibration: Path) -> str:
    """What a calibration came to, in words."""
    facts = json.loads((calibration / FILE).read_text())
    lines = [
        f"{facts['observations']} pseudo-livers of {facts['patients']} patients, by {', '.join(facts['signals'])}",
        f"expected against true Dice, out of fold: Spearman {facts['spearman']:.2f},"
        f" mean absolute error {facts['mean_absolute_error']:.3f}",
        f"accepted for a Dice of {facts['wished_dice']:g}: {facts['accepted_share']:.0%}",
    ]
    if facts["accepted_mean_dice"] is not None:
        lines[-1] += (
            f", whose true Dice is {facts['accepted_mean_dice']:.3f} on average and {facts['accepted_least_dice']:.3f}"
            " at least"
        )
    elif facts["highest_wish"] is not None and facts["highest_wish"] < facts["wished_dice"]:
        lines[-1] += (
            f"; the highest Dice that the labels bear out is {facts['highest_wish']:g}, for which"
            f" {facts['highest_wish_share']:.0%} would be (calibrate_gates.min_dice)"
        )
    return "\n".join(lines)

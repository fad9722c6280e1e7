"""Stage 6: score a model on the held-out patients, and report.

Writes `metrics.json` (by modality), `report.html`, `cases.csv` (every score of every case), `facts.json` (what was
scored, by hash) and `masks/<case>.nii.gz` (0 background, 1 liver, 2 tumour).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.evaluation import CaseScores, CaseSlice, pick_slice, score_case, scores_table, summarise, write_report
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Array, Geometry, read_image, to_array, to_image, write_image
from hepar.inference.patients import FILE as PATIENTS
from hepar.inference.patients import hash_patient, patients_seen
from hepar.inference.prediction import Model, load_model, segment
from hepar.params import EvaluateParams
from hepar.registry.tracking import git_commit
from hepar.runtime.artifacts import read_manifest, sha256_json, write_json, writing
from hepar.runtime.device import pick_device, use_threads
from hepar.runtime.progress import current, stage

KIND = "report"
METRICS, REPORT, CASES, FACTS, MASKS = "metrics.json", "report.html", "cases.csv", "facts.json", "masks"
SHOWN_PERCENTILES = (1.0, 99.5)  # of an MR volume, black to white in a picture


@dataclass(frozen=True)
class Scored:
    """Scores and picture of one case."""

    scores: CaseScores
    picture: CaseSlice


def run(cohort: Path, model: Path, report: Path, params: EvaluateParams) -> None:
    """Segment every test case of the cohort with `model` and write the folder `report`."""
    with stage("evaluate"):
        use_threads(params.threads)
        cohort_hash, manifest = read_manifest(cohort, "cohort").hash, read_manifest(model, "model")
        cases = Cohort.load(cohort)
        loaded = load_model(model, pick_device())
        chosen = [case for case in cases.select(None, (Split.TEST,)) if case.modality in loaded.spec.modalities]
        _check_unseen(model, chosen)
        if not chosen:
            raise DataError(f"{cohort} has no test case of {', '.join(loaded.spec.modalities)}")
        parents = {
            "cohort": cohort_hash,
            "model": manifest.hash,
            **{f"model's {k}": v for k, v in manifest.parents.items()},
        }
        with writing(report, KIND, parents) as folder:
            with current().counting(len(chosen), "cases") as count:
                scored = []
                for case in chosen:
                    scored.append(_score(case, cases, loaded, folder / MASKS, params))
                    count.advance(case=case.case_id)
            facts = _facts(chosen, cohort_hash, manifest.hash, manifest.parents)
            _write(folder, scored, pd.read_csv(model / "history.csv"), facts, params)


def _check_unseen(model: Path, cases: Sequence[Case]) -> None:
    """Refuse a model that has seen a test patient's label, as by a warm start from a model of another split."""
    if not (model / PATIENTS).is_file():
        return
    seen = patients_seen(model)
    if leaked := [case for case in cases if hash_patient(case.patient_id) in seen]:
        raise DataError(
            f"case {leaked[0].case_id}: the model has seen a label of test patient {leaked[0].patient_id}, and of"
            f" {len(leaked) - 1} more of {len(cases)} test cases: its score would mean nothing"
        )


def _score(case: Case, cohort: Cohort, model: Model, masks: Path, params: EvaluateParams) -> Scored:
    image = read_image(cohort.file(case.image))
    array = to_array(image)
    predicted = segment(model, image, case.modality, params.overlap, params.min_lesion_ml)
    liver = _reference(cohort, case.liver, case.liver_state, array.shape)
    tumour = _reference(cohort, case.tumour, case.tumour_state, array.shape)
    if liver is not None and tumour is not None:
        liver = liver | tumour
    geometry = Geometry.of(image)
    write_image(to_image(predicted.labels, geometry), masks / f"{case.case_id}.nii.gz")
    scores = score_case(
        case_id=case.case_id,
        patient_id=case.patient_id,
        modality=str(case.modality),
        sequence=case.sequence,
        source=case.source,
        liver_reference_zyx=liver,
        tumour_reference_zyx=tumour,
        liver_prediction_zyx=predicted.liver,
        tumour_prediction_zyx=predicted.tumour,
        spacing_zyx_mm=geometry.spacing_zyx_mm,
        distances_known=case.distances_known,
    )
    picture = pick_slice(
        case.case_id,
        array.astype(np.float32),
        liver,
        tumour,
        predicted.liver,
        predicted.tumour,
        geometry.spacing_zyx_mm,
        _window(array, case.modality, model),
    )
    return Scored(scores, picture)


def _reference(cohort: Cohort, file: str, state: LabelState, shape: tuple[int, ...]) -> Mask | None:
    """The reference mask: None where the state is unknown, all false where an expert found none."""
    if state == LabelState.MANUAL:
        return np.asarray(to_array(read_image(cohort.file(file))) > 0)
    return np.zeros(shape, bool) if state == LabelState.ABSENT else None


def _window(array: Array, modality: Modality, model: Model) -> tuple[float, float]:
    if modality == Modality.CT:
        return model.spec.plan.window_hu
    low, high = np.percentile(array, SHOWN_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def _facts(cases: Sequence[Case], cohort_hash: str, model_hash: str, origin: Mapping[str, str]) -> dict[str, str]:
    tested = sorted((case.image_sha256, case.liver_sha256, case.tumour_sha256) for case in cases)
    return {
        "cohort": cohort_hash,
        "test set": sha256_json(tested),
        "pool": origin.get("pool", ""),
        "pool version": origin.get("pool version", ""),
        "model": model_hash,
        "git commit": git_commit(),
    }


def _write(
    folder: Path, scored: Sequence[Scored], history: pd.DataFrame, facts: dict[str, str], params: EvaluateParams
) -> None:
    scores = [item.scores for item in scored]
    metrics = summarise(scores, seed=params.bootstrap_seed, resamples=params.bootstrap_resamples)
    write_json(folder / METRICS, metrics)
    write_json(folder / FACTS, facts)
    scores_table(scores).to_csv(folder / CASES, index=False)
    write_report(folder / REPORT, metrics, scores, [item.picture for item in scored], history, facts)

"""Stage 6: score a model on the held-out patients.

Writes a folder `Report`: summary metrics, the HTML page, scores and predicted mask of each case, and provenance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hepar.cases import Case, Cohort, LabelState, Split
from hepar.errors import DataError
from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase
from hepar.evaluation.report import write_report
from hepar.evaluation.report_folder import Report
from hepar.evaluation.scores import CaseScores, score_case, scores_table
from hepar.evaluation.slices import CaseSlice, pick_slice
from hepar.evaluation.summary import summarise
from hepar.imaging.display import display_window
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Geometry, read_image, read_mask, to_array, to_image, write_image
from hepar.inference.model_folder import ModelFolder, hash_patient
from hepar.inference.prediction import Model, load_model, segment
from hepar.params import EvaluateParams
from hepar.runtime.artifacts import read_manifest, sha256_json, write_artifact
from hepar.runtime.commit import git_commit
from hepar.runtime.device import pick_device, use_threads
from hepar.runtime.progress import current_stage, stage


@dataclass(frozen=True)
class Scored:
    """Scores of one case and the slice that the report shows."""

    scores: CaseScores
    shown: CaseSlice


def run(cohort: Path, model: Path, report: Path, params: EvaluateParams) -> None:
    """Segment and score all test cases of the model's modalities.

    Raises DataError if there are none, or if the model has seen a label of a test patient.
    """
    with stage("evaluate"):
        use_threads(params.threads)
        cohort_hash, manifest = read_manifest(cohort, Cohort.KIND).hash, read_manifest(model, ModelFolder.KIND)
        cases = Cohort.load(cohort)
        loaded = load_model(model, pick_device())
        chosen = [case for case in cases.select(None, (Split.TEST,)) if case.modality in loaded.spec.modalities]
        _check_unseen(model, chosen)
        if not chosen:
            raise DataError(f"{cohort} has no test case of {', '.join(loaded.spec.modalities)}")
        cases.verify(chosen)
        parents = {
            Cohort.KIND: cohort_hash,
            ModelFolder.KIND: manifest.hash,
            **{f"model's {k}": v for k, v in manifest.parents.items()},
        }
        with write_artifact(report, Report.KIND, parents) as folder:
            with current_stage().counting(len(chosen), "cases") as count:
                scored = []
                for case in chosen:
                    scored.append(_score(case, cases, loaded, Report(folder), params))
                    count.advance(case=case.case_id)
            facts = _facts(chosen, parents, manifest.parents, params)
            _write(Report(folder), scored, ModelFolder(model).load_history(), facts, params)


def _check_unseen(model: Path, cases: Sequence[Case]) -> None:
    """Raise DataError if the model has seen a test patient's label, as after a warm start from another split."""
    if not ModelFolder(model).has_patients():
        return
    seen = ModelFolder(model).load_patients()
    if leaked := [case for case in cases if hash_patient(case.patient_id) in seen]:
        raise DataError(
            f"case {leaked[0].case_id}: the model has seen a label of test patient {leaked[0].patient_id}"
            f" ({len(leaked)} of {len(cases)} test cases are affected), so its scores would be meaningless"
        )


def _score(case: Case, cohort: Cohort, model: Model, report: Report, params: EvaluateParams) -> Scored:
    image = read_image(cohort.file(case.image))
    image_zyx = to_array(image)
    geometry = Geometry.of(image)
    predicted = segment(model, image, case.modality, params.overlap, params.min_lesion_ml)
    write_image(to_image(predicted.labels_zyx, geometry), report.mask(case.case_id))
    liver_zyx = _read_reference(cohort, case.liver, case.liver_state, image_zyx.shape)
    tumour_zyx = _read_reference(cohort, case.tumour, case.tumour_state, image_zyx.shape)
    if liver_zyx is not None and tumour_zyx is not None:
        liver_zyx = liver_zyx | tumour_zyx
    segmented = SegmentedCase(
        CaseIdentity(case.case_id, case.patient_id, str(case.modality), case.sequence, case.source),
        LabelPair(liver_zyx, predicted.liver_zyx),
        LabelPair(tumour_zyx, predicted.tumour_zyx),
        geometry.spacing_zyx_mm,
        case.distances_known,
    )
    window = display_window(image_zyx, case.modality, model.spec.plan.window_hu)
    return Scored(score_case(segmented), pick_slice(segmented, image_zyx.astype(np.float32), window))


def _read_reference(cohort: Cohort, file: str, state: LabelState, shape_zyx: tuple[int, ...]) -> Mask | None:
    """The reference mask, bool zyx: None if unknown, empty if an expert labelled the structure absent."""
    if state == LabelState.MANUAL:
        return read_mask(cohort.file(file))
    return np.zeros(shape_zyx, bool) if state == LabelState.ABSENT else None


def _facts(
    cases: Sequence[Case], parents: Mapping[str, str], origin: Mapping[str, str], params: EvaluateParams
) -> dict[str, str]:
    tested = sorted((case.image_sha256, case.liver_sha256, case.tumour_sha256) for case in cases)
    return {
        Cohort.KIND: parents[Cohort.KIND],
        Report.TEST_SET: sha256_json(tested),
        ModelFolder.POOL: origin.get(ModelFolder.POOL, ""),
        ModelFolder.POOL_VERSION: origin.get(ModelFolder.POOL_VERSION, ""),
        ModelFolder.KIND: parents[ModelFolder.KIND],
        Report.OVERLAP: str(params.overlap),
        Report.MIN_LESION_ML: str(params.min_lesion_ml),
        Report.COMMIT: git_commit(),
    }


def _write(
    report: Report, scored: Sequence[Scored], history: pd.DataFrame, facts: dict[str, str], params: EvaluateParams
) -> None:
    scores = [item.scores for item in scored]
    metrics = summarise(scores, seed=params.bootstrap_seed, resamples=params.bootstrap_resamples)
    report.save(metrics, facts, scores_table(scores))
    write_report(report.page, metrics, scores, [item.shown for item in scored], history, facts)

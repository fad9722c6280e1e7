"""Stage 6: score a model on the held-out patients.

Writes a folder `Report`: summary metrics, the HTML page, scores, lesions, predicted mask and probabilities of each
case, and provenance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hepar.cases import STRUCTURES, Case, Cohort, Split
from hepar.errors import DataError
from hepar.evaluation.held_out import beside_references, hash_test_set
from hepar.evaluation.kept_probabilities import KeptProbabilities, keep_probabilities, write_probabilities
from hepar.evaluation.label_pairs import SegmentedCase, case_box, cut_case
from hepar.evaluation.report_folder import Report
from hepar.evaluation.scored_cases import ScoredCase, save_report
from hepar.evaluation.scores import score_case
from hepar.evaluation.slices import CaseSlice, pick_slice
from hepar.evaluation.summary import Bootstrap
from hepar.imaging.display import display_window
from hepar.imaging.volumes import Geometry, read_image, to_array, to_image, write_image
from hepar.inference.model_folder import ModelFolder, ModelSpec, hash_patient
from hepar.inference.prediction import Model, load_ensemble, segment
from hepar.inference.settings import PredictionSettings
from hepar.params import EvaluateParams
from hepar.runtime.artifacts import as_parents_of_parent, read_manifest, write_artifact
from hepar.runtime.bounded_map import bounded_map
from hepar.runtime.commit import RELEASE, git_commit, release
from hepar.runtime.device import available_cores, pick_device, use_threads
from hepar.runtime.fetching import fetched
from hepar.runtime.progress import current_stage, stage
from hepar.runtime.stored_versions import Handover


def run(cohort: Path, model: Path, report: Path, params: EvaluateParams, handover: Handover | None = None) -> None:
    """Segment and score all test cases of the model's modalities with all members of the model.

    A structure that the model was not taught is not scored. Cases are predicted one by one, and scored several at a
    time beside that. `handover`, if given, comes after that, inside the stage: if it fails, the stage fails.

    Raises DataError if there are none, or if the model has seen a label of a test patient.
    """
    with stage("evaluate"):
        use_threads(params.threads)
        cohort_hash, manifest = read_manifest(cohort, Cohort.KIND).hash, read_manifest(model, ModelFolder.KIND)
        cases = Cohort.load(cohort)
        models = load_ensemble(model, pick_device())
        spec = models[0].spec
        settings = PredictionSettings.from_params(params)
        chosen = [case for case in cases.select(None, (Split.TEST,)) if case.modality in spec.modalities]
        _check_unseen(model, chosen)
        if not chosen:
            raise DataError(f"{cohort} has no test case of {', '.join(spec.modalities)}")
        cases.verify(chosen)
        parents = {
            Cohort.KIND: cohort_hash,
            ModelFolder.KIND: manifest.hash,
            **as_parents_of_parent(ModelFolder.KIND, manifest.parents),
        }
        with write_artifact(report, Report.KIND, parents) as folder:
            with current_stage().counting(len(chosen), "cases") as count:
                predicted = (_predict(case, cases, models, Report(folder), settings.for_model(spec)) for case in chosen)
                scored = []
                for case in bounded_map(_score, predicted, params.threads or available_cores()):
                    scored.append(case)
                    count.advance(case=case.scores.identity.case_id)
            facts = _facts(chosen, parents, manifest.parents, settings, spec)
            bootstrap = Bootstrap(params.bootstrap_seed, params.bootstrap_resamples)
            save_report(Report(folder), scored, ModelFolder(model).load_history(), facts, bootstrap)
        if handover is not None:
            handover.finish(report)


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


@dataclass(frozen=True)
class _PredictedCase:
    """The part of a case around its liver, what is kept of its probabilities, and the report that keeps it."""

    segmented: SegmentedCase
    shown: CaseSlice
    kept: KeptProbabilities
    report: Report


def _predict(
    case: Case, cohort: Cohort, models: Sequence[Model], report: Report, settings: PredictionSettings
) -> _PredictedCase:
    path = cohort.file(case.image)
    with fetched(path) as here:
        image = read_image(here[path])
    image_zyx = to_array(image)
    geometry = Geometry.of(image)
    spec = models[0].spec
    predicted = segment(models, image, case.modality, settings)
    write_image(to_image(predicted.labels_zyx, geometry), report.mask(case.case_id))
    segmented = beside_references(cohort, case, predicted, geometry)
    window = display_window(image_zyx, case.modality, spec.plan.window_hu, segmented.liver.likely_zyx)
    shown = pick_slice(segmented, image_zyx.astype(np.float32), window)
    kept = keep_probabilities(segmented, predicted)
    return _PredictedCase(cut_case(segmented, case_box(segmented)), shown, kept, report)


def _score(case: _PredictedCase) -> ScoredCase:
    write_probabilities(case.kept, case.report, case.segmented.identity.case_id)
    return ScoredCase(score_case(case.segmented), case.shown)


def _facts(
    cases: Sequence[Case],
    parents: Mapping[str, str],
    origin: Mapping[str, str],
    settings: PredictionSettings,
    spec: ModelSpec,
) -> dict[str, str]:
    untaught = " and ".join(name for name in STRUCTURES if name not in spec.taught)
    left_out = {Report.NOT_SCORED: f"{untaught}: not taught to the model"} if untaught else {}
    return {
        Cohort.KIND: parents[Cohort.KIND],
        Report.SOURCES: _sources(cases),
        Report.TEST_SET: hash_test_set(cases, settings),
        ModelFolder.POOL: origin.get(ModelFolder.POOL, ""),
        ModelFolder.POOL_VERSION: origin.get(ModelFolder.POOL_VERSION, ""),
        ModelFolder.KIND: parents[ModelFolder.KIND],
        **settings.for_model(spec).facts(),
        Report.LEFT_TO_MODEL: " ".join(settings.left_to_model),
        **left_out,
        RELEASE: release(),
        Report.COMMIT: git_commit(),
    }


def _sources(cases: Sequence[Case]) -> str:
    counted = Counter((case.source, case.licence or "licence not stated") for case in cases)
    return "; ".join(f"{source} ({licence}): {count}" for (source, licence), count in sorted(counted.items()))

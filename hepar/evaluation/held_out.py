"""The held-out cases that a model is scored on: what identifies them, and predictions paired with references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hepar.cases import LIVER, STRUCTURES, TUMOUR, Case, Cohort
from hepar.evaluation.label_pairs import CaseIdentity, LabelPair, SegmentedCase, TumourProbability
from hepar.evaluation.references import read_references
from hepar.evaluation.report_folder import Report
from hepar.imaging.volumes import Geometry
from hepar.inference.prediction import Segmentation
from hepar.inference.settings import PredictionSettings
from hepar.runtime.artifacts import sha256_json


def beside_references(cohort: Cohort, case: Case, predicted: Segmentation, geometry: Geometry) -> SegmentedCase:
    """A predicted case with its references; a structure that the model was not taught counts as unknown."""
    references = read_references(cohort, case, predicted.taught)
    return SegmentedCase(
        identify_case(case),
        LabelPair(references.liver_zyx, predicted.liver_zyx),
        LabelPair(references.tumour_zyx, predicted.tumour_zyx),
        geometry.spacing_zyx_mm,
        case.distances_known,
        TumourProbability(
            predicted.probability_in(TUMOUR),
            inside_liver=STRUCTURES[LIVER] in predicted.taught,
            min_lesion_voxels=predicted.min_lesion_ml / geometry.voxel_ml,
        ),
    )


def identify_case(case: Case) -> CaseIdentity:
    """A case of a cohort as tables of scores name it."""
    return CaseIdentity(case.case_id, case.patient_id, str(case.modality), case.sequence, case.source)


def describe_case(case: Case) -> dict[str, object]:
    """All that the scores of a case depend on besides model and settings: files, and what is known about them."""
    return {
        "case": case.case_id,
        "patient": case.patient_id,
        "modality": str(case.modality),
        "source": case.source,
        "files": [case.image_sha256, case.liver_sha256, case.tumour_sha256],
        "states": [str(case.liver_state), str(case.tumour_state)],
        "distances known": case.distances_known,
    }


def hash_test_set(cases: Iterable[Case], settings: PredictionSettings) -> str:
    """A hash of all that the scores of these cases depend on besides the model, in any order of the cases.

    A threshold or volume of None is the model's own, so two models may differ in it on the same test set.
    """
    tested = [describe_case(case) for case in sorted(cases, key=lambda case: case.case_id)]
    return sha256_json({"cases": tested, "settings": dict(settings.facts())})


def given_settings(facts: Mapping[str, str]) -> PredictionSettings:
    """The settings that an evaluation was given, from the facts of its report: None is what it left to the model.

    Raises ValueError if a fact cannot be read.
    """
    left = dict.fromkeys(facts.get(Report.LEFT_TO_MODEL, "").split(), "")
    return PredictionSettings.from_facts({**facts, **left})

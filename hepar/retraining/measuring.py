"""Measurements by which drift is judged: spacing, brightness of the liver, size of lesions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepar.cases import Case, Cohort, LabelState, Modality, Split
from hepar.imaging.masks import lesion_diameters_mm
from hepar.imaging.preprocessing import PreprocessingPlan, make_preprocessing_plan, normalise
from hepar.imaging.volumes import Geometry, read_image, read_mask, to_array
from hepar.params import PreprocessingParams, RetrainParams
from hepar.retraining.case_changes import CaseChanges
from hepar.retraining.drift import Drift, Measurement, measure_drift
from hepar.retraining.folder import RetrainingFolder
from hepar.runtime.artifacts import sha256_json
from hepar.runtime.progress import current_stage

SLICE, IN_PLANE, INTENSITY, LESIONS = "slice spacing", "in-plane spacing", "liver intensity", "lesion diameter"
MEASURES = (SLICE, IN_PLANE, INTENSITY, LESIONS)
Values = Mapping[str, list[float]]


@dataclass(frozen=True)
class DriftMeter:
    """Measures the cases of a cohort, each once: what was measured is kept in the folder."""

    cohort: Cohort
    preprocessing: PreprocessingParams
    folder: RetrainingFolder

    def drifts(self, changes: CaseChanges, params: RetrainParams) -> tuple[Drift, ...]:
        """The drift of each modality with enough new cases, in all of `MEASURES`; the reference are the known cases.

        Known cases that have left the source are no part of it. Test patients are not measured.
        """
        known = [case for case in changes.known if case.split != Split.TEST]
        found = []
        for modality in Modality:
            new, old = (_of(modality, cases) for cases in (changes.new, known))
            if min(len({case.patient_id for case in cases}) for cases in (new, old)) < params.min_drift_patients:
                continue
            values = self._measure([*new, *old])
            for measure in MEASURES:
                sets = ((True, new), (False, old))
                measured = [m for is_new, cases in sets for m in _measurements(cases, values, measure, is_new)]
                found.append(
                    measure_drift(str(modality), measure, measured, params.bootstrap_seed, params.bootstrap_resamples)
                )
        return tuple(found)

    def _measure(self, cases: Sequence[Case]) -> dict[str, Values]:
        """The values of cases by their id."""
        plan, kept = make_preprocessing_plan(cases, self.preprocessing), self.folder.measurements()
        keys = {case.case_id: _key(case, plan) for case in cases}
        missing = [case for case in cases if keys[case.case_id] not in kept]
        if missing:
            with current_stage().counting(len(missing), "cases to measure") as count:
                for case in missing:
                    kept[keys[case.case_id]] = measure_case(self.cohort, case, plan)
                    count.advance()
            self.folder.save_measurements(kept)
        return {name: kept[key] for name, key in keys.items()}


def _of(modality: Modality, cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.modality == modality]


def _measurements(
    cases: Sequence[Case], values: Mapping[str, Values], measure: str, is_new: bool
) -> Iterator[Measurement]:
    for case in cases:
        for value in values[case.case_id][measure]:
            yield Measurement(case.patient_id, is_new, value)


def measure_case(cohort: Cohort, case: Case, plan: PreprocessingPlan) -> dict[str, list[float]]:
    """The values of a case by measure; an empty list where there is nothing to measure.

    Lengths are logarithms to base 2 of millimetres: 1 mm to 2 mm is as far as 2 mm to 4 mm. The intensity is the median
    of the normalised scan in a manual liver.
    """
    lengths_known = case.distances_known
    intensity, diameters = [], []
    if case.liver_state == LabelState.MANUAL:
        image_zyx = normalise(to_array(read_image(cohort.file(case.image))).astype(np.float32), case.modality, plan)
        intensity = [float(np.median(image_zyx[read_mask(cohort.file(case.liver))]))]
    if case.tumour_state == LabelState.MANUAL and lengths_known:
        tumour = read_image(cohort.file(case.tumour))
        diameters = [math.log2(mm) for mm in lesion_diameters_mm(to_array(tumour) > 0, Geometry.of(tumour).voxel_ml)]
    z, y, _ = case.spacing_mm
    return {
        SLICE: [math.log2(z)] if lengths_known else [],
        IN_PLANE: [math.log2(y)] if lengths_known else [],
        INTENSITY: intensity,
        LESIONS: diameters,
    }


def _key(case: Case, plan: PreprocessingPlan) -> str:
    """All that the values of a case depend on."""
    normalising: dict[str, Any] = plan.model_dump(mode="json", exclude={"spacing_zyx_mm"})
    files = [case.image_sha256, case.liver_sha256, case.tumour_sha256]
    states = [str(case.modality), str(case.liver_state), str(case.tumour_state), case.distances_known]
    return sha256_json([files, states, normalising])

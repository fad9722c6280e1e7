"""Counts of one scan: the predicted labels against the references of its cohort."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hepar.cases import Case, Cohort, Split
from hepar.evaluation.lesions import LesionCounts, detect_lesions, match_lesions
from hepar.evaluation.overlap import OverlapCounts, count_overlap
from hepar.evaluation.references import References, read_references
from hepar.evaluation.report_folder import Report
from hepar.imaging.masks import voxel_mm3
from hepar.imaging.volumes import read_image, to_array
from hepar.runtime.artifacts import write_json

Labels = npt.NDArray[np.uint8]
LIVER_LABEL, TUMOUR_LABEL = 1, 2


@dataclass(frozen=True)
class ScanScores:
    """Counts of one scan. Voxels of a structure and lesions (any overlap, by size) are None if it is unknown.

    Sizes and volumes are by the spacing of the header, also where that is nominal.
    """

    case_id: str
    patient_id: str
    modality: str
    seed: int
    fold: str
    liver: OverlapCounts | None
    tumour: OverlapCounts | None
    lesions: Mapping[str, LesionCounts] | None
    tumour_ml: float  # predicted

    @property
    def tumour_free(self) -> bool:
        """Whether an expert found no tumour."""
        return self.tumour is not None and self.tumour.reference_voxels == 0

    @property
    def liver_dice(self) -> float | None:
        """Dice of the liver, 0 if none is predicted; None if the liver is unknown or absent."""
        return self.liver.dice if self.liver is not None and self.liver.reference_voxels else None

    @property
    def tumour_dice(self) -> float | None:
        """Dice of the tumour, 0 if none is predicted; None if it is unknown or absent."""
        return self.tumour.dice if self.tumour is not None and self.tumour.reference_voxels else None


def score_scan(case: Case, seed: int, fold: str, references: References, labels_zyx: Labels) -> ScanScores:
    """Score predicted labels, zyx: 0 background, 1 liver, 2 tumour, which is part of the liver."""
    tumour_zyx = labels_zyx == TUMOUR_LABEL
    voxel = voxel_mm3(case.spacing_mm)
    liver = tumour = lesions = None
    if references.liver_zyx is not None:
        liver = count_overlap(references.liver_zyx, labels_zyx >= LIVER_LABEL)
    if references.tumour_zyx is not None:
        tumour = count_overlap(references.tumour_zyx, tumour_zyx)
        lesions = detect_lesions(match_lesions(references.tumour_zyx, tumour_zyx), 0.0, voxel).by_size
    tumour_ml = np.count_nonzero(tumour_zyx) * voxel / 1000
    return ScanScores(case.case_id, case.patient_id, str(case.modality), seed, fold, liver, tumour, lesions, tumour_ml)


def score_report(report: Report, cohort: Cohort, taught: Sequence[str], seed: int, fold: str) -> list[ScanScores]:
    """Score the masks of a report: every test case of the cohort that it holds."""
    found = []
    for case in cohort.select(None, (Split.TEST,)):
        if report.mask(case.case_id).is_file():  # not of a modality that the model has not learnt
            labels_zyx = to_array(read_image(report.mask(case.case_id)))
            found.append(score_scan(case, seed, fold, read_references(cohort, case, taught), labels_zyx))
    return found


def cached(path: Path, key: str, compute: Callable[[], list[ScanScores]]) -> list[ScanScores]:
    """The scores in a JSON file, or new ones if they are not of this key."""
    stored = json.loads(path.read_text()) if path.is_file() else {}
    if stored.get("key") == key:
        return [from_json(value) for value in stored["scans"]]
    scans = compute()
    write_json(path, {"key": key, "scans": [asdict(scan) for scan in scans]})
    return scans


def from_json(value: Mapping[str, Any]) -> ScanScores:
    """Scores that `dataclasses.asdict` made a JSON object of."""
    counts = {name: None if value[name] is None else OverlapCounts(**value[name]) for name in ("liver", "tumour")}
    sizes = value["lesions"]
    lesions = None if sizes is None else {size: LesionCounts(**count) for size, count in sizes.items()}
    return ScanScores(**{**value, **counts, "lesions": lesions})

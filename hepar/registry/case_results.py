"""What promotion needs to know about each test case of a version, read from the table of scores in its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hepar.cases import LIVER, STRUCTURES, TUMOUR
from hepar.evaluation.lesions import LesionCounts, threshold_name

LESIONS = f"lesion_{threshold_name(0)}_"  # the counts at any overlap


@dataclass(frozen=True)
class CaseResult:
    """The scores of one model on one case. A score is None where the reference is unknown or it is undefined.

    `lesions` counts matches at any overlap. `specific` (nothing predicted) and `false_positive_ml` are set for
    tumour-free cases only; the volume is None there as well if the voxel size is nominal.
    """

    case_id: str
    patient_id: str
    modality: str
    source: str
    liver_dice: float | None
    tumour_dice: float | None
    lesions: LesionCounts | None
    specific: bool | None
    false_positive_ml: float | None

    @property
    def tumour_free(self) -> bool:
        """True if an expert labelled the case tumour-free."""
        return self.specific is not None

    @property
    def recall(self) -> float | None:
        """The share of the lesions that were found; None without lesions."""
        return None if self.lesions is None else self.lesions.sensitivity

    @property
    def false_lesions(self) -> float | None:
        """The number of predicted lesions that overlap none."""
        return None if self.lesions is None else float(self.lesions.false_positives)

    @property
    def specificity(self) -> float | None:
        """1 for a tumour-free case without a predicted tumour, 0 for one with, None for any other case."""
        return None if self.specific is None else float(self.specific)


def case_results(table: pd.DataFrame) -> tuple[CaseResult, ...]:
    """The rows of `Report.cases`, in their order. Raises KeyError if a column is missing."""
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict(orient="records")]
    return tuple(_case_result(row) for row in rows)


def _case_result(row: Mapping[str, Any]) -> CaseResult:
    counts = [_number(row[f"{LESIONS}{name}"]) for name in ("true_positives", "false_negatives", "false_positives")]
    specific = row["specific"]
    return CaseResult(
        case_id=row["case_id"],
        patient_id=row["patient_id"],
        modality=row["modality"],
        source=row["source"],
        liver_dice=_number(row[f"{STRUCTURES[LIVER]}_dice"]),
        tumour_dice=_number(row[f"{STRUCTURES[TUMOUR]}_dice"]),
        lesions=LesionCounts(*(int(count) for count in counts if count is not None)) if None not in counts else None,
        specific=None if pd.isna(specific) else bool(specific),
        false_positive_ml=_number(row["false_positive_volume_ml"]),
    )


def _number(cell: Any) -> float | None:
    return None if pd.isna(cell) else float(cell)

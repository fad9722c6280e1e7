"""The review queue: pseudo-livers, the most uncertain first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hepar.cases import Case, Cohort, Modality
from hepar.imaging.display import CT_WINDOW_HU
from hepar.pseudo_labels.folder import PseudoLabels
from hepar.pseudo_labels.gates import ACCEPT, REJECT, REVIEW
from hepar.pseudo_labels.reviews import Review, Reviews
from hepar.runtime.artifacts import check_made_from, read_manifest

GATE_ORDER = {REVIEW: 0, REJECT: 1, ACCEPT: 2}
SHOWN_SIGNALS = (
    "predicted_dice",
    "agreement",
    "entropy",
    "component_share",
    "right_share",
    "volume_ml",
    "tumour_inside",
)


@dataclass(frozen=True)
class QueueItem:
    """One pseudo-liver: its case, its row of the quality table, and its files."""

    case: Case
    row: Mapping[str, Any]
    files: Mapping[str, Path]  # image, liver and uncertain, and tumour if the case has one

    @property
    def sort_key(self) -> tuple[int, float, str]:
        """Most uncertain first: those for review, then rejected, then accepted ones; in each, the lowest Dice first."""
        predicted = float(self.row["predicted_dice"])
        certainty = self.row["agreement"] if math.isnan(predicted) else predicted
        return GATE_ORDER[self.row["gate"]], certainty, self.case.case_id


def read_queue(cohort: Path, labels: PseudoLabels) -> dict[str, QueueItem]:
    """The pseudo-livers by case id, the most uncertain first. Raises ArtifactError if they are of another cohort."""
    check_made_from(labels.folder, labels.manifest, cohort, read_manifest(cohort, Cohort.KIND), "pseudo-label")
    cases = {case.case_id: case for case in Cohort.load(cohort)}
    items = [_queue_item(cases[row["case_id"]], row, cohort, labels) for row in labels.rows()]
    return {item.case.case_id: item for item in sorted(items, key=lambda item: item.sort_key)}


def _queue_item(case: Case, row: Mapping[str, Any], cohort: Path, labels: PseudoLabels) -> QueueItem:
    files = {
        "image": cohort / case.image,
        "liver": labels.liver(case.case_id),
        "uncertain": labels.uncertain(case.case_id),
    }
    if case.tumour:
        files["tumour"] = cohort / case.tumour
    return QueueItem(case, row, files)


def describe(item: QueueItem, reviews: Reviews) -> dict[str, Any]:
    """What the page shows about a case, as JSON values."""
    row, review = item.row, reviews.find(item.case, item.row["mask_sha256"])
    signals = {name: float(row[name]) for name in SHOWN_SIGNALS}
    return {
        "case_id": item.case.case_id,
        "modality": str(item.case.modality),
        "sequence": item.case.sequence,
        "source": item.case.source,
        "gate": row["gate"],
        "reasons": list(filter(None, row["reasons"].split("; "))),
        "signals": {name: value for name, value in signals.items() if math.isfinite(value)},
        "window": list(CT_WINDOW_HU) if item.case.modality == Modality.CT else None,
        "files": sorted(item.files),
        "decision": _decision(review),
    }


def _decision(review: Review | None) -> dict[str, str] | None:
    if review is None:
        return None
    return {"decision": str(review.decision), "who": review.who, "when": review.when, "mask_sha256": review.mask_sha256}


def as_json(value: Any) -> str:
    """JSON without NaN, which browsers refuse."""
    return json.dumps(value, allow_nan=False)

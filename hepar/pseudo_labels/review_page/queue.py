"""The pseudo-livers that wait for a person, the most doubtful first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.cases import Case, Cohort, Modality
from hepar.errors import ArtifactError
from hepar.pseudo_labels.gates import ACCEPT, REJECT, REVIEW, TABLE
from hepar.pseudo_labels.reviews import LOG, NO_REVIEWS, Review, Reviews
from hepar.runtime.artifacts import read_manifest

KIND = "pseudo-labels"
ORDER = {REVIEW: 0, REJECT: 1, ACCEPT: 2}
SIGNALS = ("predicted_dice", "agreement", "entropy", "component_share", "right_share", "volume_ml", "tumour_inside")


@dataclass(frozen=True)
class Waiting:
    """One pseudo-liver with what was measured of it, and where its files lie."""

    case: Case
    row: Mapping[str, Any]
    files: Mapping[str, Path]  # image, liver, uncertain, and tumour where there is one

    @property
    def doubt(self) -> tuple[int, float, str]:
        """Sorts the most doubtful first: what waits for review, then what was rejected, then what was accepted."""
        expected = float(self.row["predicted_dice"])
        return ORDER[self.row["gate"]], self.row["agreement"] if math.isnan(expected) else expected, self.case.case_id


def read_queue(cohort: Path, pseudo: Path) -> dict[str, Waiting]:
    """The pseudo-livers of a cohort by case, in the order of their doubt. Raises ArtifactError where they differ."""
    manifest = read_manifest(pseudo, KIND)
    if manifest.parents["cohort"] != read_manifest(cohort, "cohort").hash:
        raise ArtifactError(f"{pseudo} does not label {cohort}, but another cohort")
    cases = {case.case_id: case for case in Cohort.load(cohort)}
    waiting = []
    for row in pd.read_parquet(pseudo / TABLE).to_dict(orient="records"):
        case, masks = cases[row["case_id"]], pseudo / "masks" / row["case_id"]
        files = {"image": cohort / case.image, "liver": masks / "liver.nii.gz", "uncertain": masks / "uncertain.nii.gz"}
        if case.tumour:
            files["tumour"] = cohort / case.tumour
        waiting.append(Waiting(case, {str(key): value for key, value in row.items()}, files))
    return {item.case.case_id: item for item in sorted(waiting, key=lambda item: item.doubt)}


def read_reviews(folder: Path) -> Reviews:
    """The decisions so far; none where the folder is new."""
    return Reviews.load(folder) if (folder / LOG).is_file() else NO_REVIEWS


def describe(item: Waiting, reviews: Reviews) -> dict[str, Any]:
    """What the page shows of a case."""
    row, review = item.row, reviews.of(item.case, item.row["mask_sha256"])
    measured = {name: float(row[name]) for name in SIGNALS}
    return {
        "case_id": item.case.case_id,
        "modality": str(item.case.modality),
        "sequence": item.case.sequence,
        "source": item.case.source,
        "gate": row["gate"],
        "reasons": list(filter(None, row["reasons"].split("; "))),
        "signals": {name: value for name, value in measured.items() if math.isfinite(value)},
        "window": [-100, 240] if item.case.modality == Modality.CT else None,
        "files": sorted(item.files),
        "decision": _decision(review),
    }


def _decision(review: Review | None) -> dict[str, str] | None:
    if review is None:
        return None
    return {"decision": str(review.decision), "who": review.who, "when": review.when, "mask_sha256": review.mask_sha256}


def as_json(value: Any) -> str:
    """JSON that a browser reads: no NaN."""
    return json.dumps(value, allow_nan=False)

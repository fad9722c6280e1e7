"""Hides the manual livers of some training patients, to ask how many a project needs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

from hepar.cases import LabelState, Modality, Split
from hepar.ingest.sources.source import SourceCase

DECIMALS = 9  # of a number of patients, so that 0.7 of 10 is 7


def keep_livers(cases: Sequence[SourceCase], share: float) -> list[SourceCase]:
    """The cases, which have splits, with manual livers in a share of the training patients who have one.

    In each modality it is that share, rounded up, in the order of the patients' hashed ids: a smaller share is part of
    a larger one. All livers of any other training patient become unknown. Validation and test patients keep theirs.
    """
    if share == 1:
        return list(cases)
    kept: set[str] = set()
    for modality in Modality:
        labelled = {case.patient_id for case in cases if case.modality == modality and _is_hideable(case)}
        ranked = sorted(labelled, key=lambda name: hashlib.sha256(f"liver {name}".encode()).digest())
        kept.update(ranked[: math.ceil(round(share * len(ranked), DECIMALS))])
    return [
        replace(case, liver=None, liver_state=LabelState.UNKNOWN)
        if _is_hideable(case) and case.patient_id not in kept
        else case
        for case in cases
    ]


def _is_hideable(case: SourceCase) -> bool:
    return case.split == Split.TRAIN and case.liver_state == LabelState.MANUAL

"""What is known about a case of a cohort, as masks to score a prediction by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hepar.cases import LIVER, STRUCTURES, TUMOUR, Case, Cohort, LabelState
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import read_mask
from hepar.runtime.fetching import fetched


@dataclass(frozen=True)
class References:
    """Masks of a case, bool zyx: None if unknown, empty if absent. The liver includes known tumours."""

    liver_zyx: Mask | None
    tumour_zyx: Mask | None


def read_references(cohort: Cohort, case: Case, taught: Sequence[str] = STRUCTURES) -> References:
    """The references of a case of the cohort; a structure that the model was not taught counts as unknown."""
    liver_zyx = _read(cohort, case, case.liver, case.liver_state)
    tumour_zyx = _read(cohort, case, case.tumour, case.tumour_state)
    if liver_zyx is not None and tumour_zyx is not None:
        liver_zyx = liver_zyx | tumour_zyx
    return References(
        liver_zyx if STRUCTURES[LIVER] in taught else None, tumour_zyx if STRUCTURES[TUMOUR] in taught else None
    )


def _read(cohort: Cohort, case: Case, file: str, state: LabelState) -> Mask | None:
    if state == LabelState.MANUAL:
        path = cohort.file(file)
        with fetched(path) as here:
            return read_mask(here[path])
    return np.zeros(case.size, bool) if state == LabelState.ABSENT else None

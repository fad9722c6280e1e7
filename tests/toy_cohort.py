"""A sealed cohort of toy test cases, one for each patient, all of which show the same scan."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from toy_case import write_case, write_noise

from hepar.cases import Cohort, Split
from hepar.runtime.artifacts import write_artifact

EVERYWHERE = 2 * 8**3 / (8**3 + 16**3)  # Dice of a liver that fills the scan


def write_cohort(folder: Path, patients: Sequence[str]) -> Path:
    """A cohort of one CT test case for each patient, in `folder/cohort`."""
    case = replace(write_case(folder / "files"), split=Split.TEST)
    write_noise(folder / "files" / "cohort" / case.image)
    cases = tuple(replace(case, case_id=f"CT-{patient}", patient_id=patient) for patient in patients)
    with write_artifact(folder / "cohort", Cohort.KIND, {}) as sealed:
        shutil.copytree(folder / "files" / "cohort", sealed, dirs_exist_ok=True)
        Cohort(sealed, cases).save()
    return folder / "cohort"

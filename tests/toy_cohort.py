"""A sealed cohort of toy cases, one for each patient."""

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
    """A cohort of one CT test case for each patient, in `folder/cohort`. All show the same scan."""
    case = replace(write_case(folder / "files"), split=Split.TEST)
    write_noise(folder / "files" / "cohort" / case.image)
    cases = tuple(replace(case, case_id=f"CT-{patient}", patient_id=patient) for patient in patients)
    with write_artifact(folder / "cohort", Cohort.KIND, {}) as sealed:
        shutil.copytree(folder / "files" / "cohort", sealed, dirs_exist_ok=True)
        Cohort(sealed, cases).save()
    return folder / "cohort"


def write_cohort_by_case(folder: Path, tested: Sequence[str], learned: Sequence[str]) -> Path:
    """A cohort of test and training patients in `folder/cohort`, each with a scan and files of its own, as ingest
    writes them."""
    toy = write_case(folder / "files")
    with write_artifact(folder / "cohort", Cohort.KIND, {}) as sealed:
        cases = []
        for patient in (*tested, *learned):
            names = {name: Cohort.volume(patient, name) for name in ("image", "liver", "tumour")}
            for name, place in names.items():
                (sealed / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / "files" / "cohort" / f"{name}.nii.gz", sealed / place)
            write_noise(sealed / names["image"], seed=len(cases))
            split = Split.TEST if patient in tested else Split.TRAIN
            cases.append(replace(toy, case_id=patient, patient_id=patient, split=split, **names))
        Cohort(sealed, tuple(cases)).save()
    return folder / "cohort"

"""A cohort as a table for people: its cases, then those in quarantine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from hepar.cases import Cohort
from hepar.errors import DataError
from hepar.imaging.grid_rules import size_text
from hepar.ingest.quarantine import read_quarantine


@dataclass(frozen=True)
class ListedCase:
    """One case of a cohort; of a refused one only its id and the reason are known."""

    case_id: str
    patient_id: str = ""
    modality: str = ""
    sequence: str = ""
    liver_state: str = ""
    tumour_state: str = ""
    split: str = ""
    size: str = ""
    refused: str = ""


def summary_line(table: pd.DataFrame) -> str:
    """The number of cases in a table of `cohort_table` by modality and split, and of refused ones."""
    accepted = table[table.refused == ""]
    counts = Counter(zip(accepted.modality, accepted.split, strict=True))
    parts = ", ".join(f"{count} {modality} {split}" for (modality, split), count in sorted(counts.items()))
    return f"{len(accepted)} cases ({parts}), {len(table) - len(accepted)} refused"


def cohort_table(folder: Path) -> pd.DataFrame:
    """One row per case; `refused` is empty for accepted ones, rule and value for those in quarantine.

    Raises DataError if the folder is not a cohort or its quarantine list is missing.
    """
    accepted = [
        ListedCase(
            case_id=case.case_id,
            patient_id=case.patient_id,
            modality=str(case.modality),
            sequence=case.sequence,
            liver_state=str(case.liver_state),
            tumour_state=str(case.tumour_state),
            split=str(case.split),
            size=size_text(case.size),
        )
        for case in Cohort.load(folder)
    ]
    quarantine = folder / Cohort.QUARANTINE
    if not quarantine.is_file():
        raise DataError(f"{folder} is not a complete cohort: {Cohort.QUARANTINE} is missing")
    refused = [
        ListedCase(entry.case_id, refused=f"{entry.rule}: {entry.value}") for entry in read_quarantine(quarantine)
    ]
    return pd.DataFrame([*accepted, *refused], columns=[item.name for item in fields(ListedCase)])

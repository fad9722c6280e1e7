"""A cohort as a table for people: its cases, then those in quarantine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from hepar.cases import Cohort
from hepar.errors import DataError
from hepar.ingest.quarantine import read_quarantine

COLUMNS = ["case_id", "patient_id", "modality", "sequence", "liver_state", "tumour_state", "split", "size", "refused"]


def summary_line(table: pd.DataFrame) -> str:
    """The number of cases in a table of `cohort_table` by modality and split, and of refused ones."""
    accepted = table[table.refused == ""]
    counts = Counter(zip(accepted.modality, accepted.split, strict=True))
    parts = ", ".join(f"{count} {modality} {split}" for (modality, split), count in sorted(counts.items()))
    return f"{len(accepted)} cases ({parts}), {len(table) - len(accepted)} refused"


def cohort_table(folder: Path) -> pd.DataFrame:
    """One row a case; `refused` is empty for accepted ones, rule and value for those in quarantine.

    Raises DataError if the folder is not a cohort or its quarantine list is missing.
    """
    accepted = [
        {
            "case_id": case.case_id,
            "patient_id": case.patient_id,
            "modality": str(case.modality),
            "sequence": case.sequence,
            "liver_state": str(case.liver_state),
            "tumour_state": str(case.tumour_state),
            "split": str(case.split),
            "size": "×".join(map(str, case.size[::-1])),
            "refused": "",
        }
        for case in Cohort.load(folder)
    ]
    quarantine = folder / Cohort.QUARANTINE
    if not quarantine.is_file():
        raise DataError(f"{folder} is not a complete cohort: {Cohort.QUARANTINE} is missing")
    refused = [
        {"case_id": line.case_id, "refused": f"{line.rule}: {line.value}"} for line in read_quarantine(quarantine)
    ]
    return pd.DataFrame([*accepted, *refused], columns=COLUMNS).fillna("")

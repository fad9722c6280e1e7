"""A cohort as a table for people: its cases, then those in quarantine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from hepar.cases import Cohort
from hepar.errors import DataError

QUARANTINE = "quarantine.csv"
COLUMNS = ["case_id", "patient_id", "modality", "sequence", "liver_state", "tumour_state", "split", "size", "refused"]


def in_a_line(table: pd.DataFrame) -> str:
    """How many cases a table of `cohort_table` has, by modality and split, and how many are refused."""
    accepted = table[table.refused == ""]
    counts = Counter(zip(accepted.modality, accepted.split, strict=True))
    parts = ", ".join(f"{count} {modality} {split}" for (modality, split), count in sorted(counts.items()))
    return f"{len(accepted)} cases ({parts}), {len(table) - len(accepted)} refused"


def cohort_table(folder: Path) -> pd.DataFrame:
    """One row a case; `refused` is empty for accepted ones, rule and value for those in quarantine."""
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
    if not (folder / QUARANTINE).is_file():
        raise DataError(f"{folder} is not a whole cohort: {QUARANTINE} is missing")
    quarantine = pd.read_csv(folder / QUARANTINE, dtype=str, keep_default_na=False)
    refused = [
        {"case_id": row.case_id, "refused": f"{row.rule}: {row.value}"} for row in quarantine.itertuples(index=False)
    ]
    return pd.DataFrame([*accepted, *refused], columns=COLUMNS).fillna("")

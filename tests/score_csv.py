"""Tables of scores as text, with the columns that a test needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def scores_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """A table of scores: each row is a CT case of source A and of a patient of its own unless it says otherwise."""
    columns = list(
        dict.fromkeys(["case_id", "patient_id", "modality", "sequence", "source", *(k for r in rows for k in r)])
    )
    lines = [",".join(columns)]
    for row in rows:
        full = {"patient_id": row["case_id"], "modality": "CT", "source": "A", **row}
        lines.append(",".join("" if full.get(name) is None else str(full[name]) for name in columns))
    return "\n".join(lines) + "\n"

"""A case as its source declares it, before anything of it was read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hepar.cases import LabelState, Modality, Split


@dataclass(frozen=True)
class SourceCase:
    """Files and declarations of one case. `split` is None where the source names none."""

    case_id: str
    patient_id: str
    modality: Modality
    sequence: str
    image: Path
    liver: Path | None
    tumour: Path | None
    liver_state: LabelState
    tumour_state: LabelState
    split: Split | None
    source: str
    licence: str
    distances_known: bool

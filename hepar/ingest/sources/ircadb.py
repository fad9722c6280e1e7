"""3D-IRCADb (IRCAD, Strasbourg): `PATIENT_DICOM/` and `MASKS_DICOM/STRUCTURE/`, each mask a DICOM series."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hepar.cases import LabelState, Modality
from hepar.errors import Refusal
from hepar.ingest.sources.dicom import by_height
from hepar.ingest.sources.dicom_scan import scan
from hepar.ingest.sources.dicom_volume import DicomVolume
from hepar.ingest.sources.files import folders, safe_id
from hepar.ingest.sources.source import ABSENT_IF_EMPTY, SourceCase, Union, Volume, refused_case
from hepar.params import Uneven

SCANS, MASKS = "PATIENT_DICOM", "MASKS_DICOM"
TUMOUR = re.compile(r"livertumou?rs?[\d_]*", re.IGNORECASE)


def recognise(folder: Path) -> str:
    """What marks this layout in a folder, for a message; empty if nothing does."""
    count = sum(1 for _ in _patients(folder))
    return f"{count} folders {SCANS} beside {MASKS}" if count else ""


def read(folder: Path, uneven: Uneven = "refuse") -> list[SourceCase]:
    """Each patient with the union of its livertumor folders; without any, the tumour is absent."""
    cases = [_case(folder, place, uneven) for place in _patients(folder)]
    return sorted(cases, key=lambda case: case.case_id)


def _patients(folder: Path) -> Iterator[Path]:
    return (part for part in folders(folder) if (part / SCANS).is_dir() and (part / MASKS).is_dir())


def _case(root: Path, place: Path, uneven: Uneven) -> SourceCase:
    match = re.search(r"ircadb(\d)?\.?(\d+)$", place.name, re.IGNORECASE)
    name = f"ircadb-{int(match[2]):02d}" if match else f"ircadb-{safe_id(place.name if place != root else root.stem)}"
    masks = {part.name.lower(): part for part in folders(place / MASKS)}

    def volume(part: Path, mask: bool) -> DicomVolume:
        return DicomVolume(by_height(scan(part)), uneven, mask)

    try:
        image = volume(place / SCANS, mask=False)
        liver = volume(masks["liver"], mask=True) if "liver" in masks else None
        parts: list[Volume] = [volume(part, mask=True) for key, part in sorted(masks.items()) if TUMOUR.fullmatch(key)]
    except Refusal as fault:
        return refused_case(name, place / SCANS, fault)
    return SourceCase(
        case_id=name,
        patient_id=name,
        modality=Modality.CT,
        sequence="portal-venous",
        image=image,
        liver=liver,
        tumour=Union(tuple(parts)) if parts else None,
        liver_state=LabelState.MANUAL if liver else LabelState.UNKNOWN,
        tumour_state=LabelState.MANUAL if parts else LabelState.ABSENT,
        split=None,
        source="3D-IRCADb",
        licence="CC-BY-NC-ND-3.0",
        if_empty=ABSENT_IF_EMPTY,
    )

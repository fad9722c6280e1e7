"""TotalSegmentator (Wasserthal et al. 2023; D'Antonoli et al. 2025): a folder per case, a mask file per structure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hepar.cases import LabelState, Modality
from hepar.ingest.sources.files import safe_id
from hepar.ingest.sources.source import ABSENT_IF_EMPTY, SourceCase, VolumeFile

IMAGES = {"ct.nii.gz": Modality.CT, "mri.nii.gz": Modality.MR}


def recognise(folder: Path) -> str:
    """What marks this layout in a folder, for a message; empty if nothing does."""
    count = sum(1 for _ in _images(folder))
    return f"{count} folders with ct.nii.gz or mri.nii.gz beside segmentations/" if count else ""


def read(folder: Path) -> list[SourceCase]:
    """Each case with its liver; an empty mask, of a liver outside the field of view, means absent."""
    return [_case(image, IMAGES[image.name]) for image in _images(folder)]


def _images(folder: Path) -> Iterator[Path]:
    for case in sorted(path for path in folder.iterdir() if (path / "segmentations").is_dir()):
        yield from (case / name for name in IMAGES if (case / name).is_file())


def _case(image: Path, modality: Modality) -> SourceCase:
    case_id = safe_id(f"ts-{modality.lower()}-{image.parent.name}")
    path = image.parent / "segmentations" / "liver.nii.gz"
    liver = VolumeFile(path) if path.is_file() else None
    return SourceCase(
        case_id=case_id,
        patient_id=case_id,
        modality=modality,
        sequence="",
        image=VolumeFile(image),
        liver=liver,
        tumour=None,
        liver_state=LabelState.MANUAL if liver else LabelState.UNKNOWN,
        tumour_state=LabelState.UNKNOWN,
        split=None,
        source=f"TotalSegmentator-{modality}",
        licence="CC-BY-4.0" if modality == Modality.CT else "",
        if_empty=ABSENT_IF_EMPTY,
    )

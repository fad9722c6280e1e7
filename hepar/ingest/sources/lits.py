"""LiTS (Bilic et al., Medical Image Analysis 2023): `volume-N.nii` and `segmentation-N.nii`, in any folders below."""

from __future__ import annotations

from pathlib import Path

from hepar.cases import LabelState, Modality
from hepar.ingest.sources.files import by_key, folders
from hepar.ingest.sources.source import ABSENT_IF_EMPTY, LabelMap, SourceCase, VolumeFile

LABELS = frozenset({0, 1, 2})  # 1 liver, 2 tumour
FIRST_SCANS = {8: 7, 9: 7, 10: 7, 15: 14}  # of patients with several scans, by the numbers of the later ones


def recognise(folder: Path) -> str:
    """What marks this layout in a folder, for a message; empty if nothing does."""
    count = sum(len(_volumes(part)) for part in folders(folder))
    return f"{count} files volume-N.nii" if count else ""


def read(folder: Path) -> list[SourceCase]:
    """Each volume; without a segmentation both structures are unknown. The challenge's `test-volume-N` are left out."""
    parts = list(folders(folder))
    masks = {key: path for part in parts for key, path in by_key(part, r"segmentation-(\d+)\.nii(?:\.gz)?").items()}
    volumes = {key: path for part in parts for key, path in _volumes(part).items()}
    return [
        _case(int(key), path, masks.get(key)) for key, path in sorted(volumes.items(), key=lambda item: int(item[0]))
    ]


def _volumes(folder: Path) -> dict[str, Path]:
    return by_key(folder, r"volume-(\d+)\.nii(?:\.gz)?")


def _case(number: int, volume: Path, segmentation: Path | None) -> SourceCase:
    case_id = f"lits-{number:03d}"
    labels = VolumeFile(segmentation) if segmentation else None
    state = LabelState.MANUAL if labels else LabelState.UNKNOWN
    return SourceCase(
        case_id=case_id,
        patient_id=f"lits-{FIRST_SCANS.get(number, number):03d}",
        modality=Modality.CT,
        sequence="portal-venous",
        image=VolumeFile(volume),
        liver=LabelMap(labels, frozenset({1, 2}), LABELS) if labels else None,
        tumour=LabelMap(labels, frozenset({2}), LABELS) if labels else None,
        liver_state=state,
        tumour_state=state,
        split=None,
        source="LiTS",
        licence="CC-BY-NC-ND-4.0",
        if_empty=ABSENT_IF_EMPTY,
    )

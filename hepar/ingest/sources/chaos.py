"""CHAOS (Kavur et al., Medical Image Analysis 2021): `DICOM_anon/` beside `Ground/*.png`, for CT, T1-DUAL, T2-SPIR.

PNG masks follow the order of the DICOM file names, which need not be the order along z: each is placed with its DICOM
file. All subjects are healthy, so the tumour is absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from hepar.cases import LabelState, Modality
from hepar.errors import Refusal
from hepar.ingest.sources.dicom import Stack, stacks
from hepar.ingest.sources.dicom_scan import refused_folders, scan
from hepar.ingest.sources.dicom_volume import DicomVolume
from hepar.ingest.sources.files import folders, safe_id
from hepar.ingest.sources.source import SourceCase
from hepar.params import Uneven

SCANS, MASKS = "DICOM_anon", "Ground"
LIVER_GREY = {Modality.CT: (1, 255), Modality.MR: (55, 70)}  # in MR other greys are other organs
PHASES = {"InPhase": "T1-in-phase", "OutPhase": "T1-opposed-phase"}


@dataclass(frozen=True)
class PngMask:
    """PNG slices, each at the position of its DICOM file. `slices` and `image.paths` run from low to high."""

    slices: tuple[Path, ...]
    image: DicomVolume
    greys: tuple[int, int]

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.slices, *self.image.files)

    def read(self) -> sitk.Image:
        image = self.image.read()
        planes_yx = [np.asarray(Image.open(path).convert("L")) for path in self.slices]
        width, height, depth = image.GetSize()
        if {plane.shape for plane in planes_yx} != {(height, width)} or len(planes_yx) != depth:
            sizes = (
                f"{len(planes_yx)} planes of {planes_yx[0].shape[::-1]} but the image has {depth} of {(width, height)}"
            )
            raise Refusal("a PNG mask has its image's size", sizes)
        mask = sitk.GetImageFromArray(_between(np.stack(planes_yx), self.greys))
        mask.CopyInformation(image)
        return mask


def _between(
    grey_zyx: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], greys: tuple[int, int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return ((grey_zyx >= greys[0]) & (grey_zyx <= greys[1])).astype(np.uint8)


def recognise(folder: Path) -> str:
    """What marks this layout in a folder, for a message; empty if nothing does."""
    count = sum(1 for _ in _scans(folder))
    return f"{count} folders {SCANS}" if count else ""


def read(folder: Path, uneven: Uneven = "refuse") -> list[SourceCase]:
    """Each volume; without `Ground/`, as in the test sets, its liver is unknown."""
    cases, seen = [], []
    for place in _scans(folder):
        instances = list(scan(place / SCANS))
        cases += [_case(folder, place, stack, uneven) for stack in stacks(instances)]
        seen += instances
    return sorted([*cases, *refused_folders(seen)], key=lambda case: case.case_id)


def _scans(folder: Path) -> Iterator[Path]:
    return (part for part in folders(folder) if (part / SCANS).is_dir())


def _case(root: Path, place: Path, stack: Stack, uneven: Uneven) -> SourceCase:
    modality = stack.modality
    number = re.fullmatch(r"\d+", place.name) or re.fullmatch(r"\d+", place.parent.name)
    patient = f"chaos-{modality.lower()}-" + (f"{int(number[0]):03d}" if number else safe_id(root.stem).lower())
    phase = PHASES.get(stack.first.path.parent.name, "T2-SPIR" if place.name == "T2SPIR" else stack.sequence)
    sequence = "portal-venous" if modality == Modality.CT else phase
    pngs = sorted((place / MASKS).glob("*.png")) if (place / MASKS).is_dir() else []
    volume = DicomVolume(stack.paths, uneven)
    mask = None
    if pngs:
        by_name = sorted(stack.paths, key=lambda path: path.name)
        if len(pngs) != len(by_name):
            mask = PngMask(tuple(pngs), volume, LIVER_GREY[modality])  # reading refuses it
        else:
            of_slice = dict(zip(by_name, pngs, strict=True))
            mask = PngMask(tuple(of_slice[path] for path in stack.paths), volume, LIVER_GREY[modality])
    return SourceCase(
        case_id=patient if modality == Modality.CT else f"{patient}-{safe_id(sequence or 'mr').lower()}",
        patient_id=patient,
        modality=modality,
        sequence=sequence,
        image=volume,
        liver=mask,
        tumour=None,
        liver_state=LabelState.MANUAL if mask else LabelState.UNKNOWN,
        tumour_state=LabelState.ABSENT,
        split=None,
        source="CHAOS",
        licence="CC-BY-SA-4.0",
        facts=stack.facts(),
        fault=stack.fault,
    )

"""Any tree of DICOM files: images, and masks as DICOM-SEG, RTSTRUCT, or series named liver or tumour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hepar.cases import STRUCTURES, LabelState
from hepar.ingest.sources.dicom import Stack, holds_images, scan, stacks
from hepar.ingest.sources.dicom_volume import DicomVolume, Uneven
from hepar.ingest.sources.drawn_masks import Drawn, DrawnMask, find_contours, find_segments
from hepar.ingest.sources.pseudonyms import keyed_hash
from hepar.ingest.sources.source import SourceCase, Union, Volume


def recognise(folder: Path) -> str:
    """What marks this layout in a folder, for a message; empty if nothing does."""
    return "DICOM images of CT or MR" if holds_images(folder) else ""


def read(folder: Path, key: bytes, uneven: Uneven = "refuse") -> list[SourceCase]:
    """One case per CT or MR volume that is no mask; its ids are keyed hashes of the patient's and the series' ids."""
    instances = list(scan(folder))
    found = stacks(instances)
    masks = [(structure, stack) for stack in found if (structure := structure_of(stack))]
    images = [stack for stack in found if not structure_of(stack)]
    drawn = [*find_segments(instances), *find_contours(instances)]
    return sorted((_case(image, images, masks, drawn, key, uneven) for image in images), key=lambda case: case.case_id)


def structure_of(stack: Stack) -> str:
    """`liver` or `tumour` if the description or folder of a series names a mask; empty for an image.

    Headers do not show that a series is a mask, so the name must be the structure's alone, perhaps with a number.
    """
    names = (str(stack.first.get("SeriesDescription") or ""), stack.first.path.parent.name)
    for name in names:
        bare = re.sub(r"mask|seg(mentation)?|label|[\d_. -]+", "", name, flags=re.IGNORECASE)
        if re.fullmatch(r"(liver)?(tumou?rs?|lesions?|cancer|metastases)", bare, re.IGNORECASE):
            return "tumour"
        if re.fullmatch(r"liver|leber|foie", bare, re.IGNORECASE):
            return "liver"
    return ""


def _case(
    image: Stack,
    images: Sequence[Stack],
    masks: Sequence[tuple[str, Stack]],
    drawn: Sequence[Drawn],
    key: bytes,
    uneven: Uneven,
) -> SourceCase:
    hashed = keyed_hash(key)
    volume = DicomVolume(image.paths, uneven)
    found: dict[str, Volume | None] = {}
    for structure in STRUCTURES:
        of_image: list[Volume] = [
            DrawnMask(item, volume) for item in drawn if item.structure == structure and item.series == image.series
        ]
        of_image += [
            DicomVolume(stack.paths, uneven, mask=True)
            for name, stack in masks
            if name == structure and _belongs(stack, image, images)
        ]
        found[structure] = of_image[0] if len(of_image) == 1 else Union(tuple(of_image)) if of_image else None
    patient = str(image.first.get("PatientID") or image.first.get("StudyInstanceUID") or image.series)
    return SourceCase(
        case_id=f"{image.modality.lower()}-{hashed(f'{image.series}/{image.number}')[:12]}",
        patient_id=hashed(patient),
        modality=image.modality,
        sequence=image.sequence,
        image=volume,
        liver=found["liver"],
        tumour=found["tumour"],
        liver_state=LabelState.MANUAL if found["liver"] else LabelState.UNKNOWN,
        tumour_state=LabelState.MANUAL if found["tumour"] else LabelState.UNKNOWN,
        split=None,
        source="dicom",
        licence="",
        empty_is_absent=True,
        facts=image.facts(),
    )


def _belongs(mask: Stack, image: Stack, images: Sequence[Stack]) -> bool:
    """Whether a mask series was drawn on an image: same patient, position, rows and number of slices."""

    def fits(other: Stack) -> bool:
        return (
            other.first.get("PatientID") == mask.first.get("PatientID")
            and len(other.instances) == len(mask.instances)
            and other.first.get("Rows") == mask.first.get("Rows")
            and bool(np.allclose(other.first.position_xyz_mm, mask.first.position_xyz_mm, atol=0.1))
        )

    if not fits(image):
        return False
    fitting = [other for other in images if fits(other)]
    study = mask.first.get("StudyInstanceUID")
    same_study = [other for other in fitting if other.first.get("StudyInstanceUID") == study]
    return image is (same_study or fitting)[0]

"""Any tree of DICOM files: images, and masks as DICOM-SEG, RTSTRUCT, or series of two values named liver or tumour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hepar.cases import STRUCTURES, LabelState
from hepar.errors import Refusal
from hepar.ingest.parallel import Died, parallel_map
from hepar.ingest.sources.dicom import RTSTRUCT, SEGMENTATION, Instance, Stack, stacks
from hepar.ingest.sources.dicom_scan import RULE, holds_images, refused_folders, scan, seconds_to_read
from hepar.ingest.sources.dicom_volume import DicomVolume
from hepar.ingest.sources.drawn_masks import Drawn, DrawnMask, Outline, Undrawable, find_drawn
from hepar.ingest.sources.mask_matching import MasksOfImage, Matching
from hepar.ingest.sources.mask_series import find_mask_series
from hepar.ingest.sources.pseudonyms import keyed_hash
from hepar.ingest.sources.source import SourceCase, Union, Volume, refused_case
from hepar.params import Uneven
from hepar.runtime.progress import current_stage

EmptyRoi = Literal["unknown", "absent"]


def recognise(folder: Path) -> str:
    """What marks this layout in a folder, for a message; empty if nothing does."""
    return "DICOM images of CT or MR" if holds_images(folder) else ""


@dataclass(frozen=True)
class Reading:
    """How a tree is read: the key of its pseudonyms, and the settings `uneven_slices` and `empty_roi`."""

    key: bytes
    uneven: Uneven = "refuse"
    empty_roi: EmptyRoi = "unknown"


def read(folder: Path, reading: Reading) -> list[SourceCase]:
    """One case per CT or MR volume that is not a mask; its ids are keyed hashes of the patient and series ids.

    A series or a file that breaks a rule becomes a refused case.
    """
    instances = list(scan(folder))
    every = stacks(instances)
    found = [stack for stack in every if stack.fault is None]
    masks = find_mask_series(found)
    of_masks = {mask.stack.paths for mask in masks}
    drawn, undrawable = _drawn_in(instances)
    matching = Matching(
        [stack for stack in found if stack.paths not in of_masks], {stack.series for stack in every if stack.fault}
    )
    for mask in masks:
        matching.add_series(mask)
    for item in drawn:
        matching.add_drawn(item)
    cases = [refused_case(_case_id(stack, reading), stack.first.path, stack.fault) for stack in every if stack.fault]
    cases += [*refused_folders(instances), *_refused_masks(undrawable, matching, reading)]
    for own in matching.images:
        _log_unclear(_case_id(own.image, reading), own.drawn)
        fault = next((item.fault for item in undrawable if own.image.series in item.series), None)
        cases.append(replace(_case(own, reading), fault=fault))
    return sorted(cases, key=lambda case: case.case_id)


def _drawn_in(instances: Sequence[Instance]) -> tuple[list[Drawn], list[Undrawable]]:
    """What is drawn in the DICOM-SEG and RTSTRUCT files, and the files that cannot be used."""
    files = [instance for instance in instances if instance.get("SOPClassUID") in (SEGMENTATION, RTSTRUCT)]
    drawn: list[Drawn] = []
    undrawable: list[Undrawable] = []
    with parallel_map(find_drawn, files, lambda instance: seconds_to_read([instance.path])) as results:
        for instance, found in zip(files, results, strict=True):
            if isinstance(found, Died):
                undrawable.append(Undrawable(instance.path, frozenset(), Refusal(RULE, found.reason)))
            elif isinstance(found, Undrawable):
                undrawable.append(found)
            else:
                drawn += found
    return drawn, undrawable


def _refused_masks(undrawable: Sequence[Undrawable], matching: Matching, reading: Reading) -> list[SourceCase]:
    """A refused case for each mask series and file that belongs to no image or cannot be used; files by number."""
    known = {own.image.series for own in matching.images}
    faults = {item.path: item.fault for item in undrawable if not item.series & known}
    refused = []
    for unplaced in matching.unplaced:
        if isinstance(unplaced.mask, Drawn):
            faults.setdefault(unplaced.mask.path, unplaced.fault)
        else:
            stack = unplaced.mask.stack
            refused.append(refused_case(_case_id(stack, reading), stack.first.path, unplaced.fault))
    files = enumerate(faults.items(), start=1)
    return refused + [refused_case(f"dicom-drawn-{number}", path, fault) for number, (path, fault) in files]


def _log_unclear(case_id: str, drawn: Sequence[Drawn]) -> None:
    """Log which ROIs and segments leave a structure unknown, by number: their names may hold anything."""
    for item in drawn:
        if item.outline == Outline.UNCLEAR:
            what = "segment" if item.kind == SEGMENTATION else "ROI"
            numbers = ", ".join(map(str, item.numbers))
            current_stage().log(
                f"case {case_id}: {item.structure} unknown, as the name of {what} {numbers} is not understood"
            )


def _case_id(stack: Stack, reading: Reading) -> str:
    return f"{stack.modality.lower()}-{keyed_hash(reading.key)(f'{stack.series}/{stack.number}')[:12]}"


@dataclass(frozen=True)
class _Label:
    """What a tree tells about one structure: its mask and state, and the state if the mask turns out to be empty."""

    volume: Volume | None
    state: LabelState
    if_empty: LabelState


def _case(own: MasksOfImage, reading: Reading) -> SourceCase:
    """The case of an image with the mask series and the drawn masks that belong to it."""
    image = own.image
    hashed = keyed_hash(reading.key)
    volume = DicomVolume(image.paths, reading.uneven)
    labels: dict[str, _Label] = {}
    for structure in STRUCTURES:
        series: list[Volume] = [
            DicomVolume(mask.stack.paths, reading.uneven, mask=True)
            for mask in own.series
            if mask.structure == structure
        ]
        drawn = [item for item in own.drawn if item.structure == structure]
        labels[structure] = _label(series, drawn, volume, LabelState(reading.empty_roi))
        if structure in own.unknown:
            labels[structure] = _Label(None, LabelState.UNKNOWN, LabelState.UNKNOWN)
    patient = str(image.first.get("PatientID") or image.first.get("StudyInstanceUID") or image.series)
    return SourceCase(
        case_id=_case_id(image, reading),
        patient_id=hashed(patient),
        modality=image.modality,
        sequence=image.sequence,
        image=volume,
        liver=labels["liver"].volume,
        tumour=labels["tumour"].volume,
        liver_state=labels["liver"].state,
        tumour_state=labels["tumour"].state,
        split=None,
        source="dicom",
        licence="",
        if_empty={structure: label.if_empty for structure, label in labels.items()},
        facts=image.facts(),
    )


def _label(series: Sequence[Volume], drawn: Sequence[Drawn], image: DicomVolume, empty_roi: LabelState) -> _Label:
    """The label of a structure from its mask series and what is drawn of it.

    Where something is marked but not outlined, or has an unclear name, the structure is unknown. Outlines too small
    for a voxel are not empty.
    """
    if any(item.outline in (Outline.MARKS, Outline.UNCLEAR) for item in drawn):
        return _Label(None, LabelState.UNKNOWN, LabelState.UNKNOWN)
    outlined = [item for item in drawn if item.outline != Outline.NONE]
    volumes = [*(DrawnMask(item, image) for item in outlined), *series]
    if not volumes:
        state = empty_roi if drawn else LabelState.UNKNOWN
        return _Label(None, state, state)
    volume = volumes[0] if len(volumes) == 1 else Union(tuple(volumes))
    is_drawn = any(item.outline == Outline.REGIONS for item in outlined)
    return _Label(volume, LabelState.MANUAL, LabelState.UNKNOWN if is_drawn else empty_roi)

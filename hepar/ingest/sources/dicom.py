"""Headers of DICOM files, and the stacks of slices that they form.

Only headers decide, never file names. A series may hold several volumes (phases, echoes, in and opposed phase): it is
split where slices would overlap. Of a header, cases keep numbers and known words of `FACTS` and nothing else; ids are
replaced by keyed hashes.

Positions are LPS millimetres (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError

from hepar.cases import Modality
from hepar.errors import Refusal
from hepar.imaging.grid_rules import MISSING_SPACING_RULE
from hepar.ingest.sources.dicom_facts import FACTS, known_facts, named_sequence
from hepar.ingest.sources.dicom_header import RULE, check_tags, is_dicom

Vector = npt.NDArray[np.float64]

CT_IMAGE, MR_IMAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"
SEGMENTATION, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
CLASSIC = {CT_IMAGE: Modality.CT, MR_IMAGE: Modality.MR}
LEGACY_CT, LEGACY_MR = "1.2.840.10008.5.1.4.1.1.2.2", "1.2.840.10008.5.1.4.1.1.4.4"  # converted from classic
ENHANCED = {
    ENHANCED_CT: Modality.CT,
    ENHANCED_MR: Modality.MR,
    LEGACY_CT: Modality.CT,
    LEGACY_MR: Modality.MR,
}
KINDS = {*CLASSIC, *ENHANCED, SEGMENTATION, RTSTRUCT}  # that are read
DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR, which lists files
NO_SPACING = (MISSING_SPACING_RULE, "PixelSpacing is missing")
MIN_SLICES = 8
MIN_SHARED = 0.75  # of the heights of a series, which each of its volumes covers; slabs on each other cover less
IDENTITY = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")  # that all slices of a series share
# tags that separate the volumes of a series, the most specific first
DISTINCTIONS = (
    "TemporalPositionIdentifier",
    "EchoTime",
    "AcquisitionNumber",
    "ImageType",
    "DiffusionBValue",
    "TriggerTime",
    "AcquisitionTime",
    "ContentTime",
)
TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "SeriesDescription",
    "SeriesNumber",
    "BodyPartExamined",
    "ProtocolName",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BurnedInAnnotation",
    *FACTS,
    *DISTINCTIONS,
]


@dataclass(frozen=True)
class Instance:
    """The tags of one file that are needed; positions in LPS millimetres. `fault` is a rule that its header breaks."""

    path: Path
    tags: pydicom.Dataset = field(repr=False)
    fault: Refusal | None = None

    def get(self, name: str) -> Any:
        """A tag's value, or None if the header lacks it."""
        return self.tags.get(name)

    @property
    def position_xyz_mm(self) -> Vector:
        """Centre of the first voxel, float64 of 3."""
        return np.array(self.tags.ImagePositionPatient, float)

    @property
    def axes(self) -> Vector:
        """Unit vectors along a row, along a column and along their normal, float64 of 3 x 3 by rows."""
        along = np.array(self.tags.ImageOrientationPatient, float).reshape(2, 3)
        return np.vstack([along, np.cross(along[0], along[1])])

    @property
    def height_mm(self) -> float:
        """Position along the normal."""
        return float(self.axes[2] @ self.position_xyz_mm)


def read_header(path: Path) -> Instance | None:
    """The header of a file, or None if it is not a DICOM instance; without tags if it is one but cannot be read."""
    try:
        if not is_dicom(path):
            return None
        tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
        fault = check_tags(tags, TAGS)
    except InvalidDicomError:
        return None
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file does to the parser
        return Instance(path, pydicom.Dataset(), Refusal(RULE, f"reading its header raises {type(error).__name__}"))
    kind = tags.get("SOPClassUID")
    if kind and tags.get("SeriesInstanceUID"):
        instance = Instance(path, tags, fault)
        return replace(instance, fault=Refusal(*NO_SPACING)) if _lacks_spacing(instance) else instance
    if tags.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY or (kind and kind not in KINDS):
        return None
    return Instance(path, pydicom.Dataset(), Refusal(RULE, "its header names no class or no series"))


def _lacks_spacing(instance: Instance) -> bool:
    """Whether a slice has a place in the patient but no size of its pixels."""
    is_slice = instance.get("SOPClassUID") in CLASSIC and instance.fault is None and not is_localiser(instance)
    placed = instance.get("ImagePositionPatient") and instance.get("ImageOrientationPatient")
    return bool(is_slice and placed and not instance.get("PixelSpacing"))


@dataclass(frozen=True)
class Stack:
    """Slices of one volume ordered by height, or one enhanced multi-frame file."""

    instances: tuple[Instance, ...]
    modality: Modality
    number: int  # of the volume within its series, from 0
    fault: Refusal | None = None  # the rule that the header of a slice breaks

    @property
    def first(self) -> Instance:
        return self.instances[0]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(instance.path for instance in self.instances)

    @property
    def series(self) -> str:
        return str(self.first.get("SeriesInstanceUID"))

    @property
    def uids(self) -> frozenset[str]:
        """The SOPInstanceUIDs of its files."""
        return frozenset(str(instance.get("SOPInstanceUID")) for instance in self.instances)

    @property
    def description(self) -> str:
        return f"{self.first.get('SeriesDescription') or ''} {self.first.get('ProtocolName') or ''}"

    @property
    def sequence(self) -> str:
        """The phase or sequence that the description names, empty if it names none."""
        return named_sequence(self.description)

    def facts(self) -> dict[str, str]:
        """Numbers and known words of the tags of `FACTS` that the header has."""
        return known_facts(self.first.tags)


def stacks(instances: Iterable[Instance]) -> list[Stack]:
    """The CT and MR volumes among instances; localisers, secondary captures and other objects are left out.

    A series that mixes patients stays in one piece, which reading refuses. A series of which a header breaks a rule
    has that fault.
    """
    instances = list(instances)
    sound = [instance for instance in instances if instance.fault is None]
    broken = [instance for instance in instances if instance.fault is not None]
    return _with_faults(_sound_stacks(sound), [item for item in broken if _is_image(item)], sound)


def _is_image(instance: Instance) -> bool:
    kind = instance.get("SOPClassUID")
    return kind in ENHANCED or (kind in CLASSIC and not is_localiser(instance))


def _with_faults(found: Sequence[Stack], broken: Sequence[Instance], sound: Sequence[Instance]) -> list[Stack]:
    """The stacks, with the faults of their series, and a stack for each other series with one that is not a scout."""
    by_series: dict[str, list[Instance]] = defaultdict(list)
    for instance in broken:
        by_series[str(instance.get("SeriesInstanceUID"))].append(instance)
    faults = {uid: members[0].fault for uid, members in by_series.items()}
    marked = [replace(stack, fault=faults.get(stack.series)) for stack in found]
    for uid in faults.keys() - {stack.series for stack in found}:
        first = by_series[uid][0]
        slices = by_series[uid] + [item for item in sound if str(item.get("SeriesInstanceUID")) == uid]
        kind = first.get("SOPClassUID")
        if kind in ENHANCED or len(slices) >= MIN_SLICES:
            marked.append(Stack(tuple(slices), {**CLASSIC, **ENHANCED}[kind], 0, faults[uid]))
    return marked


def _sound_stacks(instances: Iterable[Instance]) -> list[Stack]:
    series: dict[tuple[object, ...], list[Instance]] = defaultdict(list)
    found: list[Stack] = []
    seen: set[str] = set()
    for instance in instances:
        uid = str(instance.get("SOPInstanceUID"))
        if uid in seen:
            continue  # a copy of the same file
        seen.add(uid)
        if instance.get("SOPClassUID") in ENHANCED:
            found.append(Stack((instance,), ENHANCED[instance.get("SOPClassUID")], 0))
        elif instance.get("SOPClassUID") in CLASSIC and not is_localiser(instance) and is_placed(instance):
            series[_grid(instance)].append(instance)
    numbers: dict[str, int] = defaultdict(int)
    for members, is_mixed in _by_grid(series):
        for part in [members] if is_mixed else _split_volumes(members):
            if len(part) >= MIN_SLICES:
                first = part[0]
                uid = str(first.get("SeriesInstanceUID"))
                found.append(Stack(tuple(part), CLASSIC[first.get("SOPClassUID")], numbers[uid]))
                numbers[uid] += 1
    return found


def _by_grid(series: Mapping[tuple[object, ...], list[Instance]]) -> Iterator[tuple[list[Instance], bool]]:
    """Groups of slices on one grid, or all slices of a series that mixes patients; and whether it does."""
    whole: dict[object, list[Instance]] = defaultdict(list)
    for (uid, *_), members in series.items():
        whole[uid] += members
    mixed = {uid: members for uid, members in whole.items() if mixed_identity(members)}
    yield from ((members, False) for (uid, *_), members in series.items() if uid not in mixed)
    yield from ((members, True) for members in mixed.values())


def mixed_identity(instances: Iterable[Instance]) -> str:
    """The first tag of `IDENTITY` in which instances of one series differ; empty if they agree.

    A missing id is not the same as another.
    """
    members = list(instances)
    return next((name for name in IDENTITY if len({str(member.get(name) or "") for member in members}) > 1), "")


def is_localiser(instance: Instance) -> bool:
    """Whether the image type is that of a scout, a projection or a screen."""
    kinds = {str(value).upper() for value in instance.get("ImageType") or ()}
    return bool(kinds & {"LOCALIZER", "SCOUT", "SCREEN SAVE", "PROJECTION IMAGE", "MIP"})


def is_placed(instance: Instance) -> bool:
    """Whether a header gives one grey slice its place in the patient."""
    tags = instance.tags
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    return all(tags.get(name) for name in needed) and int(tags.get("SamplesPerPixel") or 1) == 1


def _grid(instance: Instance) -> tuple[object, ...]:
    """Series, orientation, spacing and size, which the slices of a volume share."""
    orientation = tuple(round(float(value), 3) for value in instance.get("ImageOrientationPatient"))
    spacing = tuple(round(float(value), 4) for value in instance.get("PixelSpacing"))
    return (
        str(instance.get("SeriesInstanceUID")),
        orientation,
        spacing,
        int(instance.get("Rows")),
        int(instance.get("Columns")),
    )


def _split_volumes(members: Sequence[Instance]) -> list[list[Instance]]:
    """Slices by volume, ordered by height, split by the first of `DISTINCTIONS` that leaves no two at one height.

    The volumes lie at about the same heights and have enough slices, as phases do. Otherwise the series stays whole.
    """
    if _distinct(members):
        return [sorted(members, key=lambda item: item.height_mm)]
    for name in DISTINCTIONS:
        parts: dict[str, list[Instance]] = defaultdict(list)
        for member in members:
            parts[str(member.get(name))].append(member)
        if len(parts) > 1 and all(_is_volume(part, members) for part in parts.values()):
            return [sorted(parts[key], key=lambda item: item.height_mm) for key in sorted(parts)]
    return [sorted(members, key=lambda item: item.height_mm)]  # reading will refuse it


def _is_volume(part: Sequence[Instance], members: Sequence[Instance]) -> bool:
    """Whether a part of a series has enough slices, no two at one height, and covers most of the heights of all."""
    if len(part) < MIN_SLICES or not _distinct(part):
        return False
    own_mm, all_mm = ([item.height_mm for item in items] for items in (part, members))
    return max(own_mm) - min(own_mm) >= MIN_SHARED * (max(all_mm) - min(all_mm))


def _distinct(members: Sequence[Instance]) -> bool:
    return len({round(member.height_mm, 2) for member in members}) == len(members)


def by_height(instances: Iterable[Instance]) -> tuple[Path, ...]:
    """The files of one series from low to high, whatever their SOP class. Raises Refusal if a header breaks a rule."""
    instances = list(instances)
    if fault := next((instance.fault for instance in instances if instance.fault), None):
        raise fault
    placed = [instance for instance in instances if is_placed(instance)]
    return tuple(instance.path for instance in sorted(placed, key=lambda item: item.height_mm))

"""Headers of DICOM files, and the stacks of slices that they form.

Only headers decide, never file names. A series may hold several volumes (phases, echoes, in and opposed phase): it is
split where slices would overlap. Of a header, cases keep `FACTS` and nothing else; ids are replaced by keyed hashes.

Positions are LPS millimetres (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError

from hepar.cases import Modality
from hepar.ingest.sources.files import folders

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
MIN_SLICES = 8
FACTS = (
    "Manufacturer",
    "MagneticFieldStrength",
    "KVP",
    "SliceThickness",
    "ScanningSequence",
    "SequenceVariant",
    "RepetitionTime",
    "EchoTime",
    "FlipAngle",
    "ImageType",
)
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
    "ProtocolName",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    *FACTS,
    *DISTINCTIONS,
]
# words that name a phase or sequence; the description itself may hold anything and is dropped
VOCABULARY = (
    ("hepatobiliary", r"hepato ?biliary|\bhbp\b|primovist|eovist"),
    ("portal-venous", r"portal|venous|\bpv\b|\bvp\b|portalven"),
    ("arterial", r"arterial|\bart\b|\bap\b"),
    ("delayed", r"delay|\blate\b|equilib"),
    ("non-contrast", r"non[ -]?contrast|native|nativ|unenhanced|\bpre\b|without contrast"),
    ("DWI", r"\bdwi\b|diffusion|\badc\b"),
    ("T1-in-phase", r"in[ -]?phase"),
    ("T1-opposed-phase", r"(?:opp(?:osed)?|out)[ -]?(?:of[ -]?)?phase"),
    ("T2-SPIR", r"spir\b"),
    ("T2", r"\bt2"),
    ("T1", r"\bt1"),
)


@dataclass(frozen=True)
class Instance:
    """The tags of one file that are needed; positions in LPS millimetres."""

    path: Path
    tags: pydicom.Dataset = field(repr=False)

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


def scan(root: Path) -> Iterator[Instance]:
    """Headers of all DICOM files below a folder; other files are skipped."""
    for folder in folders(root):
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                instance = read_header(path)
                if instance is not None:
                    yield instance


def holds_images(root: Path) -> bool:
    """Whether there is a CT or MR instance below a folder; stops at the first."""
    return any(instance.get("SOPClassUID") in {**CLASSIC, **ENHANCED} for instance in scan(root))


def read_header(path: Path) -> Instance | None:
    """The header of a file, or None if it is no DICOM instance."""
    try:
        tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
    except (InvalidDicomError, EOFError, OSError, AttributeError, ValueError):
        return None
    return Instance(path, tags) if tags.get("SOPClassUID") and tags.get("SeriesInstanceUID") else None


@dataclass(frozen=True)
class Stack:
    """Slices of one volume ordered by height, or one enhanced multi-frame file."""

    instances: tuple[Instance, ...]
    modality: Modality
    number: int  # of the volume within its series, from 0

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
    def description(self) -> str:
        return f"{self.first.get('SeriesDescription') or ''} {self.first.get('ProtocolName') or ''}"

    @property
    def sequence(self) -> str:
        """The phase or sequence that the description names first in `VOCABULARY`; empty if it names none."""
        return next((name for name, words in VOCABULARY if re.search(words, self.description, re.IGNORECASE)), "")

    def facts(self) -> dict[str, str]:
        """The tags of `FACTS` that the header has."""
        return {name: str(self.first.tags[name].value) for name in FACTS if name in self.first.tags}


def stacks(instances: Iterable[Instance]) -> list[Stack]:
    """The CT and MR volumes among instances; localisers, secondary captures and other objects are left out."""
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
        elif instance.get("SOPClassUID") in CLASSIC and not _is_localiser(instance) and _is_placed(instance):
            series[_grid(instance)].append(instance)
    numbers: dict[str, int] = defaultdict(int)
    for members in series.values():
        for part in _split_volumes(members):
            if len(part) >= MIN_SLICES:
                first = part[0]
                uid = str(first.get("SeriesInstanceUID"))
                found.append(Stack(tuple(part), CLASSIC[first.get("SOPClassUID")], numbers[uid]))
                numbers[uid] += 1
    return found


def _is_localiser(instance: Instance) -> bool:
    kinds = {str(value).upper() for value in instance.get("ImageType") or ()}
    return bool(kinds & {"LOCALIZER", "SCOUT", "SCREEN SAVE", "PROJECTION IMAGE", "MIP"})


def _is_placed(instance: Instance) -> bool:
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
    """Slices by volume, ordered by height, split by the first of `DISTINCTIONS` that leaves no two at one height."""
    if _distinct(members):
        return [sorted(members, key=lambda item: item.height_mm)]
    for name in DISTINCTIONS:
        parts: dict[str, list[Instance]] = defaultdict(list)
        for member in members:
            parts[str(member.get(name))].append(member)
        if len(parts) > 1 and all(_distinct(part) for part in parts.values()):
            return [sorted(parts[key], key=lambda item: item.height_mm) for key in sorted(parts)]
    return [sorted(members, key=lambda item: item.height_mm)]  # reading will refuse it


def _distinct(members: Sequence[Instance]) -> bool:
    return len({round(member.height_mm, 2) for member in members}) == len(members)


def by_height(instances: Iterable[Instance]) -> tuple[Path, ...]:
    """The files of one series from low to high, whatever their SOP class."""
    placed = [instance for instance in instances if _is_placed(instance)]
    return tuple(instance.path for instance in sorted(placed, key=lambda item: item.height_mm))

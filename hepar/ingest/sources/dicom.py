"""DICOM: finding the volumes of a tree of files, and reading them.

Files are told apart by what their headers say, never by their names. A series may hold several volumes (phases,
echoes, in and opposed phase): it is split where slices would lie on each other. What comes out of a header is the
keep-list `FACTS` and nothing else; the patient's id leaves this module as a keyed hash only.

Positions are LPS millimetres (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.errors import InvalidDicomError

from hepar.cases import Modality
from hepar.errors import Refusal
from hepar.ingest.sources.files import folders

Uneven = Literal["refuse", "resample"]
Vector = npt.NDArray[np.float64]

CT_IMAGE, MR_IMAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"
SEGMENTATION, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
CLASSIC = {CT_IMAGE: Modality.CT, MR_IMAGE: Modality.MR}
LEGACY_CT, LEGACY_MR = "1.2.840.10008.5.1.4.1.1.2.2", "1.2.840.10008.5.1.4.1.1.4.4"  # classic ones, converted
ENHANCED = {
    ENHANCED_CT: Modality.CT,
    ENHANCED_MR: Modality.MR,
    LEGACY_CT: Modality.CT,
    LEGACY_MR: Modality.MR,
}
MIN_SLICES = 8
SPACING_TOLERANCE = 0.02  # of the step between slices
TILT_TOLERANCE = 0.02  # sideways, of the step between slices
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
# what may tell volumes of one series apart, the telling ones first
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
# words of a description that name a phase or a sequence; the description itself may hold anything and is dropped
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
    """One file's header, as far as it is needed; arrays in LPS millimetres."""

    path: Path
    tags: pydicom.Dataset = field(repr=False)

    def get(self, name: str) -> Any:
        """A tag's value, or None where the header lacks it."""
        return self.tags.get(name)

    @property
    def position(self) -> Vector:
        return np.array(self.tags.ImagePositionPatient, float)

    @property
    def axes(self) -> Vector:
        """Directions of a row, of a column and of their normal, each a row of a 3x3 matrix."""
        along = np.array(self.tags.ImageOrientationPatient, float).reshape(2, 3)
        return np.vstack([along, np.cross(along[0], along[1])])

    @property
    def height(self) -> float:
        """Position along the normal, in mm."""
        return float(self.axes[2] @ self.position)


def scan(root: Path) -> Iterator[Instance]:
    """Headers of all DICOM files below a folder; other files are passed over."""
    for folder in folders(root):
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                instance = read_header(path)
                if instance is not None:
                    yield instance


def holds_images(root: Path) -> bool:
    """Whether there is a CT or MR instance below a folder; reads until the first."""
    return any(instance.get("SOPClassUID") in {**CLASSIC, **ENHANCED} for instance in scan(root))


def read_header(path: Path) -> Instance | None:
    """The header of a file; None where it is no DICOM instance."""
    try:
        tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
    except (InvalidDicomError, EOFError, OSError, AttributeError, ValueError):
        return None
    return Instance(path, tags) if tags.get("SOPClassUID") and tags.get("SeriesInstanceUID") else None


@dataclass(frozen=True)
class Stack:
    """Slices of one volume in the order of their heights, or one enhanced multi-frame file."""

    instances: tuple[Instance, ...]
    modality: Modality
    number: int  # among the volumes of its series, from 0

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
    def words(self) -> str:
        return f"{self.first.get('SeriesDescription') or ''} {self.first.get('ProtocolName') or ''}"

    @property
    def sequence(self) -> str:
        """The phase or sequence by the first word of the vocabulary that the descriptions hold; empty without one."""
        return next((name for name, words in VOCABULARY if re.search(words, self.words, re.IGNORECASE)), "")

    def facts(self) -> dict[str, str]:
        """The keep-list of the header."""
        return {name: str(self.first.tags[name].value) for name in FACTS if name in self.first.tags}


def stacks(instances: Iterable[Instance]) -> list[Stack]:
    """The CT and MR volumes among some files: localisers, secondary captures and what is no image are left out."""
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
        for part in _told_apart(members):
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
    """What slices of one volume share."""
    orientation = tuple(round(float(value), 3) for value in instance.get("ImageOrientationPatient"))
    spacing = tuple(round(float(value), 4) for value in instance.get("PixelSpacing"))
    return (
        str(instance.get("SeriesInstanceUID")),
        orientation,
        spacing,
        int(instance.get("Rows")),
        int(instance.get("Columns")),
    )


def _told_apart(members: Sequence[Instance]) -> list[list[Instance]]:
    """Slices by volume, each in order of height: the first tag by which no two slices of a volume share a height."""
    if _distinct(members):
        return [sorted(members, key=lambda item: item.height)]
    for name in DISTINCTIONS:
        parts: dict[str, list[Instance]] = defaultdict(list)
        for member in members:
            parts[str(member.get(name))].append(member)
        if len(parts) > 1 and all(_distinct(part) for part in parts.values()):
            return [sorted(parts[key], key=lambda item: item.height) for key in sorted(parts)]
    return [sorted(members, key=lambda item: item.height)]  # reading will refuse it


def _distinct(members: Sequence[Instance]) -> bool:
    return len({round(member.height, 2) for member in members}) == len(members)


def by_height(instances: Iterable[Instance]) -> tuple[Path, ...]:
    """The files of one series, whatever their class says, from low to high."""
    placed = [instance for instance in instances if _is_placed(instance)]
    return tuple(instance.path for instance in sorted(placed, key=lambda item: item.height))


@dataclass(frozen=True)
class DicomVolume:
    """A stack as a volume: CT in HU, MR in its own units; a mask as 1 where the file holds more than 0."""

    paths: tuple[Path, ...]  # in the order of their heights
    uneven: Uneven = "refuse"
    mask: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        return self.paths

    def read(self) -> sitk.Image:
        """Raises Refusal where slices are missing, doubled or, unless they are to be resampled, uneven or tilted."""
        instances = [instance for instance in map(read_header, self.paths) if instance is not None]
        if len(instances) != len(self.paths):
            raise Refusal(
                "every slice is a DICOM instance", f"{len(self.paths) - len(instances)} of {len(self.paths)} are none"
            )
        if len(instances) == 1 and instances[0].get("SOPClassUID") in ENHANCED:
            image = _read_enhanced(self.paths[0])
        else:
            image = _read_classic(instances, self.uneven, self.mask)
        return image > 0 if self.mask else image


def _read_enhanced(path: Path) -> sitk.Image:
    import highdicom

    try:
        volume = highdicom.imread(path).get_volume(dtype=np.float32, apply_voi_transform=False)
    except (ValueError, RuntimeError) as error:
        raise Refusal("the frames of a multi-frame image form one volume", str(error)) from None
    return volume.to_simpleitk()


def _read_classic(instances: Sequence[Instance], uneven: Uneven, mask: bool) -> sitk.Image:
    spacing = slice_spacing(instances)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(instance.path) for instance in instances])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        voxels = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise Refusal("every slice can be decoded", str(error).strip().splitlines()[-1]) from None
    first = instances[0]
    row_mm, column_mm = (float(value) for value in first.get("PixelSpacing"))
    if spacing.problem:
        if uneven == "refuse":
            raise spacing.problem
        voxels = _straightened(voxels, instances, spacing.step_mm, (row_mm, column_mm), nearest=mask)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((column_mm, row_mm, spacing.step_mm))
    image.SetOrigin(first.position.tolist())
    image.SetDirection(first.axes.T.ravel().tolist())
    return image


@dataclass(frozen=True)
class SliceSpacing:
    """The step between slices in mm, and what of the slices' places is uneven, if anything is."""

    step_mm: float
    problem: Refusal | None


def slice_spacing(instances: Sequence[Instance]) -> SliceSpacing:
    """How far slices lie apart. Raises Refusal where some share a height or one is missing."""
    if len(instances) < MIN_SLICES:
        raise Refusal(f"a series has at least {MIN_SLICES} slices", f"{len(instances)} slices")
    heights = np.array([instance.height for instance in instances])
    steps = np.diff(heights)
    if (doubled := int((np.abs(steps) < 0.01).sum())) > 0:
        raise Refusal("no two slices of a volume lie at one place", f"{doubled} of {len(heights)} slices are doubled")
    step = float(np.median(steps))
    wide = np.flatnonzero(steps > (1 + 0.5) * step)
    if wide.size and np.allclose(steps / step, np.round(steps / step), atol=0.1):
        at, gap = int(wide[0]), float(steps[wide[0]])
        raise Refusal(
            "no slice is missing",
            f"{gap:.2f} mm between slices {at + 1} and {at + 2} of {len(heights)}, elsewhere {step:.2f} mm",
        )
    worst = float(np.abs(steps - step).max())
    if worst > SPACING_TOLERANCE * step:
        return SliceSpacing(step, Refusal("slices are evenly spaced", f"{steps.min():.2f} to {steps.max():.2f} mm"))
    sideways = _sideways_mm(instances)
    if float(np.abs(np.diff(sideways, axis=0)).max()) > TILT_TOLERANCE * step:
        degrees = float(np.rad2deg(np.arctan2(np.linalg.norm(sideways[-1]), heights[-1] - heights[0])))
        return SliceSpacing(step, Refusal("the gantry is not tilted", f"slices lie askew by {degrees:.1f} degrees"))
    # the mean is exact where each position was rounded
    return SliceSpacing(float((heights[-1] - heights[0]) / (len(heights) - 1)), None)


def _sideways_mm(instances: Sequence[Instance]) -> Vector:
    """How far each slice lies beside the first, along rows and columns, n x 2."""
    offsets = np.array([instance.position for instance in instances]) - instances[0].position
    return np.asarray(offsets @ instances[0].axes[:2].T)


def _straightened(
    voxels: npt.NDArray[np.float32],
    instances: Sequence[Instance],
    step_mm: float,
    pixel_mm: tuple[float, float],
    nearest: bool,
) -> npt.NDArray[np.float32]:
    """Slices moved sideways to lie above the first, then interpolated to even steps; what comes from outside is the
    lowest value.
    """
    kind = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    lowest = float(voxels.min())
    moved = []
    for plane, (along_row, along_column) in zip(voxels, _sideways_mm(instances), strict=True):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing(pixel_mm[::-1])
        back = sitk.TranslationTransform(2, (-along_row, -along_column))
        moved.append(sitk.GetArrayFromImage(sitk.Resample(image, image, back, kind, lowest)))
    stack = np.stack(moved)
    heights = np.array([instance.height for instance in instances])
    wanted = heights[0] + step_mm * np.arange(int((heights[-1] - heights[0]) / step_mm + 1e-6) + 1)
    at = np.clip(np.interp(wanted, heights, np.arange(len(heights))), 0, len(heights) - 1)
    if nearest:
        return np.asarray(stack[np.round(at).astype(int)], np.float32)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(heights) - 1)
    share = (at - low)[:, None, None].astype(np.float32)
    return np.asarray(stack[low] * (1 - share) + stack[high] * share, np.float32)


def keyed_hash(key: bytes) -> Callable[[str], str]:
    """From a patient's id to one that tells nothing without the key: HMAC-SHA-256, its first 16 hexadecimal digits."""
    return partial(_keyed_hash, key)


def _keyed_hash(key: bytes, patient: str) -> str:
    return hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:16]

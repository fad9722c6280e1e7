"""Any tree of DICOM files: image volumes, and masks as DICOM-SEG, RTSTRUCT or series named liver or tumour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from hepar.cases import LabelState
from hepar.errors import DataError, Refusal
from hepar.imaging.volumes import Geometry
from hepar.ingest.sources.dicom import (
    RTSTRUCT,
    SEGMENTATION,
    DicomVolume,
    Instance,
    Stack,
    Uneven,
    holds_images,
    keyed_hash,
    scan,
    stacks,
)
from hepar.ingest.sources.source import SourceCase, Union, Volume

CONTOUR_TOLERANCE = 0.4  # of the step between slices
WORDS = {
    "liver": re.compile(r"\b(whole[ _-]?)?(liver|hepar|leber|foie)\b", re.IGNORECASE),
    "tumour": re.compile(
        r"(tumou?rs?|lesions?|metastas[ei]s|\bhcc\b|cancer|neoplasm|carcinoma)(?![a-z])", re.IGNORECASE
    ),
}


def recognise(folder: Path) -> str:
    return "it holds DICOM images of CT or MR" if holds_images(folder) else ""


def read(folder: Path, key: bytes, uneven: Uneven = "refuse") -> list[SourceCase]:
    """One case for each CT or MR volume that is no mask; ids are keyed hashes of the patient's and the series' ids."""
    instances = list(scan(folder))
    found = stacks(instances)
    masks = [(structure, stack) for stack in found if (structure := structure_of(stack))]
    images = [stack for stack in found if not structure_of(stack)]
    drawn = [*_segmentations(instances), *_contours(instances)]
    return sorted((_case(image, images, masks, drawn, key, uneven) for image in images), key=lambda case: case.case_id)


def structure_of(stack: Stack) -> str:
    """`liver` or `tumour` where a series is a mask by its description or its folder's name; empty for an image.

    A mask holds two values, which its header does not tell; so the description has to be nothing but the structure's
    name, perhaps with a number.
    """
    names = (str(stack.first.get("SeriesDescription") or ""), stack.first.path.parent.name)
    for name in names:
        bare = re.sub(r"mask|seg(mentation)?|label|[\d_. -]+", "", name, flags=re.IGNORECASE)
        if re.fullmatch(r"(liver)?(tumou?rs?|lesions?|cancer|metastases)", bare, re.IGNORECASE):
            return "tumour"
        if re.fullmatch(r"liver|leber|foie", bare, re.IGNORECASE):
            return "liver"
    return ""


@dataclass(frozen=True)
class Drawn:
    """One structure of a DICOM-SEG or RTSTRUCT file: the file, the numbers in it, and the series it was drawn on."""

    structure: str
    kind: str  # the file's SOP class
    path: Path
    numbers: tuple[int, ...]
    series: str


@dataclass(frozen=True)
class DrawnMask:
    """A structure of a file on the grid of an image."""

    drawn: Drawn
    image: DicomVolume

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.drawn.path, *self.image.files)

    def read(self) -> sitk.Image:
        image = self.image.read()
        if self.drawn.kind == SEGMENTATION:
            return _read_segments(self.drawn, image)
        return _read_contours(self.drawn, image)


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
    for structure in WORDS:
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
    """Whether a mask series was drawn on an image: one patient and as many slices in the same place."""

    def fits(other: Stack) -> bool:
        return (
            other.first.get("PatientID") == mask.first.get("PatientID")
            and len(other.instances) == len(mask.instances)
            and other.first.get("Rows") == mask.first.get("Rows")
            and bool(np.allclose(other.first.position, mask.first.position, atol=0.1))
        )

    if not fits(image):
        return False
    same_study = [other for other in images if fits(other)]
    if len(same_study) > 1:
        mates = [
            other for other in same_study if other.first.get("StudyInstanceUID") == mask.first.get("StudyInstanceUID")
        ]
        return image is (mates or same_study)[0]
    return True


def _segmentations(instances: Iterable[Instance]) -> list[Drawn]:
    found = []
    for instance in instances:
        if instance.get("SOPClassUID") != SEGMENTATION:
            continue
        header = _opened(instance.path)
        referenced = [str(item.SeriesInstanceUID) for item in header.get("ReferencedSeriesSequence", [])]
        numbers: dict[str, list[int]] = {}
        for segment in header.get("SegmentSequence", []):
            types = segment.get("SegmentedPropertyTypeCodeSequence", [])
            names = [str(segment.get("SegmentLabel", "")), *(str(item.get("CodeMeaning", "")) for item in types)]
            if structure := _named(names):
                numbers.setdefault(structure, []).append(int(segment.SegmentNumber))
        found += [
            Drawn(structure, SEGMENTATION, instance.path, tuple(values), series)
            for structure, values in numbers.items()
            for series in referenced
        ]
    return found


def _contours(instances: Iterable[Instance]) -> list[Drawn]:
    found = []
    for instance in instances:
        if instance.get("SOPClassUID") != RTSTRUCT:
            continue
        header = _opened(instance.path)
        referenced = [
            str(series.SeriesInstanceUID)
            for frame in header.get("ReferencedFrameOfReferenceSequence", [])
            for study in frame.get("RTReferencedStudySequence", [])
            for series in study.get("RTReferencedSeriesSequence", [])
        ]
        numbers: dict[str, list[int]] = {}
        for roi in header.get("StructureSetROISequence", []):
            if structure := _named([str(roi.get("ROIName", ""))]):
                numbers.setdefault(structure, []).append(int(roi.ROINumber))
        found += [
            Drawn(structure, RTSTRUCT, instance.path, tuple(values), series)
            for structure, values in numbers.items()
            for series in referenced
        ]
    return found


def _opened(path: Path) -> pydicom.Dataset:
    """What a DICOM file says, without its pixels. Raises DataError where it cannot be read."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise DataError(f"{path.name} cannot be read as DICOM: {type(error).__name__}") from error


def _named(names: Iterable[str]) -> str:
    """The structure that names tell; a liver tumour is a tumour."""
    text = " ".join(names)
    return next((structure for structure in ("tumour", "liver") if WORDS[structure].search(text)), "")


def _read_segments(drawn: Drawn, image: sitk.Image) -> sitk.Image:
    """Segments of a DICOM-SEG on an image's grid. Raises Refusal where they lie on another one."""
    import highdicom

    segmentation = highdicom.seg.segread(drawn.path)
    try:
        volume = segmentation.get_volume(segment_numbers=list(drawn.numbers), dtype=np.uint8)
    except (ValueError, RuntimeError) as error:
        raise Refusal("the frames of a DICOM-SEG form one volume", str(error)) from None
    array = np.asarray(volume.array)
    merged = volume.with_array(array.max(axis=-1) if array.ndim == 4 else array)
    mask = sitk.DICOMOrient(merged.to_simpleitk(), _orientation(image))
    grid, own = Geometry.of(image), Geometry.of(mask)
    axes = np.array(grid.direction).reshape(3, 3)
    offset = axes.T @ (np.array(own.origin_xyz_mm) - np.array(grid.origin_xyz_mm)) / np.array(grid.spacing_zyx_mm[::-1])
    whole = np.round(offset).astype(int)
    if not (
        np.allclose(own.direction, grid.direction, atol=1e-3)
        and np.allclose(own.spacing_zyx_mm, grid.spacing_zyx_mm, rtol=1e-3)
        and np.allclose(offset, whole, atol=0.05)
    ):
        raise Refusal("a DICOM-SEG lies on the grid of its image", f"{own} but the image has {grid}")
    result = np.zeros(grid.size_zyx, np.uint8)
    first = whole[::-1]
    last = first + np.array(own.size_zyx)
    if (first < 0).any() or (last > np.array(grid.size_zyx)).any():
        raise Refusal("a DICOM-SEG lies inside its image", f"voxels {first.tolist()} to {last.tolist()} (z, y, x)")
    result[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = sitk.GetArrayFromImage(mask)
    placed = sitk.GetImageFromArray(result)
    placed.CopyInformation(image)
    return placed


def _orientation(image: sitk.Image) -> str:
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()))


def _read_contours(drawn: Drawn, image: sitk.Image) -> sitk.Image:
    """Closed planar contours of an RTSTRUCT on an image's grid: voxels whose centre an odd number of contours hold."""
    from matplotlib.path import Path as Outline

    header = pydicom.dcmread(drawn.path)
    size_zyx = Geometry.of(image).size_zyx
    mask = np.zeros(size_zyx, bool)
    for contours in header.get("ROIContourSequence", []):
        if int(contours.ReferencedROINumber) not in drawn.numbers:
            continue
        for contour in contours.get("ContourSequence", []):
            if contour.get("ContourGeometricType", "CLOSED_PLANAR") != "CLOSED_PLANAR":
                continue
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            index = np.array([image.TransformPhysicalPointToContinuousIndex(point.tolist()) for point in points])
            z = round(float(index[:, 2].mean()))
            if float(np.abs(index[:, 2] - z).max()) > CONTOUR_TOLERANCE:
                raise Refusal("every contour lies in a slice of its image", f"one from {index[:, 2].min():.1f} on")
            if not 0 <= z < size_zyx[0]:
                raise Refusal("every contour lies inside its image", f"a contour at slice {z} of {size_zyx[0]}")
            low = np.maximum(np.floor(index[:, :2].min(axis=0)).astype(int), 0)
            high = np.minimum(np.ceil(index[:, :2].max(axis=0)).astype(int) + 1, (size_zyx[2], size_zyx[1]))
            if (high <= low).any():
                continue
            xs, ys = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]))
            inside = Outline(index[:, :2], closed=False).contains_points(np.column_stack([xs.ravel(), ys.ravel()]))
            mask[z, low[1] : high[1], low[0] : high[0]] ^= inside.reshape(xs.shape)
    result = sitk.GetImageFromArray(mask.astype(np.uint8))
    result.CopyInformation(image)
    return result

"""Masks drawn on a DICOM series: segments of a DICOM-SEG and contours of an RTSTRUCT.

Positions are LPS millimetres.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk

from hepar.errors import DataError, Refusal, one_line
from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Geometry
from hepar.ingest.sources.dicom import RTSTRUCT, SEGMENTATION, Instance
from hepar.ingest.sources.dicom_volume import DicomVolume
from hepar.ingest.sources.structure_names import Meaning, meaning

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")  # of the types of contours; the first if none is given
MIN_EXTENT_MM = 1e-3  # of a region
MIN_GAPS_OF_ROI, MIN_GAPS_OF_SEGMENT = 2, 4  # in a row and alike: fewer may lie between parts of one slice each
CONTOUR_TOLERANCE = 0.4  # of the step between slices
NOTHING = Meaning()


class Outline(StrEnum):
    """What a file shows of a structure."""

    NONE = "none"  # its ROIs are empty
    MARKS = "marks"  # one of its ROIs has points or open lines only, which enclose nothing
    REGIONS = "regions"  # each ROI that is not empty encloses something
    UNREAD = "unread"  # segments, whose pixels are not read yet
    UNCLEAR = "unclear"  # something whose name is not understood, but may concern the structure


@dataclass(frozen=True)
class Drawn:
    """One structure of a DICOM-SEG or RTSTRUCT file, and the UIDs of the series and slices that it was drawn on."""

    structure: str
    kind: str  # the file's SOP class
    path: Path
    numbers: tuple[int, ...]  # of its segments or ROIs
    series: frozenset[str]
    slices: frozenset[str]  # empty if the file names none
    outline: Outline = Outline.UNREAD


@dataclass(frozen=True)
class DrawnMask:
    """A drawn structure as a mask on the grid of its image."""

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


@dataclass(frozen=True)
class Undrawable:
    """A DICOM-SEG or RTSTRUCT file that cannot be used, and the series that it names."""

    path: Path
    series: frozenset[str]
    fault: Refusal


def find_drawn(instance: Instance) -> list[Drawn] | Undrawable:
    """Liver and tumour in one DICOM-SEG or RTSTRUCT file."""
    try:
        return [*find_segments([instance]), *find_contours([instance])]
    except MemoryError:
        raise
    except Exception as error:  # whatever is missing or wrong in its sequences
        reason = error.value if isinstance(error, Refusal) else f"reading one raises {type(error).__name__}"
        fault = Refusal("every DICOM-SEG and RTSTRUCT is complete", reason)
        return Undrawable(instance.path, _named_series(instance.path), fault)


def _named_series(path: Path) -> frozenset[str]:
    """Every series that a file names anywhere, as far as it can be read."""
    found: set[str] = set()
    with suppress(Exception):
        for element in _read_without_pixels(path).iterall():
            if element.keyword == "SeriesInstanceUID":
                found.add(str(element.value))
    return frozenset(found)


def find_segments(instances: Iterable[Instance]) -> list[Drawn]:
    """Liver and tumour among the segments of the DICOM-SEG instances, by their labels and types."""
    found = []
    for instance in instances:
        if instance.get("SOPClassUID") != SEGMENTATION:
            continue
        header = _read_without_pixels(instance.path)
        series = [str(item.SeriesInstanceUID) for item in header.get("ReferencedSeriesSequence", [])]
        segments = [(item, meaning(_names(item))) for item in header.get("SegmentSequence", [])]
        named = [(int(item.SegmentNumber), means) for item, means in segments if means != NOTHING]
        found += [
            Drawn(
                structure, SEGMENTATION, instance.path, values, frozenset(series), _slices_of_segments(header), outline
            )
            for outline, numbers in ((Outline.UNREAD, _meant(named)), (Outline.UNCLEAR, _unclear(named)))
            for structure, values in numbers.items()
        ]
    return found


def _slices_of_segments(header: pydicom.Dataset) -> frozenset[str]:
    """The SOPInstanceUIDs of the slices that the frames of a DICOM-SEG come from, or of all that it names."""
    frames = header.get("PerFrameFunctionalGroupsSequence", [])
    derivations = [item for frame in frames for item in frame.get("DerivationImageSequence", [])]
    series = header.get("ReferencedSeriesSequence", [])
    return _referenced(derivations, "SourceImageSequence") or _referenced(series, "ReferencedInstanceSequence")


def _referenced(items: Iterable[pydicom.Dataset], name: str) -> frozenset[str]:
    """The SOPInstanceUIDs in a sequence of each item."""
    return frozenset(str(slice_.ReferencedSOPInstanceUID) for item in items for slice_ in item.get(name) or ())


def _names(segment: pydicom.Dataset) -> tuple[str, ...]:
    """The label of a segment, its type and the region of the body that it lies in."""
    codes = ("SegmentedPropertyTypeCodeSequence", "AnatomicRegionSequence")
    meanings = [str(code.get("CodeMeaning", "")) for name in codes for code in segment.get(name, [])]
    return (str(segment.get("SegmentLabel", "")), *meanings)


def _meant(named: Sequence[tuple[int, Meaning]]) -> dict[str, tuple[int, ...]]:
    """The numbers of the ROIs or segments that are each structure."""
    found = {means.structure for _, means in named if means.structure}
    return {key: tuple(number for number, means in named if means.structure == key) for key in sorted(found)}


def _unclear(named: Sequence[tuple[int, Meaning]]) -> dict[str, tuple[int, ...]]:
    """The numbers of the ROIs or segments that may concern each structure, but are not understood."""
    found = {key for _, means in named for key in means.unclear}
    return {key: tuple(number for number, means in named if key in means.unclear) for key in sorted(found)}


def find_contours(instances: Iterable[Instance]) -> list[Drawn]:
    """Liver and tumour among the ROIs of the RTSTRUCT instances, by their names."""
    found = []
    for instance in instances:
        if instance.get("SOPClassUID") != RTSTRUCT:
            continue
        header = _read_without_pixels(instance.path)
        referenced = [
            series
            for frame in header.get("ReferencedFrameOfReferenceSequence", [])
            for study in frame.get("RTReferencedStudySequence", [])
            for series in study.get("RTReferencedSeriesSequence", [])
        ]
        rois = [(roi, meaning([str(roi.get("ROIName", ""))])) for roi in header.get("StructureSetROISequence", [])]
        named = [(int(roi.ROINumber), means) for roi, means in rois if means != NOTHING]
        shown = [(number, means) for number, means in named if any(_contours(header, number))]
        series = frozenset(str(item.SeriesInstanceUID) for item in referenced)
        listed = _referenced(referenced, "ContourImageSequence")
        for structure, values, outline in (
            *((key, values, _outline(header, values)) for key, values in _meant(named).items()),
            *((key, values, Outline.UNCLEAR) for key, values in _unclear(shown).items()),
        ):
            contours = [contour for number in values for contour in _contours(header, number)]
            slices = _referenced(contours, "ContourImageSequence") or listed
            found.append(Drawn(structure, RTSTRUCT, instance.path, values, series, slices, outline))
    return found


def _outline(header: pydicom.Dataset, numbers: Sequence[int]) -> Outline:
    """What the ROIs of an RTSTRUCT show together."""
    shown = set()
    for number in numbers:
        contours = list(_contours(header, number))
        regions = any(_encloses(contour) for contour in contours)
        shown.add(Outline.REGIONS if regions else Outline.MARKS if contours else Outline.NONE)
    return next(outline for outline in (Outline.MARKS, Outline.REGIONS, Outline.NONE) if outline in shown)


def _contours(header: pydicom.Dataset, number: int) -> Iterator[pydicom.Dataset]:
    """The contours of an ROI that have points."""
    for item in header.get("ROIContourSequence") or ():
        if item.get("ReferencedROINumber") == number:
            yield from (contour for contour in item.get("ContourSequence") or () if contour.get("ContourData"))


def _encloses(contour: pydicom.Dataset) -> bool:
    """Whether a contour is closed and has three points that are not on one line."""
    if contour.get("ContourGeometricType", CLOSED[0]) not in CLOSED:
        return False
    points_n3_mm = np.array(contour.ContourData, float).reshape(-1, 3)
    return int(np.linalg.matrix_rank(points_n3_mm - points_n3_mm[0], tol=MIN_EXTENT_MM)) >= 2


def _read_without_pixels(path: Path) -> pydicom.Dataset:
    """A DICOM file without its pixels. Raises DataError if it cannot be read."""
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise DataError(f"{path.name} cannot be read as DICOM: {type(error).__name__}") from error


def _read_segments(drawn: Drawn, image: sitk.Image) -> sitk.Image:
    """Segments of a DICOM-SEG as a mask on an image's grid. Raises Refusal if they lie on another grid."""
    import highdicom

    segmentation = highdicom.seg.segread(drawn.path)
    try:
        volume = segmentation.get_volume(segment_numbers=list(drawn.numbers), dtype=np.uint8)
    except (ValueError, RuntimeError) as error:
        raise Refusal("the frames of a DICOM-SEG form one volume", one_line(error)) from None
    voxels_zyxn = np.asarray(volume.array)
    if voxels_zyxn.ndim == 3:
        voxels_zyxn = voxels_zyxn[..., None]
    for index, number in enumerate(drawn.numbers):
        _check_gaps(voxels_zyxn[..., index], f"segment {number}", MIN_GAPS_OF_SEGMENT)
    merged = volume.with_array(voxels_zyxn.max(axis=-1))
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
    mask_zyx = np.zeros(grid.size_zyx, np.uint8)
    first = whole[::-1]
    last = first + np.array(own.size_zyx)
    if (first < 0).any() or (last > np.array(grid.size_zyx)).any():
        raise Refusal("a DICOM-SEG lies inside its image", f"voxels {first.tolist()} to {last.tolist()} (z, y, x)")
    mask_zyx[tuple(slice(a, b) for a, b in zip(first, last, strict=True))] = sitk.GetArrayFromImage(mask)
    placed = sitk.GetImageFromArray(mask_zyx)
    placed.CopyInformation(image)
    return placed


def _check_gaps(part_zyx: Mask, name: str, enough: int) -> None:
    """Raise Refusal if a part of a mask skips slices at `enough` even distances in a row, to one slice.

    So does what was drawn on every second or third slice to be interpolated later. One larger gap separates two parts.
    """
    slices = np.flatnonzero(part_zyx.any(axis=(1, 2)))
    steps = np.diff(slices)
    for first in range(len(steps) - enough + 1):
        run = steps[first : first + enough]
        if run.min() > 1 and np.ptp(run) <= 1:
            value = f"{enough + 1} of the {len(slices)} slices of {name} lie {run.min()} apart"
            raise Refusal("a mask is drawn on every slice of its structure", value)


def _orientation(image: sitk.Image) -> str:
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()))


def _read_contours(drawn: Drawn, image: sitk.Image) -> sitk.Image:
    """ROIs of an RTSTRUCT on an image's grid: their closed contours, filled by the odd-even rule at voxel centres.

    Raises Refusal if a contour lies between slices or outside the image, or an ROI skips slices.
    """
    header = pydicom.dcmread(drawn.path)
    size_zyx = Geometry.of(image).size_zyx
    mask_zyx = np.zeros(size_zyx, bool)
    for number in drawn.numbers:
        roi_zyx = np.zeros(size_zyx, bool)  # one each, for where two overlap the odd-even rule would leave a hole
        for contour in filter(_encloses, _contours(header, number)):
            points_mm = np.array(contour.ContourData, float).reshape(-1, 3)
            _fill_contour(
                roi_zyx,
                np.array([image.TransformPhysicalPointToContinuousIndex(point.tolist()) for point in points_mm]),
            )
        _check_gaps(roi_zyx, f"ROI {number}", MIN_GAPS_OF_ROI)
        mask_zyx |= roi_zyx
    result = sitk.GetImageFromArray(mask_zyx.astype(np.uint8))
    result.CopyInformation(image)
    return result


def _fill_contour(mask_zyx: Mask, index_n3_xyz: npt.NDArray[np.float64]) -> None:
    """Invert the voxels of a mask whose centres lie inside one contour, given in continuous voxel indices x, y, z."""
    from matplotlib.path import Path as Polygon

    depth, height, width = mask_zyx.shape
    z = round(float(index_n3_xyz[:, 2].mean()))
    if float(np.abs(index_n3_xyz[:, 2] - z).max()) > CONTOUR_TOLERANCE:
        raise Refusal(
            "every contour lies in a slice of its image", f"a contour from slice {index_n3_xyz[:, 2].min():.1f}"
        )
    if not 0 <= z < depth:
        raise Refusal("every contour lies inside its image", f"a contour at slice {z} of {depth}")
    corners_n2_xy = index_n3_xyz[:, :2]
    low = np.maximum(np.floor(corners_n2_xy.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(corners_n2_xy.max(axis=0)).astype(int) + 1, (width, height))
    if (high <= low).any():
        return
    xs, ys = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]))
    inside = Polygon(corners_n2_xy, closed=False).contains_points(np.column_stack([xs.ravel(), ys.ravel()]))
    mask_zyx[z, low[1] : high[1], low[0] : high[0]] ^= inside.reshape(xs.shape)

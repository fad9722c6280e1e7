"""Masks as a DICOM Segmentation object on the slices of the scan (DICOM PS3.3, A.51), with SNOMED codes.

Each frame lies on a source slice, also where the scan was resampled because its gantry was tilted or its steps were
uneven: a voxel of the slice takes the value of the nearest voxel of the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from scipy import ndimage

from hepar import __version__
from hepar.cases import LIVER, TUMOUR
from hepar.errors import DataError, one_line
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.imaging.masks import Mask, bounding_box, find_components
from hepar.imaging.parallel_grids import Box, inner_box, shared_slices
from hepar.imaging.volumes import Geometry
from hepar.ingest.sources.dicom import ENHANCED
from hepar.prediction.predicted_scan import PredictedScan, Predictor

MAX_LESION_SEGMENTS = 30  # each takes room in all frames while the object is made; more lesions are one segment
MANUFACTURER = "hepar"
SERIES_DESCRIPTION = "Liver and tumours, RESEARCH USE ONLY"
SEGMENTATION_SERIES, REPORT_SERIES = 9001, 9002  # series numbers, beyond those of scanners
ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
ABNORMAL = Code("49755003", "SCT", "Morphologically Altered Structure")
LIVER_LABEL = "Liver"
LIVER_CODE, NEOPLASM = Code("10200004", "SCT", "Liver"), Code("108369006", "SCT", "Neoplasm")
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """One segment: its label, structure, and mask in a box of the grid of the prediction that holds all of it."""

    label: str
    structure: int
    mask_zyx: Mask
    box: Box

    @classmethod
    def of(cls, label: str, structure: int, mask_zyx: Mask) -> Segment:
        """The segment of a mask on the whole grid, which is not empty."""
        box = bounding_box(mask_zyx)
        assert box is not None
        return cls(label, structure, mask_zyx[box], box)


@dataclass(frozen=True)
class PlaneVoxels:
    """The voxels of a grid nearest to the pixels of a slice: indices along z, y and x, each int of rows × columns.

    They lie outside the grid where the slice does. `box` holds all of them.
    """

    index_zyx: tuple[npt.NDArray[np.int64], ...]
    box: Box

    def cut(self, segment: Segment) -> Mask | None:
        """The segment on the slice, bool of rows × columns; None if no pixel is inside."""
        if shared_slices(self.box, segment.box) is None:
            return None
        inside_yx = np.ones(self.index_zyx[0].shape, np.bool_)
        for index_yx, part in zip(self.index_zyx, segment.box, strict=True):
            inside_yx &= (index_yx >= part.start) & (index_yx < part.stop)
        place = tuple(
            index_yx[inside_yx] - part.start for index_yx, part in zip(self.index_zyx, segment.box, strict=True)
        )
        inside_yx[inside_yx] = segment.mask_zyx[place]
        return inside_yx if inside_yx.any() else None


@dataclass(frozen=True)
class SlicePlane:
    """Where a slice or frame lies: its first pixel's centre, and the steps to the next column and row, in LPS mm."""

    first_lps_mm: Vector
    column_step_mm: Vector
    row_step_mm: Vector

    def voxels(self, grid: Geometry, rows: int, columns: int) -> PlaneVoxels:
        """The voxels of a grid nearest to its pixels."""
        to_index = np.linalg.inv(np.array(grid.direction).reshape(3, 3) * np.array(grid.spacing_zyx_mm[::-1]))
        first, column, row = (
            to_index @ vector
            for vector in (self.first_lps_mm - grid.origin_xyz_mm, self.column_step_mm, self.row_step_mm)
        )
        y, x = np.ogrid[:rows, :columns]
        index_zyx = tuple(np.round(first[a] + y * row[a] + x * column[a]).astype(np.int64) for a in (2, 1, 0))
        box = tuple(slice(int(index_yx.min()), int(index_yx.max()) + 1) for index_yx in index_zyx)
        return PlaneVoxels(index_zyx, box)


def make_segments(predicted: PredictedScan, by_lesion: bool) -> list[Segment]:
    """The liver, and each lesion or all tumours as one; a structure that is empty or was not taught has no segment."""
    found, segments = predicted.found, []
    if found.liver_zyx.any():
        segments.append(Segment.of(LIVER_LABEL, LIVER, found.liver_zyx))
    count = len(found.lesions)
    if by_lesion and 0 < count <= MAX_LESION_SEGMENTS:
        lesions = find_components(found.tumour_zyx)
        for number, inner in enumerate(ndimage.find_objects(lesions.labels_zyx), start=1):
            lesion_zyx = lesions.labels_zyx[inner] == number
            segments.append(Segment(lesion_label(number), TUMOUR, lesion_zyx, inner_box(lesions.box, inner)))
    elif count:
        segments.append(Segment.of("Tumours", TUMOUR, found.tumour_zyx))
    return segments


def lesion_label(number: int) -> str:
    """The label of a lesion's segment and of its measurements."""
    return f"Lesion {number}"


@contextmanager
def headers_that_fit(predicted: PredictedScan, made: str) -> Iterator[None]:
    """Within the block highdicom makes an object, named `made`, out of the headers of a scan.

    Raises DataError naming the scan for the errors that bad headers cause.
    """
    try:
        yield
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{predicted.scan.name}: no {made} can be made of its headers: {one_line(error)}") from None


def make_segmentation(predicted: PredictedScan, segments: Sequence[Segment], sources: Sequence[pydicom.Dataset]) -> Any:
    """A `highdicom.seg.Segmentation` of at least one segment. Raises DataError if the headers do not allow it."""
    import highdicom

    planes = _planes(sources)
    rows, columns = int(sources[0].Rows), int(sources[0].Columns)
    frames = [_frames(plane.voxels(predicted.found.geometry, rows, columns), segments) for plane in planes]
    if len(sources) == len(planes):  # single slices: those without anything are left out
        used = [index for index, of_slice in enumerate(frames) if of_slice] or [0]
        sources, frames = [sources[index] for index in used], [frames[index] for index in used]
    pixels = np.zeros((len(frames), len(segments), rows, columns), np.uint8)  # what stays 0 takes no memory
    for place, of_slice in enumerate(frames):
        for number, mask_yx in of_slice.items():
            pixels[place, number] = mask_yx
    with headers_that_fit(predicted, "DICOM-SEG"):
        made = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=np.moveaxis(pixels, 1, -1),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe(segment, n, predicted) for n, segment in enumerate(segments, start=1)],
            series_instance_uid=generate_uid(),
            series_number=SEGMENTATION_SERIES,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=__version__,
            device_serial_number=predicted.predictor.model_hash[:16],
            content_label="LIVER_TUMOURS",
            content_description=RESEARCH_USE,
            series_description=SERIES_DESCRIPTION,
        )
    for description, segment in zip(made.SegmentSequence, segments, strict=True):
        description.SegmentDescription = f"{segment.label}{', tumours included' if segment.structure == LIVER else ''}"
    return made


def _frames(voxels: PlaneVoxels, segments: Sequence[Segment]) -> dict[int, Mask]:
    """The segments that a slice meets, by their places in the list, each bool of rows × columns."""
    cuts = {number: voxels.cut(segment) for number, segment in enumerate(segments)}
    return {number: mask_yx for number, mask_yx in cuts.items() if mask_yx is not None}


def algorithm(predictor: Predictor) -> Any:
    """Program and model as DICOM identifies them."""
    import highdicom

    return highdicom.AlgorithmIdentificationSequence(
        name="hepar",
        family=Code("123110", "DCM", "Artificial Intelligence"),
        version=f"{__version__} model {predictor.model_hash[:12]}",
    )


def _describe(segment: Segment, number: int, predicted: PredictedScan) -> Any:
    import highdicom

    is_liver = segment.structure == LIVER
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment.label,
        segmented_property_category=ANATOMY if is_liver else ABNORMAL,
        segmented_property_type=LIVER_CODE if is_liver else NEOPLASM,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm(predicted.predictor),
        tracking_uid=generate_uid(),
        tracking_id=segment.label,
        anatomic_regions=None if is_liver else [LIVER_CODE],
    )


def _planes(sources: Sequence[pydicom.Dataset]) -> list[SlicePlane]:
    """The planes of slices, or of the frames of one multi-frame file, in their order."""
    if len(sources) > 1 or sources[0].SOPClassUID not in ENHANCED:
        return [
            _plane(source.ImagePositionPatient, source.ImageOrientationPatient, source.PixelSpacing)
            for source in sources
        ]
    shared = sources[0].SharedFunctionalGroupsSequence[0]
    planes = []
    for frame in sources[0].PerFrameFunctionalGroupsSequence:

        def group(name: str, frame: pydicom.Dataset = frame) -> Any:
            return (frame if name in frame else shared)[name].value[0]

        planes.append(
            _plane(
                group("PlanePositionSequence").ImagePositionPatient,
                group("PlaneOrientationSequence").ImageOrientationPatient,
                group("PixelMeasuresSequence").PixelSpacing,
            )
        )
    return planes


def _plane(position: Sequence[float], orientation: Sequence[float], spacing: Sequence[float]) -> SlicePlane:
    along_row, along_column = np.array(orientation, float).reshape(2, 3)
    row_mm, column_mm = (float(value) for value in spacing)
    return SlicePlane(np.array(position, float), along_row * column_mm, along_column * row_mm)

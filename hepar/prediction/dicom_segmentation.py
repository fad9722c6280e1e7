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

from hepar import __version__
from hepar.cases import LIVER, TUMOUR
from hepar.errors import DataError, one_line
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.imaging.masks import Mask, find_components
from hepar.imaging.volumes import Geometry
from hepar.ingest.sources.dicom import ENHANCED
from hepar.prediction.frame_of_reference import add_frame
from hepar.prediction.predicted_scan import PredictedScan, Predictor

MAX_LESION_SEGMENTS = 30  # each takes a byte a voxel while the object is made; more lesions are one segment
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
    """One segment: its label, structure, and mask on the grid of the prediction."""

    label: str
    structure: int
    mask_zyx: Mask


@dataclass(frozen=True)
class SlicePlane:
    """Where a slice or frame lies: its first pixel's centre, and the steps to the next column and row, in LPS mm."""

    first_lps_mm: Vector
    column_step_mm: Vector
    row_step_mm: Vector

    def cut(self, mask_zyx: Mask, grid: Geometry, rows: int, columns: int) -> Mask:
        """The mask on this plane, bool of rows × columns: its nearest voxels, False outside its grid."""
        to_index = np.linalg.inv(np.array(grid.direction).reshape(3, 3) * np.array(grid.spacing_zyx_mm[::-1]))
        first, column, row = (
            to_index @ vector
            for vector in (self.first_lps_mm - grid.origin_xyz_mm, self.column_step_mm, self.row_step_mm)
        )
        y, x = np.ogrid[:rows, :columns]
        index_xyz = [np.round(first[a] + y * row[a] + x * column[a]).astype(int) for a in range(3)]
        inside_yx = np.ones((rows, columns), np.bool_)
        for index_yx, size in zip(index_xyz, grid.size_zyx[::-1], strict=True):
            inside_yx &= (index_yx >= 0) & (index_yx < size)
        x_yx, y_yx, z_yx = (np.where(inside_yx, index_yx, 0) for index_yx in index_xyz)
        return np.asarray(mask_zyx[z_yx, y_yx, x_yx] & inside_yx)


def make_segments(predicted: PredictedScan, by_lesion: bool) -> list[Segment]:
    """The liver, and each lesion or all tumours as one; a structure that is empty or was not taught has no segment."""
    found, segments = predicted.found, []
    if found.liver_zyx.any():
        segments.append(Segment(LIVER_LABEL, LIVER, found.liver_zyx))
    count = len(found.lesions)
    if by_lesion and count <= MAX_LESION_SEGMENTS:
        lesions = find_components(found.tumour_zyx)
        for number in range(1, count + 1):
            mask_zyx = np.zeros(found.tumour_zyx.shape, np.bool_)
            mask_zyx[lesions.box] = lesions.labels_zyx == number
            segments.append(Segment(lesion_label(number), TUMOUR, mask_zyx))
    elif count:
        segments.append(Segment("Tumours", TUMOUR, found.tumour_zyx))
    return segments


def lesion_label(number: int) -> str:
    """The label of a lesion's segment and of its measurements."""
    return f"Lesion {number}"


def read_sources(predicted: PredictedScan) -> list[pydicom.Dataset]:
    """The headers of the slices of a DICOM scan, or of its multi-frame file, with a frame of reference."""
    assert predicted.scan.stack is not None
    paths = predicted.scan.stack.paths
    sources: list[pydicom.Dataset] = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    add_frame(sources)
    return sources


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
    used = list(range(len(planes)))
    if len(sources) == len(planes):  # single slices: those without anything are left out
        whole = np.logical_or.reduce([segment.mask_zyx for segment in segments])
        cuts = [plane.cut(whole, predicted.found.geometry, rows, columns).any() for plane in planes]
        used = [index for index, any_inside in enumerate(cuts) if any_inside] or [0]
        sources = [sources[index] for index in used]
    pixels = np.zeros((len(used), rows, columns, len(segments)), np.uint8)
    for place, index in enumerate(used):
        for number, segment in enumerate(segments):
            pixels[place, ..., number] = planes[index].cut(segment.mask_zyx, predicted.found.geometry, rows, columns)
    with headers_that_fit(predicted, "DICOM-SEG"):
        made = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=pixels,
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

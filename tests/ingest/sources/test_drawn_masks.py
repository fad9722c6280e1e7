"""Masks drawn on a DICOM series: what an empty ROI, a point, an outline and an empty segment say about a structure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import phantom_voxels, write_series
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hepar.cases import LabelState
from hepar.ingest.building import build_case, hash_source
from hepar.ingest.cohort_building import build_cases
from hepar.ingest.quarantine import Refused
from hepar.ingest.sources import dicom_tree
from hepar.ingest.sources.dicom import RTSTRUCT
from hepar.ingest.sources.dicom_tree import Reading
from hepar.ingest.sources.source import SourceCase
from hepar.ingest.splits import assign_splits
from hepar.params import Params

KEY = b"a key of the tests"
Corners = Sequence[tuple[float, float]]
Contour = tuple[str, Corners]  # geometric type, and corners in voxels x, y of slice 3
SQUARE: Corners = ((4.5, 4.5), (12.5, 4.5), (12.5, 10.5), (4.5, 10.5))
LOWER: Corners = ((4.5, 7.5), (12.5, 7.5), (12.5, 13.5), (4.5, 13.5))
EmptyRoi = Literal["unknown", "absent"]


def write_rois(
    folder: Path, rois: Sequence[Sequence[Contour]], names: Sequence[str] = ("Tumour 1", "Tumour 2")
) -> None:
    """A scan, and an RTSTRUCT with these ROIs."""
    first = pydicom.dcmread(write_series(folder / "scan", phantom_voxels())[0])
    (case,) = dicom_tree.read(folder / "scan", Reading(KEY))
    image = case.image.read()
    structures, series, study, frame = (Dataset() for _ in range(4))
    series.SeriesInstanceUID = first.SeriesInstanceUID
    study.RTReferencedSeriesSequence = Items([series])
    frame.RTReferencedStudySequence = Items([study])
    structures.ReferencedFrameOfReferenceSequence = Items([frame])
    structures.StructureSetROISequence, structures.ROIContourSequence = Items([]), Items([])
    for number, contours in enumerate(rois, start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber = drawn.ReferencedROINumber = number
        roi.ROIName = names[number - 1]
        drawn.ContourSequence = Items([_contour(image, kind, corners) for kind, corners in contours])
        structures.StructureSetROISequence.append(roi)
        structures.ROIContourSequence.append(drawn)
    structures.SOPClassUID, structures.SOPInstanceUID = RTSTRUCT, generate_uid()
    structures.SeriesInstanceUID, structures.StudyInstanceUID = generate_uid(), first.StudyInstanceUID
    structures.PatientID, structures.Modality = first.PatientID, "RTSTRUCT"
    structures.file_meta = FileMetaDataset()
    structures.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    structures.file_meta.MediaStorageSOPClassUID = RTSTRUCT
    structures.file_meta.MediaStorageSOPInstanceUID = structures.SOPInstanceUID
    pydicom.dcmwrite(folder / "rs.dcm", structures, enforce_file_format=True)


def _contour(image: sitk.Image, kind: str, corners: Corners) -> Dataset:
    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = kind, len(corners)
    points = [image.TransformContinuousIndexToPhysicalPoint((x, y, 3.0)) for x, y in corners]
    item.ContourData = [f"{value:.5f}" for point in points for value in point]
    return item


def read_one(folder: Path, empty_roi: EmptyRoi = "unknown") -> SourceCase:
    (case,) = dicom_tree.read(folder, Reading(KEY, empty_roi=empty_roi))
    return case


def test_an_empty_roi_is_unknown_unless_the_params_say_absent(tmp_path: Path) -> None:
    write_rois(tmp_path, [[]])
    assert (read_one(tmp_path).tumour, read_one(tmp_path).tumour_state) == (None, LabelState.UNKNOWN)
    absent = read_one(tmp_path, "absent")
    assert (absent.tumour, absent.tumour_state) == (None, LabelState.ABSENT)
    assert absent.liver_state == LabelState.UNKNOWN  # it has no ROI


@pytest.mark.parametrize("empty_roi", ["unknown", "absent"])
@pytest.mark.parametrize(
    "contour",
    [
        ("POINT", SQUARE[:1]),
        ("CLOSED_PLANAR", SQUARE[:1]),
        ("CLOSED_PLANAR", SQUARE[:2]),
        ("CLOSED_PLANAR", ((4.0, 4.0), (6.0, 6.0), (8.0, 8.0))),
        ("OPEN_PLANAR", SQUARE),
    ],
    ids=["point", "one corner", "two corners", "on a line", "open"],
)
def test_a_mark_that_encloses_nothing_is_never_tumour_free(
    contour: Contour, empty_roi: EmptyRoi, tmp_path: Path
) -> None:
    write_rois(tmp_path, [[contour]])
    case = read_one(tmp_path, empty_roi)
    assert (case.tumour, case.tumour_state) == (None, LabelState.UNKNOWN)


def test_a_lesion_that_is_marked_beside_an_outlined_one_leaves_the_tumour_unknown(tmp_path: Path) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)], [("POINT", LOWER[:1])]])
    assert read_one(tmp_path).tumour_state == LabelState.UNKNOWN


def test_an_empty_roi_beside_an_outlined_one_changes_nothing(tmp_path: Path) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)], []])
    case = read_one(tmp_path)
    assert case.tumour_state == LabelState.MANUAL
    assert case.tumour is not None
    assert int(sitk.GetArrayFromImage(case.tumour.read()).sum()) == 8 * 6


@pytest.mark.parametrize("other", ["Kidney tumor", "PTV liver", "Liver minus tumor"])
def test_an_roi_of_something_else_is_neither_liver_nor_tumour(other: str, tmp_path: Path) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)], [("CLOSED_PLANAR", LOWER)]], ("HCC1", other))
    case = read_one(tmp_path)
    assert (case.liver_state, case.tumour_state) == (LabelState.UNKNOWN, LabelState.MANUAL)
    assert case.tumour is not None
    assert int(sitk.GetArrayFromImage(case.tumour.read()).sum()) == 8 * 6


def test_an_roi_with_an_unclear_name_leaves_its_structures_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("Tumour 1", "HCC of Grimaldi")
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)], [("CLOSED_PLANAR", LOWER)]], names)
    case = read_one(tmp_path)
    assert (case.tumour, case.tumour_state) == (None, LabelState.UNKNOWN)
    logged = " ".join("".join(capsys.readouterr()).split())
    assert f"case {case.case_id}: tumour unknown, as the name of ROI 2 is not understood" in logged
    assert "Grimaldi" not in logged


def test_an_empty_roi_with_an_unclear_name_changes_nothing(tmp_path: Path) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)], []], ("Tumour 1", "Tumour bed"))
    assert read_one(tmp_path).tumour_state == LabelState.MANUAL


def test_rois_that_overlap_are_united(tmp_path: Path) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)], [("CLOSEDPLANAR_XOR", LOWER)]])
    case = read_one(tmp_path)
    assert case.tumour is not None
    assert int(sitk.GetArrayFromImage(case.tumour.read()).sum()) == 8 * 9


@pytest.mark.parametrize("empty_roi", ["unknown", "absent"])
def test_an_outline_smaller_than_a_voxel_is_unknown(empty_roi: EmptyRoi, tmp_path: Path, tiny: Params) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", ((4.2, 4.2), (4.4, 4.2), (4.4, 4.4)))]])
    listed = assign_splits([read_one(tmp_path, empty_roi)], tiny.ingest.split)
    built = build_case(listed[0], tmp_path / "cohort")
    assert not isinstance(built, Refused)
    assert built.case.tumour_state == LabelState.UNKNOWN


@pytest.mark.parametrize("empty_roi", ["unknown", "absent"])
def test_an_empty_segment_is_unknown_unless_the_params_say_absent(
    empty_roi: EmptyRoi, tmp_path: Path, tiny: Params
) -> None:
    images = [pydicom.dcmread(path) for path in write_series(tmp_path / "scan", phantom_voxels())]
    description = highdicom.seg.SegmentDescription(
        1,
        "Lesion",
        codes.SCT.MorphologicallyAbnormalStructure,
        codes.SCT.Neoplasm,
        highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    highdicom.seg.Segmentation(
        images,
        np.zeros((12, 20, 24), np.uint8),
        highdicom.seg.SegmentationTypeValues.BINARY,
        [description],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=False,
    ).save_as(tmp_path / "seg.dcm")
    listed = assign_splits([read_one(tmp_path, empty_roi)], tiny.ingest.split)
    (case,), refused = build_cases(listed, tmp_path / "cohort", earlier=None)
    assert refused == []
    assert (case.tumour_state, case.tumour) == (LabelState(empty_roi), "")
    other: EmptyRoi = "absent" if empty_roi == "unknown" else "unknown"
    assert hash_source(read_one(tmp_path, other)) != case.source_sha256  # it is not linked under another setting

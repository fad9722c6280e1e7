"""Masks drawn on a DICOM series: what an empty ROI, a point, an outline and an empty segment say about a structure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import Array, phantom_voxels, write_segmentation, write_series
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hepar.cases import LabelState
from hepar.errors import Refusal
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
Contour = tuple[str, Corners]  # geometric type, and corners in voxels x, y
SQUARE: Corners = ((4.5, 4.5), (12.5, 4.5), (12.5, 10.5), (4.5, 10.5))
LOWER: Corners = ((4.5, 7.5), (12.5, 7.5), (12.5, 13.5), (4.5, 13.5))
EmptyRoi = Literal["unknown", "absent"]


def write_rois(
    folder: Path,
    rois: Sequence[Sequence[Contour]],
    names: Sequence[str] = ("Tumour 1", "Tumour 2"),
    slices: Sequence[int] = (3,),
) -> None:
    """A scan, and an RTSTRUCT with these ROIs, each drawn on these slices."""
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
        drawn.ContourSequence = Items([_contour(image, kind, corners, z) for kind, corners in contours for z in slices])
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


def _contour(image: sitk.Image, kind: str, corners: Corners, z: int) -> Dataset:
    item = Dataset()
    item.ContourGeometricType, item.NumberOfContourPoints = kind, len(corners)
    points = [image.TransformContinuousIndexToPhysicalPoint((x, y, float(z))) for x, y in corners]
    item.ContourData = [f"{value:.5f}" for point in points for value in point]
    return item


def write_segment(path: Path, slices: Sequence[Path], mask_zyx: Array) -> None:
    """A DICOM-SEG of a lesion with a frame for every slice."""
    write_segmentation(path, slices, mask_zyx, "Lesion", omit_empty_frames=False)


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


def test_an_roi_on_every_second_slice_is_refused(tmp_path: Path) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)]], slices=(2, 4, 6, 8))
    case = read_one(tmp_path)
    assert case.tumour is not None
    message = r"^a mask is drawn on every slice of its structure: 3 of the 4 slices of ROI 1 lie 2 apart$"
    with pytest.raises(Refusal, match=message):
        case.tumour.read()


def test_an_roi_of_two_parts_is_read(tmp_path: Path) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)]], slices=(1, 2, 6, 7, 8))
    case = read_one(tmp_path)
    assert case.tumour is not None
    drawn = sitk.GetArrayFromImage(case.tumour.read()).any(axis=(1, 2))
    assert np.flatnonzero(drawn).tolist() == [1, 2, 6, 7, 8]


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
    write_segment(
        tmp_path / "seg.dcm", write_series(tmp_path / "scan", phantom_voxels()), np.zeros((12, 20, 24), np.uint8)
    )
    listed = assign_splits([read_one(tmp_path, empty_roi)], tiny.ingest.split)
    (case,), refused = build_cases(listed, tmp_path / "cohort", earlier=None)
    assert refused == []
    assert (case.tumour_state, case.tumour) == (LabelState(empty_roi), "")
    other: EmptyRoi = "absent" if empty_roi == "unknown" else "unknown"
    assert hash_source(read_one(tmp_path, other)) != case.source_sha256  # it is not linked under another setting


def test_a_segment_on_every_second_slice_is_refused(tmp_path: Path) -> None:
    mask_zyx = np.zeros((12, 20, 24), np.uint8)
    mask_zyx[1:10:2, 5:9, 5:9] = 1
    write_segment(tmp_path / "seg.dcm", write_series(tmp_path / "scan", phantom_voxels()), mask_zyx)
    case = read_one(tmp_path)
    assert case.tumour is not None
    with pytest.raises(Refusal, match=r"5 of the 5 slices of segment 1 lie 2 apart$"):
        case.tumour.read()


def two_phases(folder: Path) -> tuple[list[Path], list[Path]]:
    """An RTSTRUCT on a series of two volumes, `scan` and `second`; returns the slices of each."""
    write_rois(folder, [[("CLOSED_PLANAR", SQUARE)]])
    first = sorted((folder / "scan").iterdir())
    header = pydicom.dcmread(first[0])
    uids = {name: header[name].value for name in ("SeriesInstanceUID", "StudyInstanceUID")}
    return first, write_series(folder / "second", phantom_voxels(seed=1), AcquisitionNumber=2, **uids)


def name_slice(structures: Path, slice_: Path) -> None:
    """Let every contour name a slice of an image."""
    dataset = pydicom.dcmread(structures)
    item = Dataset()
    item.ReferencedSOPInstanceUID = pydicom.dcmread(slice_).SOPInstanceUID
    for drawn in dataset.ROIContourSequence:
        for contour in drawn.ContourSequence:
            contour.ContourImageSequence = Items([item])
    dataset.save_as(structures)


def tumour_states(folder: Path) -> dict[str, LabelState]:
    """The state of the tumour by the folder of each image; `refused` of those that are."""
    cases = dicom_tree.read(folder, Reading(KEY))
    return {case.image.files[0].parent.name if not case.fault else "refused": case.tumour_state for case in cases}


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("kind", ["RTSTRUCT", "DICOM-SEG"])
def test_a_mask_belongs_to_the_volume_of_a_series_whose_slices_it_names(kind: str, phase: int, tmp_path: Path) -> None:
    slices = two_phases(tmp_path)[phase]
    if kind == "RTSTRUCT":
        name_slice(tmp_path / "rs.dcm", slices[3])
    else:
        (tmp_path / "rs.dcm").unlink()
        write_segment(tmp_path / "seg.dcm", slices, np.ones((12, 20, 24), np.uint8))
    states = tumour_states(tmp_path)
    assert states.pop(("scan", "second")[phase]) == LabelState.MANUAL
    assert states == {("second", "scan")[phase]: LabelState.UNKNOWN}


def test_a_mask_of_a_series_of_two_volumes_that_names_no_slice_is_refused(tmp_path: Path) -> None:
    two_phases(tmp_path)
    assert tumour_states(tmp_path) == dict.fromkeys(("scan", "second", "refused"), LabelState.UNKNOWN)
    (fault,) = [case.fault for case in dicom_tree.read(tmp_path, Reading(KEY)) if case.fault]
    assert fault.rule == "a mask belongs to one image of the source"
    assert fault.value == "the tumour mask fits 2 images of the source, and nothing says which"


@pytest.mark.parametrize("series", ["1.2.3", ""])
def test_a_drawn_mask_of_no_image_is_refused_by_itself(series: str, tmp_path: Path) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)], [("CLOSED_PLANAR", SQUARE)]], ("Tumour", "Liver"))
    dataset = pydicom.dcmread(tmp_path / "rs.dcm")
    study = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = series
    if not series:
        del dataset.ReferencedFrameOfReferenceSequence
    dataset.save_as(tmp_path / "rs.dcm")
    image, refused = sorted(dicom_tree.read(tmp_path, Reading(KEY)), key=lambda case: case.fault is not None)
    assert (image.fault, image.liver_state, image.tumour_state) == (None, LabelState.UNKNOWN, LabelState.UNKNOWN)
    assert refused.case_id == "dicom-drawn-1"
    assert str(refused.fault).endswith("mask belongs to no image of the source")
    name_slice(tmp_path / "rs.dcm", image.image.files[3])
    assert read_one(tmp_path).tumour_state == LabelState.MANUAL


def test_a_mask_drawn_on_a_refused_series_is_refused_with_it(tmp_path: Path) -> None:
    write_rois(tmp_path, [[("CLOSED_PLANAR", SQUARE)]])
    path = tmp_path / "scan" / "IM0004"
    dataset = pydicom.dcmread(path)
    dataset.PixelSpacing = ["0", "1"]
    dataset.save_as(path)
    assert [case.case_id[:3] for case in dicom_tree.read(tmp_path, Reading(KEY))] == ["ct-"]

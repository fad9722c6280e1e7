"""DICOM-SEG and SR of predicted scans, read back by highdicom: every voxel lies where the source slice has it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from dicom_files import IDENTIFIERS, Placement, phantom_voxels, write_series
from predicted import predicted
from pydicom.uid import generate_uid

import hepar.prediction.dicom_report
import hepar.prediction.dicom_segmentation
from hepar.errors import DataError
from hepar.evaluation.research_use import RESEARCH_USE
from hepar.prediction.dicom_segmentation import make_segments
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.outputs import Output
from hepar.prediction.predicted_scan import PredictedScan
from hepar.prediction.writing import write_prediction

AXIAL, FEET_FIRST = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # supine
PRONE = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
CORONAL, OBLIQUE = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0), (0.9800, 0.1990, 0.0, -0.1849, 0.9107, 0.3694)
Array = npt.NDArray[Any]


def two_lesions() -> Array:
    voxels_zyx = phantom_voxels()
    voxels_zyx[8:10, 10:13, 6:9] = 280
    return voxels_zyx


def written(scan: PredictedScan, folder: Path, **options: Any) -> tuple[Any, Any]:
    """SEG and SR of a predicted scan, read back."""
    assert write_prediction(scan, folder / "out", (Output.SEG, Output.SR), **options).problem == ""
    files = PredictionFolder(folder / "out")
    return highdicom.seg.segread(files.folder / files.SEG), highdicom.sr.srread(files.folder / files.SR)


def hu(path: Path) -> Array:
    source = pydicom.dcmread(path)
    return np.asarray(source.pixel_array * float(source.RescaleSlope) + float(source.RescaleIntercept))


def places_mm(affine: Array, mask: Array) -> Array:
    """The centres of the voxels of a mask whose affine maps their indices, in LPS mm, sorted."""
    index_n3 = np.argwhere(mask)
    points_n3 = np.round(index_n3 @ affine[:3, :3].T + affine[:3, 3], 2) + 0.0
    return points_n3[np.lexsort(points_n3.T)]


def source_places_mm(paths: list[Path], low: float) -> Array:
    """The centres of the pixels above a value, by the header of each slice, in LPS mm, sorted."""
    points = []
    for path in paths:
        source = pydicom.dcmread(path)
        along_row, along_column = np.array(source.ImageOrientationPatient, float).reshape(2, 3)
        row_mm, column_mm = map(float, source.PixelSpacing)
        rows, columns = np.nonzero(hu(path) > low)
        steps = columns[:, None] * column_mm * along_row + rows[:, None] * row_mm * along_column
        points.append(np.array(source.ImagePositionPatient, float) + steps)
    points_n3 = np.round(np.concatenate(points), 2) + 0.0
    return np.asarray(points_n3[np.lexsort(points_n3.T)])


@pytest.mark.parametrize("orientation", [AXIAL, FEET_FIRST, PRONE, CORONAL, OBLIQUE])
def test_each_voxel_of_the_segments_lies_on_its_source_pixel(orientation: tuple[float, ...], tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", two_lesions(), Placement(orientation=orientation))
    spacing_zyx_mm = (0.8, 3.0, 0.7) if orientation == CORONAL else (3.0, 0.8, 0.7)  # of the model: no resampling
    scan = predicted(tmp_path / "scan", spacing_zyx_mm=spacing_zyx_mm)
    segmentation, _ = written(scan, tmp_path, by_lesion=False)
    assert list(segmentation.segment_numbers) == [1, 2]
    for path in paths:
        uid = pydicom.dcmread(path).SOPInstanceUID
        for number, low in ((1, 25), (2, 200)):
            pixels = segmentation.get_pixels_by_source_instance(
                [uid], segment_numbers=[number], assert_missing_frames_are_empty=True, combine_segments=False
            )
            assert np.array_equal(pixels[0, ..., 0], hu(path) > low)
    for number, low in ((1, 25), (2, 200)):
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
        found = places_mm(volume.affine, volume.array[..., 0])
        assert found == pytest.approx(source_places_mm(paths, low), abs=0.02)


def test_the_frames_lie_on_the_scan_by_their_own_headers(tmp_path: Path) -> None:
    """Read without highdicom, which has written them."""
    paths = write_series(tmp_path / "scan", two_lesions(), Placement(orientation=OBLIQUE))
    written(predicted(tmp_path / "scan"), tmp_path, by_lesion=False)
    read = pydicom.dcmread(PredictionFolder(tmp_path / "out").folder / PredictionFolder.SEG)
    shared = read.SharedFunctionalGroupsSequence[0]
    along_row, along_column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    row_mm, column_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    points: dict[int, list[Array]] = {1: [], 2: []}
    for pixels, frame in zip(read.pixel_array, read.PerFrameFunctionalGroupsSequence, strict=True):
        rows, columns = np.nonzero(pixels)
        steps = columns[:, None] * column_mm * along_row + rows[:, None] * row_mm * along_column
        position_mm = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        points[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber].append(position_mm + steps)
    for number, low in ((1, 25), (2, 200)):
        found = np.round(np.concatenate(points[number]), 2) + 0.0
        assert found[np.lexsort(found.T)] == pytest.approx(source_places_mm(paths, low), abs=0.02)


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, OBLIQUE])
def test_each_lesion_lies_on_its_own_pixels_also_where_lesions_share_slices(
    orientation: tuple[float, ...], tmp_path: Path
) -> None:
    boxes = [np.s_[2:5, 4:9, 5:14], np.s_[3:6, 11:13, 6:9], np.s_[4:5, 11:14, 12:15], np.s_[8:10, 10:13, 6:9]]
    voxels_zyx = phantom_voxels()
    for box in boxes:
        voxels_zyx[box] = 280
    voxels_zyx[8, 11, 7] = 100  # a lesion with a hole
    paths = write_series(tmp_path / "scan", voxels_zyx, Placement(orientation=orientation))
    spacing_zyx_mm = (0.8, 3.0, 0.7) if orientation == CORONAL else (3.0, 0.8, 0.7)
    segmentation, _ = written(predicted(tmp_path / "scan", spacing_zyx_mm=spacing_zyx_mm), tmp_path)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    pixels = segmentation.get_pixels_by_source_instance(
        uids, assert_missing_frames_are_empty=True, combine_segments=False
    )
    assert np.array_equal(pixels[..., 0], voxels_zyx > 25)
    lesions = [np.zeros(voxels_zyx.shape, np.bool_) for _ in boxes]
    for lesion_zyx, box in zip(lesions, boxes, strict=True):
        lesion_zyx[box] = voxels_zyx[box] > 200
    found = sorted(pixels[..., number].tobytes() for number in range(1, 1 + len(boxes)))  # in any order
    assert found == sorted(lesion_zyx.astype(pixels.dtype).tobytes() for lesion_zyx in lesions)


def test_the_segments_of_many_lesions_take_no_more_room_than_two_masks(tmp_path: Path) -> None:
    voxels_zyx = np.clip(phantom_voxels(60), -1000, 70)
    voxels_zyx[::4, 5, 5:20:8] = 300  # 2 in every fourth slice
    write_series(tmp_path / "scan", voxels_zyx)
    scan = predicted(tmp_path / "scan")
    tracemalloc.start()
    segments = make_segments(scan, by_lesion=True)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(segments) == 1 + 30
    assert peak_bytes < 2 * scan.found.tumour_zyx.nbytes


def test_segments_have_codes_and_labels_and_say_what_they_are_for(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", two_lesions())
    segmentation, report = written(predicted(tmp_path / "scan"), tmp_path)
    described = [
        (
            item.SegmentLabel,
            item.SegmentedPropertyCategoryCodeSequence[0].CodeValue,
            item.SegmentedPropertyTypeCodeSequence[0].CodeValue,
        )
        for item in segmentation.SegmentSequence
    ]
    lesions = [(f"Lesion {number}", "49755003", "108369006") for number in (1, 2)]
    assert described == [("Liver", "123037004", "10200004"), *lesions]
    for made in (segmentation, report):
        assert "RESEARCH USE ONLY" in made.SeriesDescription
        assert (made.PatientID, made.StudyID) == (IDENTIFIERS["PatientID"], IDENTIFIERS["StudyID"])
    assert segmentation.ContentDescription == RESEARCH_USE
    assert [int(p.sum()) for p in np.moveaxis(_pixels(segmentation), -1, 0)][1:] == [3 * 5 * 9, 2 * 3 * 3]


def _pixels(segmentation: Any) -> Array:
    return np.asarray(segmentation.get_volume(combine_segments=False).array)


def test_a_tilted_scan_has_its_segments_on_its_own_slices(tmp_path: Path) -> None:
    voxels_zyx = np.full((12, 40, 24), -1000, np.int16)
    voxels_zyx[2:10, 10:30, 4:20] = 100
    paths = write_series(tmp_path / "scan", voxels_zyx, Placement(sideways_mm=0.8))  # a pixel a slice
    segmentation, _ = written(predicted(tmp_path / "scan", "resample"), tmp_path)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    pixels = segmentation.get_pixels_by_source_instance(
        uids, segment_numbers=[1], assert_missing_frames_are_empty=True, combine_segments=False
    )
    assert np.array_equal(pixels[..., 0], voxels_zyx > 25)


@pytest.mark.parametrize(("drift_mm", "uneven"), [(0.3, "refuse"), (0.9, "resample")])
def test_segments_of_a_slightly_tilted_scan_lie_on_their_pixels_in_every_slice(
    drift_mm: float, uneven: str, tmp_path: Path
) -> None:
    voxels_zyx = np.full((40, 40, 24), -50, np.int16)
    voxels_zyx[:, 10:30, 4:20] = 100  # 25 HU, from where on it is liver, is half-way: shifting moves no edge
    drift = Placement(step_mm=1.0, sideways_mm=drift_mm / 39)  # over the stack, of pixels of 0.8 mm
    paths = write_series(tmp_path / "scan", voxels_zyx, drift)
    scan = predicted(tmp_path / "scan", uneven, spacing_zyx_mm=(1.0, 0.8, 0.7))
    segmentation, _ = written(scan, tmp_path)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    pixels = segmentation.get_pixels_by_source_instance(uids, segment_numbers=[1], combine_segments=False)
    assert np.array_equal(pixels[..., 0], voxels_zyx > 25)
    grid = scan.found.geometry
    liver_mm = [grid.origin_xyz_mm[1] + 0.8 * np.flatnonzero(z.any(axis=1)).mean() for z in scan.found.liver_zyx]
    true_mm = [float(pydicom.dcmread(path).ImagePositionPatient[1]) + 0.8 * 19.5 for path in paths]
    assert np.abs(np.subtract(liver_mm, true_mm)).max() <= 0.4  # half a pixel


def test_unequal_steps_are_resampled_and_segmented_on_each_slice(tmp_path: Path) -> None:
    heights_mm = [0, 3, 6, 9, 12, 15, 18, 22, 26, 30, 34, 38]
    paths = write_series(tmp_path / "scan", two_lesions(), Placement(heights_mm=heights_mm))
    segmentation, _ = written(predicted(tmp_path / "scan", "resample"), tmp_path)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths[:7]]
    pixels = segmentation.get_pixels_by_source_instance(
        uids, segment_numbers=[2], assert_missing_frames_are_empty=True, combine_segments=False
    )
    assert np.array_equal(pixels[..., 0], two_lesions()[:7] > 200)


def test_frames_of_a_multi_frame_file_have_their_segments(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "classic", two_lesions(), Placement(orientation=OBLIQUE))
    frames = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        [pydicom.dcmread(path) for path in reversed(paths)], generate_uid(), 1, generate_uid(), 1
    )
    frames.save_as(tmp_path / "frames.dcm")
    segmentation, _ = written(predicted(tmp_path / "frames.dcm"), tmp_path, by_lesion=False)
    volume = segmentation.get_volume(segment_numbers=[2], combine_segments=False)
    found = places_mm(volume.affine, volume.array[..., 0])
    assert found == pytest.approx(source_places_mm(paths, 200), abs=0.02)


def test_the_report_has_the_measurements_of_liver_and_lesions(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", two_lesions())
    scan = predicted(tmp_path / "scan")
    segmentation, report = written(scan, tmp_path)
    groups = report.content.get_volumetric_roi_measurement_groups()
    values = [{m.name.meaning: float(m.value) for m in group.get_measurements()} for group in groups]
    assert [group.tracking_identifier for group in groups] == ["Liver", "Lesion 1", "Lesion 2"]
    assert [group.tracking_uid for group in groups] == [item.TrackingUID for item in segmentation.SegmentSequence]
    segments = [group.referenced_segment[0].ReferencedSOPSequence[0].ReferencedSegmentNumber for group in groups]
    assert segments == [1, 2, 3]
    assert values[0]["Volume"] == pytest.approx(scan.measured.liver_ml, abs=1e-3)
    assert values[0]["Number of lesions"] == 2
    for lesion, shown in zip(scan.measured.lesions, values[1:], strict=True):
        assert shown["Long Axis"] == pytest.approx(lesion.diameters.longest.length_mm, abs=1e-3)
        assert shown["Short Axis"] == pytest.approx(lesion.diameters.perpendicular.length_mm, abs=1e-3)
        assert shown["Attenuation Coefficient"] == pytest.approx(lesion.contrast.mean, abs=1e-3)
        assert shown["Volume"] == pytest.approx(lesion.found.volume_ml, abs=1e-3)


def test_the_report_says_research_use_and_each_warning(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", two_lesions())
    scan = predicted(tmp_path / "scan")
    _, report = written(scan, tmp_path)
    texts = [item.TextValue for item in report.content[0].ContentSequence if item.name.meaning == "Comment"]
    assert scan.warnings
    assert texts == [RESEARCH_USE, *(f"Warning: {warning.message}" for warning in scan.warnings)]


def test_lesions_without_a_segment_of_their_own_are_reported_with_the_ends_of_their_diameters(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", two_lesions())
    scan = predicted(tmp_path / "scan")
    _, report = written(scan, tmp_path, by_lesion=False)
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["Lesion 1", "Lesion 2"]
    (long_axis,) = [m for m in groups[0].get_measurements() if m.name.meaning == "Long Axis"]
    (line,) = long_axis.referenced_coordinates
    assert line.value == pytest.approx(np.array(scan.measured.lesions[0].diameters.longest.ends_lps_mm), abs=1e-3)


def test_a_scan_in_which_nothing_is_found_has_a_report_and_no_segmentation(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", np.clip(phantom_voxels(), -1000, 20))
    problem = write_prediction(predicted(tmp_path / "scan"), tmp_path / "out").problem
    assert problem == "series-ct-portal-venous: nothing was found, so there is no DICOM-SEG"
    files = PredictionFolder(tmp_path / "out")
    assert not (files.folder / files.SEG).exists()
    (group,) = highdicom.sr.srread(files.folder / files.SR).content.get_image_measurement_groups()
    assert [float(m.value) for m in group.get_measurements() if m.name.meaning == "Volume"] == [0.0]


def test_slices_without_a_frame_of_reference_get_one_of_their_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", two_lesions())
    for path in paths:
        source = pydicom.dcmread(path)
        del source.FrameOfReferenceUID
        source.save_as(path)
    scan = predicted(tmp_path / "scan")
    (warning,) = [warning for warning in scan.warnings if warning.rule == "frame of reference"]
    assert (warning.value, warning.bound) == (len(paths), 0)
    segmentation, report = written(scan, tmp_path)
    liver_zyx = segmentation.get_volume(segment_numbers=[1], combine_segments=True)
    assert np.array_equal(places_mm(liver_zyx.affine, liver_zyx.array > 0), source_places_mm(paths, 25))
    again, _ = written(predicted(tmp_path / "scan"), tmp_path)
    assert segmentation.FrameOfReferenceUID == again.FrameOfReferenceUID
    assert segmentation.FrameOfReferenceUID not in (source.SeriesInstanceUID, source.StudyInstanceUID)
    comments = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT"]
    assert f"Warning: {warning.message}" in comments


def rewrite(paths: list[Path], change: Callable[[pydicom.Dataset], None]) -> None:
    for path in paths:
        source = pydicom.dcmread(path)
        change(source)
        source.save_as(path)


ANONYMISED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "SliceThickness"),
)


def without_all(source: pydicom.Dataset) -> None:
    for name in ANONYMISED:
        if name in source:
            delattr(source, name)


def emptied(source: pydicom.Dataset) -> None:
    for name in ANONYMISED:
        setattr(source, name, None)


def malformed(source: pydicom.Dataset) -> None:
    source.PatientBirthDate, source.StudyDate, source.StudyTime = "00000000", "2021.04.07", "10:11:12"
    source.PatientSex = "X"


def japanese(source: pydicom.Dataset) -> None:
    source.SpecificCharacterSet, source.PatientName = ["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom warns of what is written on purpose
@pytest.mark.parametrize("change", [without_all, emptied, malformed, japanese])
def test_headers_as_anonymisers_and_scanners_leave_them_have_both_objects(
    change: Callable[[pydicom.Dataset], None], tmp_path: Path
) -> None:
    paths = write_series(tmp_path / "scan", two_lesions())
    rewrite(paths, change)
    segmentation, report = written(predicted(tmp_path / "scan"), tmp_path)
    liver_zyx = segmentation.get_volume(segment_numbers=[1], combine_segments=True)
    assert np.array_equal(places_mm(liver_zyx.affine, liver_zyx.array > 0), source_places_mm(paths, 25))
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    given_mm, distance_mm = 5.0, 3.0
    assert float(measures.SliceThickness) == (distance_mm if change in (without_all, emptied) else given_mm)
    for made in (segmentation, report):
        if change is japanese:
            assert str(made.PatientName) == "Yamada^Tarou=山田^太郎"
        else:
            assert (made.PatientSex, made.PatientBirthDate, made.StudyTime) == ("", "", "")


def test_a_report_that_cannot_be_made_costs_no_segmentation_and_is_a_warning_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "scan", two_lesions())
    reason = "series-ct-portal-venous: no DICOM SR can be made of its headers: the date"

    def refused(*words: Any) -> Any:
        raise DataError(reason)

    monkeypatch.setattr(hepar.prediction.dicom_report, "make_report", refused)
    done = write_prediction(predicted(tmp_path / "scan"), tmp_path / "out")
    files = PredictionFolder(tmp_path / "out")
    assert ((files.folder / files.SEG).is_file(), (files.folder / files.SR).exists()) == (True, False)
    assert done.problem == reason
    assert (done.scan.warnings[-1].rule, done.scan.warnings[-1].message) == ("DICOM objects", reason)
    assert files.load_measurements()["warnings"][-1]["message"] == reason
    assert reason in (files.folder / files.PAGE).read_text()
    monkeypatch.setattr(hepar.prediction.dicom_segmentation, "make_segmentation", refused)
    with pytest.raises(DataError, match=r"^series-.*: the date$"):
        write_prediction(done.scan, tmp_path / "objects", (Output.SEG, Output.SR))
    assert not (tmp_path / "objects").exists()

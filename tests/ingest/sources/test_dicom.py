"""DICOM: volumes are found by header, placed by position, and refused if slices are inconsistent."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import Encoding, Placement, phantom_voxels, write_segmentation, write_series
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from hepar.cases import LabelState, Modality
from hepar.errors import Refusal
from hepar.imaging.volumes import Geometry, canonical
from hepar.ingest.building import hash_source
from hepar.ingest.sources import dicom_tree
from hepar.ingest.sources.dicom import ENHANCED_CT
from hepar.ingest.sources.dicom_facts import named_sequence
from hepar.ingest.sources.dicom_tree import Reading
from hepar.ingest.sources.dicom_volume import DicomVolume
from hepar.ingest.sources.source import SourceCase

KEY = b"a key of the tests"
OBLIQUE = (0.9800, 0.1990, 0.0, -0.1849, 0.9107, 0.3694)


def one(folder: Path, **settings: Any) -> SourceCase:
    (case,) = dicom_tree.read(folder, Reading(KEY, **settings))
    return case


def array(image: sitk.Image) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    return np.asarray(sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1, 0), (0.0, 1, 0, 0, 0, -1), (1.0, 0, 0, 0, 0, -1), OBLIQUE])
def test_every_voxel_lies_where_the_header_of_its_slice_puts_it(orientation: tuple[float, ...], tmp_path: Path) -> None:
    voxels = phantom_voxels()
    paths = write_series(tmp_path, voxels, Placement(orientation=orientation), names="{:03d}.dcm")
    image = one(tmp_path).image.read()
    assert np.array_equal(array(image), voxels)
    for z, path in enumerate(paths):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert np.allclose(image.TransformIndexToPhysicalPoint((0, 0, z)), header.ImagePositionPatient, atol=1e-3)
    along_row = np.subtract(
        image.TransformIndexToPhysicalPoint((1, 0, 0)), image.TransformIndexToPhysicalPoint((0, 0, 0))
    )
    assert np.allclose(along_row, 0.7 * np.array(orientation[:3]), atol=1e-3)  # PixelSpacing is rows first


def test_names_numbers_and_nesting_of_files_do_not_matter(tmp_path: Path) -> None:
    voxels = phantom_voxels()
    paths = write_series(tmp_path / "first", voxels)
    random.Random(3).shuffle(paths)
    for number, path in enumerate(paths):
        place = tmp_path / "all" / f"disk{number % 2}" / f"{number:08d}"
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    (tmp_path / "all" / "DICOMDIR").write_bytes(b"no instance")
    (tmp_path / "all" / "notes.txt").write_text("hello")
    assert np.array_equal(array(one(tmp_path / "all").image.read()), voxels)


def test_the_step_comes_from_positions_and_values_from_slope_and_intercept(tmp_path: Path) -> None:
    voxels = phantom_voxels() // 2 * 2
    write_series(tmp_path, voxels, Placement(step_mm=2.5), Encoding(slope=2.0, intercept=-1000.0))
    image = one(tmp_path).image.read()
    assert image.GetSpacing() == pytest.approx((0.7, 0.8, 2.5))
    assert np.array_equal(array(image), voxels)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_slices_are_decoded(syntax: str, tmp_path: Path) -> None:
    voxels = np.tile(phantom_voxels(), (1, 2, 2))
    write_series(tmp_path, voxels, encoding=Encoding(syntax=syntax))
    assert np.array_equal(array(one(tmp_path).image.read()), voxels)


def test_localisers_secondary_captures_and_copies_are_left_out(tmp_path: Path) -> None:
    voxels = phantom_voxels()
    paths = write_series(tmp_path / "scan", voxels)
    write_series(tmp_path / "scout", voxels, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (capture,) = write_series(tmp_path / "capture", voxels[:1])
    dataset = pydicom.dcmread(capture)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.save_as(capture)
    (tmp_path / "copy").write_bytes(paths[4].read_bytes())
    assert np.array_equal(array(one(tmp_path).image.read()), voxels)


def test_phases_of_one_series_are_separated(tmp_path: Path) -> None:
    uids = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
    phases = [phantom_voxels(seed=seed) for seed in range(3)]
    for number, voxels in enumerate(phases):
        write_series(tmp_path, voxels, names=f"p{number}-{{:03d}}", AcquisitionNumber=number + 1, **uids)
    cases = dicom_tree.read(tmp_path, Reading(KEY))
    assert len({case.case_id for case in cases}) == 3
    assert len({case.patient_id for case in cases}) == 1
    read = [array(case.image.read()) for case in cases]
    assert all(any(np.array_equal(voxels, other) for other in read) for voxels in phases)


def test_two_series_in_one_folder_are_two_cases(tmp_path: Path) -> None:
    write_series(tmp_path, phantom_voxels(), names="a{:03d}", SeriesDescription="ABD ART 3.0")
    write_series(tmp_path, phantom_voxels() + 1000, names="b{:03d}", modality="MR", SeriesDescription="T2 SPIR tra")
    cases = dicom_tree.read(tmp_path, Reading(KEY))
    assert [(case.modality, case.sequence) for case in cases] == [
        (Modality.CT, "arterial"),
        (Modality.MR, "T2-SPIR"),
    ]


def test_mr_keeps_its_own_units(tmp_path: Path) -> None:
    voxels = phantom_voxels().clip(0)
    write_series(tmp_path, voxels, modality="MR")
    assert np.array_equal(array(one(tmp_path).image.read()), voxels)


def test_a_missing_slice_is_refused_by_its_place(tmp_path: Path) -> None:
    write_series(tmp_path, phantom_voxels())[5].unlink()
    with pytest.raises(Refusal, match=r"no slice is missing: 6.00 mm between slices 5 and 6 of 11, elsewhere 3.00 mm"):
        one(tmp_path).image.read()


def test_doubled_slices_that_no_tag_separates_are_refused(tmp_path: Path) -> None:
    uids = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
    write_series(tmp_path, phantom_voxels(), **uids)
    write_series(tmp_path, phantom_voxels(seed=1)[:2], names="again{}", **uids)
    with pytest.raises(Refusal, match=r"no two slices share a position: 2 of 14"):
        one(tmp_path).image.read()


@pytest.mark.parametrize("tag", ["AcquisitionTime", "AcquisitionNumber"])
def test_a_slice_that_is_stored_twice_refuses_its_series_whatever_its_tags(tag: str, tmp_path: Path) -> None:
    paths = write_series(tmp_path, phantom_voxels(30))
    for index, path in enumerate(paths):
        header = pydicom.dcmread(path)
        # a time of each slice, or a number of each slab of fifteen, which share a slice
        setattr(header, tag, f"1015{index:02d}" if tag == "AcquisitionTime" else index // 15)
        header.save_as(path)
    header = pydicom.dcmread(paths[15])
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    setattr(header, tag, "101559" if tag == "AcquisitionTime" else 0)
    header.save_as(tmp_path / "again")
    with pytest.raises(Refusal, match=r"^no two slices share a position: 1 of 31 slices are duplicates$"):
        one(tmp_path).image.read()


@pytest.mark.parametrize(
    ("description", "sequence"),
    [
        ("CT AP WITH IV CONTRAST", ""),
        ("Abd/Pel AP", ""),
        ("Abdomen intravenous contrast arterial", "arterial"),
        ("ABD_VENOUS_5.0", "portal-venous"),
        ("twin phase", ""),
        ("T1 vibe in phase", "T1-in-phase"),
        ("T1 out-of-phase", "T1-opposed-phase"),
        ("T2W_SPIR", "T2-SPIR"),
        ("T2SPIR", "T2-SPIR"),
        ("Late arterial", "arterial"),
        ("AX T1 pre", "non-contrast"),
    ],
)
def test_a_phase_is_named_by_whole_words(description: str, sequence: str) -> None:
    assert named_sequence(description) == sequence


def test_uneven_steps_are_refused_or_resampled(tmp_path: Path) -> None:
    heights_mm = [0, 3, 6, 9, 12, 15, 18, 22, 26, 30, 34, 38]
    ramp = np.broadcast_to(np.array(heights_mm, float)[:, None, None] * 10, (12, 20, 24))
    write_series(tmp_path, ramp, Placement(heights_mm=heights_mm))
    with pytest.raises(Refusal, match=r"slices are evenly spaced: 3.00 to 4.00 mm"):
        one(tmp_path).image.read()
    image = one(tmp_path, uneven="resample").image.read()
    step = image.GetSpacing()[2]
    assert array(image)[:, 5, 5] == pytest.approx(10 * step * np.arange(image.GetSize()[2]), abs=1)


def test_a_tilted_gantry_is_refused_or_straightened(tmp_path: Path) -> None:
    upright = np.full((12, 40, 24), -1000, np.int16)
    upright[:, 15:25, 8:16] = 100  # a column along the body's axis
    tilted = np.stack([np.roll(plane, -index, axis=0) for index, plane in enumerate(upright)])
    write_series(tmp_path, tilted, Placement(sideways_mm=0.8))  # one row per slice
    with pytest.raises(Refusal, match=r"the gantry is not tilted: a tilt of 14.9 degrees"):
        one(tmp_path).image.read()
    assert np.array_equal(array(one(tmp_path, uneven="resample").image.read()), upright)


def test_a_small_tilt_counts_once_the_last_slice_lies_more_than_half_a_pixel_beside_the_first(tmp_path: Path) -> None:
    voxels = phantom_voxels(30)
    for name, pixels in (("below", 0.48), ("above", 0.52)):  # of 0.8 mm, over the stack
        write_series(tmp_path / name, voxels, Placement(sideways_mm=pixels * 0.8 / 29))
    assert np.array_equal(array(one(tmp_path / "below").image.read()), voxels)
    with pytest.raises(Refusal, match=r"the gantry is not tilted: a tilt of 0.274 degrees, 0.42 mm over 30 slices"):
        one(tmp_path / "above").image.read()
    resampled = one(tmp_path / "above", uneven="resample").image.read()
    assert resampled.GetSize() == (24, 20, 30)
    assert resampled.GetSpacing() == pytest.approx((0.7, 0.8, 3.0))


def test_ids_are_keyed_hashes_that_stay_the_same(tmp_path: Path) -> None:
    write_series(tmp_path, phantom_voxels())
    (first,) = dicom_tree.read(tmp_path, Reading(KEY))
    (again,) = dicom_tree.read(tmp_path, Reading(KEY))
    (other,) = dicom_tree.read(tmp_path, Reading(b"another key of the tests"))
    assert (first.case_id, first.patient_id) == (again.case_id, again.patient_id)
    assert first.patient_id != other.patient_id
    assert first.case_id != other.case_id
    assert "7730021" not in first.patient_id + first.case_id


@pytest.mark.parametrize(("inside", "intercept"), [(1, 0), (255, 0), (255, -1024)])
def test_mask_series_are_found_by_their_names_and_joined_with_their_image(
    inside: int, intercept: int, tmp_path: Path
) -> None:
    voxels, study = phantom_voxels(), {"StudyInstanceUID": generate_uid()}
    liver = np.zeros_like(voxels)
    liver[2:8, 5:15, 5:15] = 1

    def write_mask(name: str, mask_zyx: np.ndarray[tuple[int, ...], np.dtype[Any]]) -> None:
        """Stored values are 0 and `inside`, whatever the intercept."""
        write_series(
            tmp_path / "seg" / name, mask_zyx * inside + intercept, encoding=Encoding(intercept=intercept), **study
        )

    write_series(tmp_path / "scan", voxels, **study)
    write_mask("liver", liver)
    write_mask("livertumor1", liver * (liver.cumsum(0) > 3))
    write_mask("livertumor2", liver * (liver.cumsum(0) < 3))
    case = one(tmp_path)
    assert (case.liver_state, case.tumour_state) == (LabelState.MANUAL, LabelState.MANUAL)
    assert case.liver is not None
    assert case.tumour is not None
    assert np.array_equal(array(case.liver.read()), liver)
    assert np.array_equal(array(case.tumour.read()), liver * (liver.cumsum(0) != 3))


def test_a_series_named_as_a_mask_with_more_than_two_values_is_an_image(tmp_path: Path) -> None:
    write_series(tmp_path / "liver", phantom_voxels(), SeriesDescription="arterial")
    write_series(tmp_path / "b", phantom_voxels(14, 1), SeriesDescription="LIVER 5.0")
    assert [len(case.image.files) for case in dicom_tree.read(tmp_path, Reading(KEY))] in ([12, 14], [14, 12])


def test_a_series_named_as_a_mask_whose_pixels_are_in_a_store_counts_as_one_until_it_is_read(tmp_path: Path) -> None:
    study, whole_files = {"StudyInstanceUID": generate_uid()}, tmp_path / ".whole"
    whole_files.mkdir()
    write_series(tmp_path / "scan", phantom_voxels(), **study)
    for path in write_series(tmp_path / "liver", phantom_voxels(), **study):
        whole, header = path.read_bytes(), pydicom.dcmread(path, stop_before_pixels=True)
        header.save_as(path)
        (whole_files / path.name).write_bytes(whole)
    case = one(tmp_path)
    assert case.liver_state == LabelState.MANUAL
    assert case.liver is not None
    for path in (tmp_path / "liver").iterdir():
        (whole_files / path.name).replace(path)
    with pytest.raises(Refusal, match="a mask series has at most two values"):
        case.liver.read()


def test_a_mask_series_that_fits_two_images_is_refused_by_itself(tmp_path: Path) -> None:
    study = {"StudyInstanceUID": generate_uid()}
    liver = np.zeros((12, 20, 24), np.int16)
    liver[3:6, 5:15, 5:15] = 1
    for seed, name in enumerate(("arterial", "venous")):
        write_series(tmp_path / name, phantom_voxels(seed=seed), **study)
    write_series(tmp_path / "liver", liver, **study)
    cases = dicom_tree.read(tmp_path, Reading(KEY))
    assert [case.liver_state for case in cases if not case.fault] == [LabelState.UNKNOWN, LabelState.UNKNOWN]
    (fault,) = [case.fault for case in cases if case.fault]
    assert str(fault).endswith("the liver mask fits 2 images of the source, and nothing says which")


def test_a_mask_series_at_another_place_is_refused_by_itself(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom_voxels())
    shifted = Placement(heights_mm=[1 + 3 * index for index in range(12)])
    write_series(tmp_path / "liver", np.zeros((12, 20, 24), np.int16), shifted)
    image, refused = sorted(dicom_tree.read(tmp_path, Reading(KEY)), key=lambda case: case.fault is not None)
    assert (image.fault, image.liver_state) == (None, LabelState.UNKNOWN)
    assert str(refused.fault).endswith("the liver mask belongs to no image of the source")


def test_a_multi_frame_mask_series_has_no_place_in_its_header_and_is_refused_by_itself(tmp_path: Path) -> None:
    import highdicom

    for name, voxels in (("Liver", np.zeros((12, 20, 24), np.int16)), ("T1", phantom_voxels())):
        paths = write_series(tmp_path / "classic", voxels, encoding=Encoding(intercept=-1000.0))
        frames = highdicom.legacy.LegacyConvertedEnhancedCTImage(
            [pydicom.dcmread(path) for path in paths], generate_uid(), 1, generate_uid(), 1
        )
        frames.SeriesDescription = name
        frames.save_as(tmp_path / f"{name}.dcm")
        shutil.rmtree(tmp_path / "classic")
    image, refused = sorted(dicom_tree.read(tmp_path, Reading(KEY)), key=lambda case: case.fault is not None)
    assert image.fault is None
    assert str(refused.fault).endswith("the liver mask belongs to no image of the source")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, 2), "a mask series has at most two values: more than two from 0 to 2"),
        ((1, 2), "a mask series is 0 outside of its structure: its lowest value is 1"),
    ],
)
def test_a_mask_series_of_other_values_is_refused(values: tuple[int, ...], message: str, tmp_path: Path) -> None:
    values_zyx = np.resize(np.array(values, np.int16), (12, 20, 24))
    paths = write_series(tmp_path, values_zyx, encoding=Encoding(intercept=0.0))
    with pytest.raises(Refusal, match=message):
        DicomVolume(tuple(paths), mask=True).read()


def test_contours_of_an_rtstruct_fill_their_slices(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", phantom_voxels())
    first = pydicom.dcmread(paths[0])
    image = one(tmp_path / "scan").image.read()
    square = [(4.5, 4.5), (12.5, 4.5), (12.5, 10.5), (4.5, 10.5)]
    hole = [(6.5, 6.5), (8.5, 6.5), (8.5, 8.5), (6.5, 8.5)]

    def contour(corners: list[tuple[float, float]], z: int) -> Dataset:
        item = Dataset()
        item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(corners)
        points = [image.TransformContinuousIndexToPhysicalPoint((x, y, float(z))) for x, y in corners]
        item.ContourData = [f"{value:.5f}" for point in points for value in point]
        return item

    structures = Dataset()
    structures.SOPClassUID, structures.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid()
    structures.SeriesInstanceUID, structures.StudyInstanceUID = generate_uid(), first.StudyInstanceUID
    structures.PatientID, structures.Modality = first.PatientID, "RTSTRUCT"
    roi, drawn, series, study, frame = (Dataset() for _ in range(5))
    roi.ROINumber, roi.ROIName = 1, "Liver"
    drawn.ReferencedROINumber = 1
    drawn.ContourSequence = Items([contour(square, 3), contour(hole, 3), contour(square, 4)])
    series.SeriesInstanceUID = first.SeriesInstanceUID
    study.RTReferencedSeriesSequence = Items([series])
    frame.RTReferencedStudySequence = Items([study])
    structures.StructureSetROISequence, structures.ROIContourSequence = Items([roi]), Items([drawn])
    structures.ReferencedFrameOfReferenceSequence = Items([frame])
    structures.file_meta = FileMetaDataset()
    structures.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    structures.file_meta.MediaStorageSOPClassUID = structures.SOPClassUID
    structures.file_meta.MediaStorageSOPInstanceUID = structures.SOPInstanceUID
    pydicom.dcmwrite(tmp_path / "rs.dcm", structures, enforce_file_format=True)

    expected = np.zeros((12, 20, 24), np.uint8)
    expected[3:5, 5:11, 5:13] = 1
    expected[3, 7:9, 7:9] = 0
    case = one(tmp_path)
    assert case.liver is not None
    assert case.tumour is None
    assert np.array_equal(array(case.liver.read()), expected)


@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1, 0), OBLIQUE])
def test_segments_of_a_dicom_seg_lie_on_their_image(orientation: tuple[float, ...], tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", phantom_voxels(), Placement(orientation=orientation))
    masks = np.zeros((12, 20, 24, 2), np.uint8)
    masks[3:9, 4:14, 4:16, 0] = 1
    masks[5:7, 6:9, 7:12, 1] = 1
    write_segmentation(tmp_path / "seg.dcm", paths, masks, "Liver", "Lesion")
    case = one(tmp_path)
    assert case.liver is not None
    assert case.tumour is not None
    image = case.image.read()
    for volume, expected in ((case.liver, masks[..., 0]), (case.tumour, masks[..., 1])):
        mask = volume.read()
        assert np.array_equal(array(mask), expected)
        assert canonical(mask).GetOrigin() == pytest.approx(canonical(image).GetOrigin())


@pytest.mark.parametrize("enhanced", [True, False])
@pytest.mark.parametrize("orientation", [(1.0, 0, 0, 0, 1, 0), OBLIQUE])
def test_a_multi_frame_file_is_read_as_its_slices_are(
    orientation: tuple[float, ...], enhanced: bool, tmp_path: Path
) -> None:
    import highdicom

    voxels = phantom_voxels()
    paths = write_series(
        tmp_path / "classic", voxels, Placement(orientation=orientation), Encoding(slope=2.0, intercept=-2048.0)
    )
    expected = one(tmp_path / "classic").image.read()
    frames = highdicom.legacy.LegacyConvertedEnhancedCTImage(
        [pydicom.dcmread(path) for path in reversed(paths)], generate_uid(), 1, generate_uid(), 1
    )
    if enhanced:
        frames.SOPClassUID = frames.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    (tmp_path / "multi").mkdir()
    frames.save_as(tmp_path / "multi" / "frames.dcm")
    case = one(tmp_path / "multi")
    assert case.modality == Modality.CT
    read, wanted = canonical(case.image.read()), canonical(expected)
    assert np.array_equal(array(read), array(wanted))
    assert Geometry.of(read).agrees_with(Geometry.of(wanted))


@pytest.mark.parametrize(
    ("tag", "value"),
    [("PatientID", "another"), ("PatientID", ""), ("StudyInstanceUID", "1.2.3"), ("FrameOfReferenceUID", "1.2.3")],
)
def test_a_slice_of_another_patient_study_or_frame_of_reference_refuses_its_series(
    tag: str, value: str, tmp_path: Path
) -> None:
    path = write_series(tmp_path, phantom_voxels())[5]
    header = pydicom.dcmread(path)
    setattr(header, tag, value)
    header.save_as(path)
    with pytest.raises(Refusal, match=rf"^all slices of a volume have one {tag}: 2 in 12 slices$"):
        one(tmp_path).image.read()


def test_two_patients_in_one_series_are_refused_even_if_a_tag_separates_them(tmp_path: Path) -> None:
    uids = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()}
    for number, patient in enumerate(("A", "B")):
        write_series(
            tmp_path, phantom_voxels(), names=f"{number}-{{:03d}}", PatientID=patient, AcquisitionNumber=number, **uids
        )
    with pytest.raises(Refusal, match=r"one PatientID: 2 in 24 slices"):
        one(tmp_path).image.read()


def test_burned_in_annotation_refuses_its_series(tmp_path: Path) -> None:
    write_series(tmp_path / "no", phantom_voxels(), BurnedInAnnotation="NO")
    one(tmp_path / "no").image.read()
    write_series(tmp_path / "yes", phantom_voxels(), BurnedInAnnotation="YES")
    with pytest.raises(Refusal, match=r"^no slice has burned-in annotation: BurnedInAnnotation is YES in 12 of 12$"):
        one(tmp_path / "yes").image.read()


def test_a_case_read_with_another_setting_is_not_linked_from_an_earlier_cohort(tmp_path: Path) -> None:
    write_series(tmp_path, phantom_voxels())
    assert hash_source(one(tmp_path)) == hash_source(one(tmp_path))
    assert hash_source(one(tmp_path, uneven="resample")) != hash_source(one(tmp_path))

"""What is found in files, folders and zips that a user gives, and what is left out with a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import IDENTIFIERS, phantom_voxels, write_series
from toy_case import write_noise

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.scans import Found, LeftOut, open_scans, unique_names
from hepar.runtime.artifacts import write_artifact


def found_in(source: Path) -> Found:
    with open_scans(str(source)) as found:
        return found


def test_a_file_is_a_scan_named_after_it(tmp_path: Path) -> None:
    write_noise(tmp_path / "one.two.nii.gz")
    (scan,) = found_in(tmp_path / "one.two.nii.gz").scans
    assert (scan.name, scan.modality, scan.stack) == ("one.two", None, None)
    assert scan.source == f"{tmp_path.name}/one.two.nii.gz"
    assert scan.image.read().GetSize() == (16, 16, 16)


def test_each_series_of_ct_and_mr_is_a_scan_and_the_others_are_left_out_with_a_reason(tmp_path: Path) -> None:
    voxels = phantom_voxels()
    write_series(tmp_path / "a", voxels, SeriesNumber=2, SeriesDescription="arterial for X")
    write_series(tmp_path / "b", voxels.clip(0), modality="MR", SeriesNumber=3, SeriesDescription="t2 spir")
    write_series(tmp_path / "c", voxels, SeriesNumber=4, BodyPartExamined="HEAD")
    write_series(tmp_path / "d", voxels[:3], SeriesNumber=5)
    write_series(tmp_path / "e", voxels, SeriesNumber=6, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "f", np.where(voxels == 300, 1, 0), SeriesNumber=7, SeriesDescription="liver")
    write_series(tmp_path / "i", voxels, SeriesNumber=10, SeriesDescription="LIVER 5.0")
    for number, rows in enumerate((20, 18)):
        uid = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2"}
        write_series(tmp_path / f"h{number}", voxels[:5, :rows], SeriesNumber=9, **uid)
    (capture,) = write_series(tmp_path / "g", voxels[:1], SeriesNumber=8)
    dataset = pydicom.dcmread(capture)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.save_as(capture)
    found = found_in(tmp_path)
    assert sorted((scan.name, scan.modality) for scan in found.scans) == [
        ("series-10-ct", Modality.CT),
        ("series-2-ct-arterial", Modality.CT),
        ("series-3-mr-t2-spir", Modality.MR),
    ]
    reasons = {left_out.name: left_out.reason for left_out in found.left_out}
    assert reasons == {
        "series-4-ct-portal-venous": "BodyPartExamined is HEAD, which does not show the liver",
        "series-5": "a series has at least 8 slices: 3",
        "series-6": "none of its 12 files is a slice with a place: localisers, projections or captures",
        "series-7-ct": "it is a mask of the liver by its name and two values",
        "series-8": "it is no image of CT or MR but Secondary Capture Image Storage",
        "series-9": "no 8 of its 10 slices have one orientation, spacing and size",
    }


def test_the_results_of_a_prediction_are_no_scans(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.nii.gz")
    with write_artifact(tmp_path / "out" / "a", PredictionFolder.KIND, {}) as partial:
        write_noise(partial / "liver.nii.gz")
    with write_artifact(tmp_path / "cohort", "cohort", {}) as partial:
        write_noise(partial / "b.nii.gz")
    assert [scan.name for scan in found_in(tmp_path).scans] == ["a", "b"]


def test_other_volumes_beside_dicom_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "series", phantom_voxels(), SeriesNumber=2)
    write_noise(tmp_path / "extra.nii.gz")
    found = found_in(tmp_path)
    assert [scan.name for scan in found.scans] == ["series-2-ct-portal-venous"]
    assert found.left_out == (LeftOut("extra.nii.gz", "it lies beside DICOM: give it by itself"),)


@pytest.mark.parametrize("part", ["", "ABDOMEN", "CHEST", "CHESTABDPELVIS", "ABDOMEN PELVIS", "LIVER"])
def test_a_body_part_that_may_show_the_liver_is_predicted(part: str, tmp_path: Path) -> None:
    write_series(tmp_path, phantom_voxels(), BodyPartExamined=part)
    assert len(found_in(tmp_path).scans) == 1


def test_names_hold_no_identifier_and_no_sequence_of_mr_for_a_ct(tmp_path: Path) -> None:
    write_series(tmp_path, phantom_voxels(), SeriesNumber="12345678", SeriesDescription="T2 GRIMALDI")
    (scan,) = found_in(tmp_path).scans
    assert (scan.name, scan.sequence, scan.source, scan.folder) == ("series-ct", "", "", "")
    assert not any(value.lower() in scan.name for value in IDENTIFIERS.values())


def test_a_zip_is_read_like_its_folder_and_lasts_as_long_as_the_context(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom_voxels(), SeriesNumber=1)
    shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path / "scan")
    with open_scans(str(tmp_path / "scan.zip")) as found:
        (scan,) = found.scans
        with scan.fetched() as here:
            assert here.image.read().GetSize() == (24, 20, 12)
    assert not any(path.exists() for path in scan.image.files)


def test_a_folder_without_dicom_has_its_volumes_as_scans(tmp_path: Path) -> None:
    for place in ("a/image.nii.gz", "b/image.nii.gz", "c.mha", ".hidden.nii.gz"):
        write_noise(tmp_path / place)
    assert [(scan.name, scan.source) for scan in found_in(tmp_path).scans] == [
        ("c", "c.mha"),
        ("a-image", "a/image.nii.gz"),
        ("b-image", "b/image.nii.gz"),
    ]


def test_scans_whose_folders_have_one_name_too_are_numbered(tmp_path: Path) -> None:
    for place in ("a/ct/image.nii.gz", "b/ct/image.nii.gz"):
        write_noise(tmp_path / place)
    assert [(scan.name, scan.source) for scan in found_in(tmp_path).scans] == [
        ("ct-image", "a/ct/image.nii.gz"),
        ("ct-image-2", "b/ct/image.nii.gz"),
    ]


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write_noise(tmp_path / "elsewhere.nii.gz")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "link.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    (scan,) = found_in(tmp_path / "scans").scans
    with pytest.raises(DataError, match="leads out of the source"), scan.fetched():
        pass


def test_a_source_that_does_not_exist_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        found_in(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="no DICOM series and no scan"):
        found_in(tmp_path)
    with pytest.raises(DataError, match=r"notes\.txt is no scan: give a folder, zip or file of DICOM, or a file whose"):
        found_in(tmp_path / "notes.txt")


def test_names_given_twice_are_numbered() -> None:
    assert unique_names(["a", "b", "a", "a-2", "a"]) == ["a", "b", "a-2", "a-2-2", "a-3"]

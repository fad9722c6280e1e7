"""Sources behind DICOMweb, against an Orthanc that the test starts and stops."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk
from dicom_files import IDENTIFIERS, phantom_voxels, write_segmentation, write_series
from services import orthanc_server

from hepar.errors import DataError, StorageError
from hepar.ingest.listing import list_source
from hepar.ingest.sources import dicomweb, open_source
from hepar.ingest.sources.pseudonyms import VARIABLE
from hepar.params import Params
from hepar.prediction.scans import open_scans
from hepar.runtime import remote_cache


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with orthanc_server(tmp_path_factory.mktemp("orthanc")) as address:
        yield address


@pytest.fixture
def source(orthanc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two series with a segmentation of the first in an Orthanc; yields the folder of the same files."""
    monkeypatch.setenv(remote_cache.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(VARIABLE, "a key of the tests")
    folder = tmp_path / "source"
    ct = write_series(folder / "ct", phantom_voxels(), StudyDate="20240102")
    write_series(folder / "mr", phantom_voxels(seed=1), modality="MR", StudyDate="20250607")
    liver_zyx = np.zeros(phantom_voxels().shape, np.uint8)
    liver_zyx[2:9, 5:15, 6:18] = 1
    write_segmentation(folder / "seg.dcm", ct, liver_zyx, "Liver")
    for path in sorted(folder.rglob("*.dcm")) + sorted(folder.rglob("IM*")):
        requests.post(f"{orthanc}/instances", data=path.read_bytes(), timeout=30).raise_for_status()
    yield folder
    for patient in requests.get(f"{orthanc}/patients", timeout=30).json():
        requests.delete(f"{orthanc}/patients/{patient}", timeout=30).raise_for_status()


def test_a_server_gives_the_volumes_and_masks_of_the_files(source: Path, orthanc: str, tiny: Params) -> None:
    with open_source(str(source), tiny.ingest) as cases:
        expected = {case.case_id: (case, case.image.read(), case.liver and case.liver.read()) for case in cases}
    with open_source(f"dicomweb+{orthanc}/dicom-web", tiny.ingest) as cases:
        assert {case.case_id for case in cases} == set(expected)
        for case in cases:
            wanted, image, liver = expected[case.case_id]
            assert (case.patient_id, case.modality, case.liver_state) == (
                wanted.patient_id,
                wanted.modality,
                wanted.liver_state,
            )
            with remote_cache.local(case, case.remote) as here:
                read = here.image.read()
                assert np.array_equal(voxels(read), voxels(image))
                assert read.GetOrigin() == image.GetOrigin()
                assert read.GetSpacing() == image.GetSpacing()
                assert (here.liver is None) == (liver is None)
                if here.liver is not None:
                    assert np.array_equal(voxels(here.liver.read()), voxels(liver))
    assert sum(liver is not None for _, _, liver in expected.values()) == 1


def test_a_scan_of_a_study_is_fetched_whole_to_be_predicted(source: Path, orthanc: str) -> None:
    (first, *_) = sorted((source / "ct").iterdir())
    study = pydicom.dcmread(first).StudyInstanceUID
    with open_scans(f"dicomweb+{orthanc}/dicom-web?StudyInstanceUID={study}") as found:
        (scan,) = found.scans
        assert [item.reason for item in found.left_out] == ["it is no image of CT or MR but Segmentation Storage"]
        with scan.fetched() as here:
            assert here.stack is not None
            assert here.stack.paths == here.image.files
            assert np.array_equal(voxels(here.image.read()), phantom_voxels())
            header = pydicom.dcmread(here.stack.paths[0])
            assert header.PatientID == IDENTIFIERS["PatientID"]  # a DICOM-SEG carries it on


def voxels(image: Any) -> np.ndarray[Any, Any]:
    return sitk.GetArrayFromImage(image)


def test_a_query_chooses_what_is_read(source: Path, orthanc: str, tiny: Params) -> None:
    with open_source(f"dicomweb+{orthanc}/dicom-web?StudyDate=20250101-20251231", tiny.ingest) as cases:
        assert [str(case.modality) for case in cases] == ["MR"]
    with (
        pytest.raises(DataError, match="no CT, MR, SEG or RTSTRUCT series found"),
        open_source(f"dicomweb+{orthanc}/dicom-web?PatientID=nobody", tiny.ingest),
    ):
        pass
    with (
        pytest.raises(DataError, match="Patient is not a DICOM attribute"),
        open_source(f"dicomweb+{orthanc}/dicom-web?Patient=x", tiny.ingest),
    ):
        pass


def test_a_listing_names_series_by_pseudonyms_and_counts_their_instances(source: Path, orthanc: str) -> None:
    address = f"dicomweb+{orthanc}/dicom-web"
    lines = [line.split(",") for line in list_source(address).splitlines()]
    assert sorted(count for _, _, count in lines) == ["1", "12", "12"]
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name, _, _ in lines)
    assert len(list_source(f"{address}?StudyDate=20250101-20251231").splitlines()) == 1
    before = list_source(address)
    write_series(source / "new", phantom_voxels(seed=2))
    for path in sorted((source / "new").iterdir()):
        requests.post(f"{orthanc}/instances", data=path.read_bytes(), timeout=30).raise_for_status()
    assert len(list_source(address).splitlines()) == len(before.splitlines()) + 1


def test_opening_a_source_fetches_no_pixels(
    source: Path, orthanc: str, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    download = dicomweb.WebInstance.download
    monkeypatch.setattr(
        dicomweb.WebInstance, "download", lambda self, target: (fetched.append(self), download(self, target))
    )
    with open_source(f"dicomweb+{orthanc}/dicom-web", tiny.ingest) as cases:
        assert len(fetched) == 1  # the segmentation, to know its segments
        headers = [path for case in cases for path in case.image.files]
        assert len(headers) == 24
        for path in headers:
            assert "PixelData" not in pydicom.dcmread(path)
            assert IDENTIFIERS["PatientName"].split("^")[0].encode() not in path.read_bytes()


def test_a_server_that_does_not_answer_is_named(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    with (
        pytest.raises(StorageError, match=r"http://127\.0\.0\.1:9/dicom-web"),
        open_source("dicomweb+http://127.0.0.1:9/dicom-web", tiny.ingest),
    ):
        pass
    assert pauses == sorted(pauses)  # retried with growing pauses
    assert len(pauses) > 1


def test_a_wrong_path_on_the_server_is_named(orthanc: str, tiny: Params) -> None:
    with pytest.raises(StorageError, match="404"), open_source(f"dicomweb+{orthanc}/elsewhere", tiny.ingest):
        pass

"""What identifies a patient stays in the source."""

from __future__ import annotations

import gzip
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import IDENTIFIERS, phantom_voxels, write_series

from hepar.cases import Cohort
from hepar.errors import DataError
from hepar.imaging.volumes import write_image
from hepar.ingest.cohort_building import build_cases
from hepar.ingest.quarantine import write_quarantine
from hepar.ingest.sources import dicom_tree
from hepar.ingest.sources.dicom_tree import Reading
from hepar.ingest.sources.pseudonyms import FILE_VARIABLE, VARIABLE, patient_key
from hepar.ingest.splits import assign_splits
from hepar.params import Params
from hepar.runtime.environment import EPHEMERAL_VARIABLE

KEY = b"a key of the tests"


def test_no_identifier_of_a_dicom_header_is_written_anywhere(tmp_path: Path, tiny: Params) -> None:
    paths = write_series(tmp_path / "source" / "GRIMALDI", phantom_voxels(), SeriesInstanceUID="1.2.826.7730021.99")
    write_series(tmp_path / "source" / "broken", phantom_voxels())[4].unlink()
    listed = assign_splits(dicom_tree.read(tmp_path / "source", Reading(KEY)), tiny.ingest.split)
    folder = tmp_path / "cohort"
    accepted, refused = build_cases(listed, folder, earlier=None)
    assert (len(accepted), len(refused)) == (1, 1)
    Cohort(folder, tuple(accepted)).save()
    write_quarantine(folder / Cohort.QUARANTINE, refused)

    words = {word for value in IDENTIFIERS.values() for word in value.replace("^", " ").split() if len(word) > 5}
    words = words - {"portal", "venous", "control"} | {"1.2.826.7730021.99", paths[0].name}
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".gz", ".parquet", ".csv", ".npz"}
    for path in written:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for word in words:
            assert word.encode() not in content, f"{word} in {path.name}"
            assert word not in str(path)


def test_the_facts_that_are_kept_are_those_of_the_list(tmp_path: Path) -> None:
    write_series(tmp_path, phantom_voxels(), KVP="120", Manufacturer="SIEMENS", StationName="ROOM-7")
    (case,) = dicom_tree.read(tmp_path, Reading(KEY))
    assert set(case.facts) == {"KVP", "Manufacturer", "SliceThickness", "ImageType"}


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "GRIMALDI", "AXIAL"]}, "['ORIGINAL', 'PRIMARY', 'AXIAL']"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]}, None),
        ({"ImageType": ["GRIMALDI", "PERPETUA"]}, ""),
        ({"Manufacturer": "SIEMENS for GRIMALDI"}, "SIEMENS"),
        ({"Manufacturer": "GRIMALDI"}, ""),
        ({"ScanningSequence": ["GR", "GRIMALDI"], "modality": "MR"}, "['GR']"),
        ({"SequenceVariant": "GRIMALDI", "modality": "MR"}, ""),
        ({"KVP": "19470311"}, ""),
        ({"KVP": "120.5"}, "120.5"),
    ],
)
def test_texts_of_a_dicom_header_are_kept_only_if_they_are_known(
    tags: dict[str, Any], kept: str | None, tmp_path: Path
) -> None:
    write_series(tmp_path, phantom_voxels(), **tags)
    (case,) = dicom_tree.read(tmp_path, Reading(KEY))
    name, value = next(iter(tags.items()))
    assert case.facts.get(name, "") == (str(value) if kept is None else kept)


def test_texts_of_a_nifti_header_are_not_written(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    for key in ("ITK_FileNotes", "descrip", "intent_name", "aux_file", "db_name"):
        image.SetMetaData(key, "GRIMALDI")
    write_image(image, tmp_path / "image.nii.gz")
    assert b"GRIMALDI" not in gzip.decompress((tmp_path / "image.nii.gz").read_bytes())
    assert image.HasMetaDataKey("descrip")  # the caller's image is as it was


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "keys" / "patient.key"))
    key = patient_key()
    assert len(key) >= 32
    assert patient_key() == key
    assert stat.S_IMODE(os.stat(tmp_path / "keys" / "patient.key").st_mode) == 0o600  # noqa: PTH116
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(DataError, match=f"the patient key in {VARIABLE} has 5 characters but must have at least 16"):
        patient_key()


def test_a_container_makes_no_key_that_it_would_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv(EPHEMERAL_VARIABLE, "1")
    with pytest.raises(DataError, match=f"would be lost: set {VARIABLE} or {FILE_VARIABLE}"):
        patient_key()
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(VARIABLE, "a key of the tests")
    assert patient_key() == b"a key of the tests"

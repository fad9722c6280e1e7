"""DICOM that breaks the standard: its series or file is refused by name, and the others are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from deadly import die_over_one
from dicom_files import phantom_voxels, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from hepar.errors import DataError, Refusal
from hepar.imaging.volumes import to_array
from hepar.ingest.sources import dicom_scan
from hepar.ingest.sources.dicom import read_header, stacks
from hepar.ingest.sources.dicom_tree import Reading, read
from hepar.ingest.sources.source import SourceCase

READING = Reading(b"a key of the tests")


def edit(path: Path, change: Callable[[Dataset], None]) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def setting(name: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, name, value)


def raw(name: str, value: bytes) -> Callable[[Dataset], None]:
    """Bytes as the value of a tag that pydicom would not write."""

    def change(dataset: Dataset) -> None:
        element = dataset[name]
        tag = pydicom.datadict.tag_for_keyword(name)
        assert tag is not None
        value_even = value + b" " * (len(value) % 2)
        dataset._dict[pydicom.tag.Tag(tag)] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), element.VR, len(value_even), value_even, 0, False, True
        )

    return change


def two_series(folder: Path) -> list[Path]:
    """A whole series, and one that a test may break; returns the files of the second."""
    write_series(folder / "whole", phantom_voxels(seed=1), SeriesDescription="portal venous")
    return write_series(folder / "broken", phantom_voxels(seed=2), SeriesDescription="arterial")


def sound_and_refused(folder: Path) -> tuple[list[SourceCase], list[Refusal]]:
    cases = read(folder, READING)
    return [case for case in cases if case.fault is None], [case.fault for case in cases if case.fault]


BROKEN = [
    (setting("ImagePositionPatient", ["1", "2"]), "ImagePositionPatient has 2 values"),
    (setting("ImagePositionPatient", ["1", "2", "3", "4"]), "ImagePositionPatient has 4 values"),
    (setting("ImageOrientationPatient", ["1", "0", "0"]), "ImageOrientationPatient has 3 values"),
    (setting("PixelSpacing", ["1", "1", "1"]), "PixelSpacing has 3 values"),
    (setting("PixelSpacing", "1"), "PixelSpacing has 1 values"),
    (setting("PixelSpacing", ["0", "1"]), "a voxel has 0.05 to 50 mm"),
    (setting("PixelSpacing", ["10000", "1"]), "a voxel has 0.05 to 50 mm"),
    (setting("ImageOrientationPatient", ["4", "0", "0", "0", "1", "0"]), "unit vectors at right angles"),
    (setting("ImageOrientationPatient", ["1", "0", "0", "0.6", "0.8", "0"]), "unit vectors at right angles"),
    (setting("Rows", [20, 20]), "Rows is not one whole number above 0"),
    (setting("Columns", 0), "Columns is not one whole number above 0"),
    (setting("SeriesInstanceUID", ["1.2.3", "1.2.4"]), "SeriesInstanceUID has 2 values"),
    (setting("SOPInstanceUID", ["1.2.3", "1.2.4"]), "SOPInstanceUID has 2 values"),
    (raw("ImagePositionPatient", b"a\\b\\c"), "ImagePositionPatient raises"),
    (raw("ImagePositionPatient", b"nan\\0\\0"), "ImagePositionPatient"),
    (lambda dataset: delattr(dataset, "PixelSpacing"), "a header gives the voxel size"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN)
@pytest.mark.parametrize("every", [True, False])
def test_a_series_with_an_invalid_header_is_refused_alone(
    change: Callable[[Dataset], None], words: str, every: bool, tmp_path: Path
) -> None:
    paths = two_series(tmp_path)
    for path in paths if every else paths[5:6]:
        edit(path, change)
    sound, refused = sound_and_refused(tmp_path)
    if every or not words.startswith("Series"):  # one slice of another series is taken for a scout
        assert any(words in str(fault) for fault in refused)
    whole = [case for case in sound if case.sequence == "portal-venous"]
    assert np.array_equal(to_array(whole[0].image.read()), phantom_voxels(seed=1))
    for case in sound:
        if case not in whole:  # a slice with another series' id, for one, leaves a gap
            with pytest.raises(DataError):
                case.image.read()


@pytest.mark.parametrize("pixels", [b"", b"\0" * 100, None])
@pytest.mark.parametrize("every", [True, False])
def test_a_slice_without_all_of_its_pixels_is_refused(pixels: bytes | None, every: bool, tmp_path: Path) -> None:
    paths = two_series(tmp_path)
    for path in paths if every else paths[5:6]:
        edit(path, (lambda d: delattr(d, "PixelData")) if pixels is None else setting("PixelData", pixels))
    cases = {case.sequence: case for case in read(tmp_path, READING) if case.fault is None}
    assert np.array_equal(to_array(cases["portal-venous"].image.read()), phantom_voxels(seed=1))
    with pytest.raises(Refusal, match=f"has {len(pixels or b'')} of {phantom_voxels(seed=2)[0].size * 2} bytes"):
        cases["arterial"].image.read()


def test_a_file_that_cannot_be_parsed_is_refused_by_its_folder(tmp_path: Path) -> None:
    (path, *_) = two_series(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:140] + b"\xff" * 40 + whole[180:])
    (tmp_path / "broken" / "notes.txt").write_text("no DICOM")
    sound, refused = sound_and_refused(tmp_path)
    assert len(sound) == 2
    assert [fault.rule for fault in refused] == ["every DICOM file can be read"]
    assert refused[0].value.startswith("1 of 12 files in folder 1 of 2 with DICOM files, ordered by path: ")


def test_a_file_that_kills_its_reader_is_refused_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "a", phantom_voxels())
    monkeypatch.setattr(dicom_scan, "_read_headers", die_over_one)
    found = list(dicom_scan.scan(tmp_path))
    assert len(found) == 12
    assert [instance.path.name for instance in found if instance.fault] == ["IM0003"]
    (refused,) = dicom_scan.refused_folders(found)
    assert refused.fault is not None
    assert refused.fault.value.endswith("the process that read it died of SIGSEGV")


def segmentation(image: Path) -> Dataset:
    """A DICOM-SEG of a liver on the series of an image, without the number of its segment."""
    header = pydicom.dcmread(image)
    dataset = Dataset()
    dataset.file_meta = header.file_meta
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    series, segment = Dataset(), Dataset()
    series.SeriesInstanceUID = header.SeriesInstanceUID
    segment.SegmentLabel = "Liver"
    dataset.ReferencedSeriesSequence, dataset.SegmentSequence = Sequence([series]), Sequence([segment])
    return dataset


def contours(image: Path) -> Dataset:
    """An RTSTRUCT of a liver without the number of its ROI."""
    dataset = segmentation(image)
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    study, frame, roi = Dataset(), Dataset(), Dataset()
    study.RTReferencedSeriesSequence = dataset.ReferencedSeriesSequence
    frame.RTReferencedStudySequence = Sequence([study])
    roi.ROIName = "liver"
    dataset.ReferencedFrameOfReferenceSequence, dataset.StructureSetROISequence = Sequence([frame]), Sequence([roi])
    return dataset


@pytest.mark.parametrize("make", [segmentation, contours])
def test_masks_without_numbers_refuse_the_image_that_they_name(make: Callable[[Path], Dataset], tmp_path: Path) -> None:
    image, *_ = two_series(tmp_path)
    dataset = make(image)
    pydicom.dcmwrite(tmp_path / "mask.dcm", dataset, enforce_file_format=True)
    sound, refused = sound_and_refused(tmp_path)
    assert [case.sequence for case in sound] == ["portal-venous"]
    assert [fault.rule for fault in refused] == ["every DICOM-SEG and RTSTRUCT is complete"]


@given(edits=st.lists(st.tuples(st.integers(128, 1600), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_mutated_headers_give_stacks_or_faults(
    edits: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    paths = write_series(folder, phantom_voxels(depth=8))
    whole = bytearray(paths[0].read_bytes())
    for at, by in edits:
        whole[at : at + len(by)] = by
    paths[0].write_bytes(whole)
    for stack in stacks([instance for path in paths if (instance := read_header(path)) is not None]):
        if stack.fault is None:
            assert len(stack.instances) == 8
            assert np.isfinite([instance.height_mm for instance in stack.instances]).all()
            assert stack.facts() is not None

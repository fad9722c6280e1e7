"""Writes DICOM as scanners do, with every identifier filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT_IMAGE, MR_IMAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
IDENTIFIERS = {
    "PatientName": "GRIMALDI^PERPETUA",
    "PatientID": "MRN-7730021",
    "PatientBirthDate": "19470311",
    "AccessionNumber": "ACC-5561234",
    "InstitutionName": "Spital Hinterzarten",
    "ReferringPhysicianName": "QUACKENBUSH^THADDEUS",
    "StudyDate": "20210407",
    "StudyDescription": "control of GRIMALDI PERPETUA",
    "SeriesDescription": "portal venous for QUACKENBUSH",
    "OtherPatientIDs": "PASSPORT-X99187",
    "PatientSex": "F",
    "StudyTime": "101112",
    "StudyID": "STUDY-88123",
    "ContentDate": "20210407",
    "ContentTime": "101500",
}
Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def phantom_voxels(depth: int = 12, seed: int = 0) -> Array:
    """HU, int16 zyx: soft tissue with noise, a bright box that distinguishes the axes, air around."""
    voxels_zyx = np.full((depth, 20, 24), -1000, np.int16)
    voxels_zyx[:, 3:17, 3:21] = np.random.default_rng(seed).integers(30, 70, (depth, 14, 18))
    voxels_zyx[2:5, 4:9, 5:14] = 300
    return voxels_zyx


@dataclass(frozen=True)
class Placement:
    """Slice i lies at `heights_mm[i]`, or i * step, along the normal, and at i * sideways along the columns."""

    step_mm: float = 3.0
    heights_mm: Sequence[float] | None = None
    sideways_mm: float = 0.0
    orientation: Sequence[float] = AXIAL

    def positions_n3_mm(self, slices: int) -> Array:
        """The ImagePositionPatient of each slice, float64 of n x 3."""
        columns = np.array(self.orientation[3:])
        normal = np.cross(self.orientation[:3], columns)
        index = np.arange(slices)[:, None]
        heights_mm = self.step_mm * index if self.heights_mm is None else np.array(self.heights_mm)[:, None]
        return np.array([-10.0, -20.0, -30.0]) + heights_mm * normal + index * self.sideways_mm * columns


@dataclass(frozen=True)
class Encoding:
    """How values are stored: value = slope * stored + intercept, in a transfer syntax."""

    slope: float = 1.0
    intercept: float = -1024.0
    syntax: str = ExplicitVRLittleEndian


STRAIGHT, PLAIN = Placement(), Encoding()


def write_series(
    folder: Path,
    voxels_zyx: Array,
    placement: Placement = STRAIGHT,
    encoding: Encoding = PLAIN,
    *,
    modality: str = "CT",
    names: str = "IM{:04d}",
    **tags: Any,
) -> list[Path]:
    """Write one file per slice; `tags` replace what a header has by default. Returns the paths in order of slices."""
    folder.mkdir(parents=True, exist_ok=True)
    series = {"SeriesInstanceUID": generate_uid(), "StudyInstanceUID": generate_uid()} | tags
    paths = []
    positions_n3_mm = placement.positions_n3_mm(len(voxels_zyx))
    for index, (plane_yx, position_mm) in enumerate(zip(voxels_zyx, positions_n3_mm, strict=True)):
        dataset = _header(modality, index + 1, series)
        dataset.ImagePositionPatient = [f"{value:.6g}" for value in position_mm]
        dataset.ImageOrientationPatient = [f"{value:.6g}" for value in placement.orientation]
        _store(dataset, plane_yx, encoding)
        path = folder / names.format(index)
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
        paths.append(path)
    return paths


def _header(modality: str, number: int, tags: Mapping[str, Any]) -> Dataset:
    dataset = Dataset()
    for name, value in {**IDENTIFIERS, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], **tags}.items():
        setattr(dataset, name, value)
    dataset.SOPClassUID = CT_IMAGE if modality == "CT" else MR_IMAGE
    dataset.SOPInstanceUID = generate_uid()
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(dataset.StudyInstanceUID)])
    dataset.Modality = modality
    dataset.InstanceNumber = number
    dataset.PixelSpacing = ["0.8", "0.7"]
    dataset.SliceThickness = "5"  # not the step, as so often
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _store(dataset: Dataset, plane_yx: Array, encoding: Encoding) -> None:
    """Add the pixels of one slice. MR is stored without slope and intercept."""
    dataset.Rows, dataset.Columns = plane_yx.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    if dataset.Modality == "CT":
        dataset.RescaleSlope, dataset.RescaleIntercept = str(encoding.slope), str(encoding.intercept)
        plane_yx = np.round((plane_yx - encoding.intercept) / encoding.slope)
    dataset.PixelData = plane_yx.astype("<u2").tobytes()
    if encoding.syntax != ExplicitVRLittleEndian:
        dataset.compress(encoding.syntax)


def write_segmentation(path: Path, slices: Sequence[Path], mask_zyx: Array, *labels: str, **options: Any) -> None:
    """A DICOM-SEG on the slices of a scan: uint8 zyx of one segment, or zyxn of several, each `Liver` or `Lesion`."""
    descriptions = [
        highdicom.seg.SegmentDescription(
            number,
            label,
            codes.SCT.Organ if label == "Liver" else codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.Liver if label == "Liver" else codes.SCT.Neoplasm,
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in enumerate(labels, start=1)
    ]
    highdicom.seg.Segmentation(
        [pydicom.dcmread(slice_) for slice_ in slices],
        mask_zyx,
        highdicom.seg.SegmentationTypeValues.BINARY,
        descriptions,
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="none",
        manufacturer_model_name="none",
        software_versions="1",
        device_serial_number="1",
        **options,
    ).save_as(path)

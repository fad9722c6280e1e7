"""Writes DICOM as scanners do, with every identifier filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
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
    """HU, zyx: soft tissue with noise, a bright box that tells the axes apart, air around."""
    voxels = np.full((depth, 20, 24), -1000, np.int16)
    voxels[:, 3:17, 3:21] = np.random.default_rng(seed).integers(30, 70, (depth, 14, 18))
    voxels[2:5, 4:9, 5:14] = 300
    return voxels


def write_series(
    folder: Path,
    voxels_zyx: Array,
    *,
    step_mm: float = 3.0,
    heights: Sequence[float] | None = None,
    sideways_mm: float = 0.0,
    orientation: Sequence[float] = AXIAL,
    modality: str = "CT",
    series: str | None = None,
    study: str | None = None,
    names: str = "IM{:04d}",
    slope: float = 1.0,
    intercept: float = -1024.0,
    syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> list[Path]:
    """One file a slice; slice i lies `heights[i]` (or i * step) along the normal and i * sideways along the columns."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study = series or generate_uid(), study or generate_uid()
    rows, columns = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(rows, columns)
    places = heights if heights is not None else [step_mm * index for index in range(len(voxels_zyx))]
    paths = []
    for index, (plane, height) in enumerate(zip(voxels_zyx, places, strict=True)):
        dataset = Dataset()
        for name, value in {**IDENTIFIERS, **tags}.items():
            setattr(dataset, name, value)
        dataset.SOPClassUID = CT_IMAGE if modality == "CT" else MR_IMAGE
        dataset.SOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID = series, study
        dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[study])
        dataset.Modality = modality
        if "ImageType" not in tags:
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.InstanceNumber = index + 1
        position = np.array([-10.0, -20.0, -30.0]) + height * normal + index * sideways_mm * columns
        dataset.ImagePositionPatient = [f"{value:.6g}" for value in position]
        dataset.ImageOrientationPatient = [f"{value:.6g}" for value in orientation]
        dataset.PixelSpacing = ["0.8", "0.7"]
        dataset.SliceThickness = "5"  # not the step, as so often
        dataset.Rows, dataset.Columns = plane.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        if modality == "CT":
            dataset.RescaleSlope, dataset.RescaleIntercept = str(slope), str(intercept)
        stored = np.round((plane - intercept) / slope if modality == "CT" else plane).astype("<u2")
        dataset.PixelData = stored.tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        if syntax != ExplicitVRLittleEndian:
            dataset.compress(syntax)
        path = folder / names.format(index)
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
        paths.append(path)
    return paths

"""What SimpleITK and pydicom alone read from files, and what lies in a cohort: `python plain_reading.py REQUEST`.

REQUEST is a JSON list of objects with `case_id`, `modality`, and either `path` or the `files` of a DICOM `series`.
Prints a JSON object a line: `case_id`, the grid in LPS orientation, and SHA-256 of the voxels as int16 (CT) or float32.
It runs in a process of its own, since a file may end it.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk

GZIP = 16 + zlib.MAX_WBITS  # zlib's name of the format


def describe(image: sitk.Image, modality: str) -> dict[str, Any]:
    """The grid and the hash of the voxels in LPS orientation. Raises RuntimeError if it is no volume."""
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    oriented = sitk.DICOMOrient(image, "LPS")
    voxels = sitk.GetArrayFromImage(sitk.Cast(oriented, sitk.sitkInt16 if modality == "CT" else sitk.sitkFloat32))
    return {
        "size": list(oriented.GetSize()),
        "spacing": list(oriented.GetSpacing()),
        "origin": list(oriented.GetOrigin()),
        "direction": list(oriented.GetDirection()),
        "sha256": hashlib.sha256(voxels.tobytes()).hexdigest(),
    }


def read_series(files: list[str], series: str) -> sitk.Image:
    """A series of axial or oblique slices, by pydicom and arithmetic."""
    found = [pydicom.dcmread(path) for path in files if Path(path).is_file()]
    slices = [dataset for dataset in found if dataset.get("SeriesInstanceUID") == series]
    right, down = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(right, down)
    heights_mm = [float(np.dot(normal, np.array(dataset.ImagePositionPatient, float))) for dataset in slices]
    slices = [slices[i] for i in np.argsort(heights_mm)]
    voxels_zyx = np.array(
        [
            dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
            for dataset in slices
        ]
    )
    image = sitk.GetImageFromArray(voxels_zyx.astype(np.float32))
    row_mm, column_mm = map(float, slices[0].PixelSpacing)
    image.SetSpacing([column_mm, row_mm, (max(heights_mm) - min(heights_mm)) / (len(slices) - 1)])
    image.SetOrigin([float(value) for value in slices[0].ImagePositionPatient])
    image.SetDirection(np.stack([right, down, normal], axis=1).ravel().tolist())
    return image


def check_compression(path: Path) -> None:
    """Unpack compressed voxels by Python. Raises where a checksum is wrong, which ITK overlooks outside NIfTI."""
    data = path.read_bytes()
    if path.name.endswith(".gz"):
        unpack(data, GZIP)
    elif path.suffix == ".mha" and re.search(rb"^CompressedData *= *True", data, re.MULTILINE):
        unpack(data.split(b"ElementDataFile = LOCAL\n", 1)[1], zlib.MAX_WBITS)
    elif path.suffix == ".nrrd" and re.search(rb"^encoding: *gz", data, re.MULTILINE):
        unpack(data.split(b"\n\n", 1)[1], GZIP)


def unpack(data: bytes, window: int) -> None:
    unpacker = zlib.decompressobj(window)
    unpacker.decompress(data)
    if not unpacker.eof:
        raise ValueError("the compressed voxels end early")


def read(request: Mapping[str, Any]) -> dict[str, Any]:
    if "files" in request:
        return describe(read_series(request["files"], request["series"]), request["modality"])
    path = Path(request["path"])
    check_compression(path)
    return describe(sitk.ReadImage(str(path)), request["modality"])


def main(requests: Path) -> None:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for request in json.loads(requests.read_text()):
        print(json.dumps({"case_id": request["case_id"], "started": True}), flush=True)
        try:
            found = read(request)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error).strip()[-200:]}"}
        print(json.dumps({"case_id": request["case_id"], **found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

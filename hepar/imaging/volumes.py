"""Volumes: an array with its place in the patient. Read, write, orient, resample, by SimpleITK.

Arrays run z, y, x. Positions are LPS millimetres, as in SimpleITK and DICOM. The canonical orientation is LPS: x grows
to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from hepar.errors import DataError

CANONICAL = "LPS"
WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
MAX_EXPANSION = 1100  # voxels a byte: gzip packs zeros to about a thousandth
MIN_VOXEL_LIMIT = 2**27
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Geometry:
    """A grid in the patient: `size_zyx`, `spacing_zyx_mm`, `origin_xyz_mm` (LPS) and the 3x3 `direction` by rows."""

    size_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        x, y, z = image.GetSize()
        dx, dy, dz = image.GetSpacing()
        return cls((z, y, x), (dz, dy, dx), image.GetOrigin(), image.GetDirection())

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_zyx_mm)) / 1000

    def with_spacing(self, spacing_zyx_mm: tuple[float, float, float]) -> Geometry:
        """The grid of another spacing over the same extent: outer borders agree to half a voxel."""
        size = tuple(
            max(1, round(n * old / new))
            for n, old, new in zip(self.size_zyx, self.spacing_zyx_mm, spacing_zyx_mm, strict=True)
        )
        shift_zyx = [(new - old) / 2 for old, new in zip(self.spacing_zyx_mm, spacing_zyx_mm, strict=True)]
        axes = np.array(self.direction).reshape(3, 3)
        origin = np.array(self.origin_xyz_mm) + axes @ np.array(shift_zyx[::-1])
        return Geometry((size[0], size[1], size[2]), spacing_zyx_mm, tuple(origin.tolist()), self.direction)

    def agrees_with(self, other: Geometry, tolerance_mm: float = 0.01) -> bool:
        """Whether two grids are the same up to rounding of their headers."""
        return (
            self.size_zyx == other.size_zyx
            and bool(np.allclose(self.spacing_zyx_mm, other.spacing_zyx_mm, atol=1e-3))
            and bool(np.allclose(self.origin_xyz_mm, other.origin_xyz_mm, atol=max(tolerance_mm, 1e-3)))
            and bool(np.allclose(self.direction, other.direction, atol=1e-3))
        )


def read_image(path: Path) -> sitk.Image:
    """Read a volume as stored. Raises DataError if it is missing, unreadable or not three-dimensional."""
    reader = read_header(path)
    _check_size(path, reader)
    with _readable(path):
        image = reader.Execute()
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(f"{path} is {'×'.join(map(str, image.GetSize()))}, must be one three-dimensional volume")
    return image


def read_header(path: Path) -> sitk.ImageFileReader:
    """What a volume's header says, without its voxels. Raises DataError if it is missing or unreadable."""
    if not path.is_file():
        raise DataError(f"{path} {'is a folder, must be a file' if path.is_dir() else 'does not exist'}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _readable(path):
        reader.ReadImageInformation()
    return reader


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from None


def _check_size(path: Path, reader: sitk.ImageFileReader) -> None:
    """Refuse a header that claims more voxels than its file holds, before anything is allocated."""
    voxels, stored = math.prod(int(n) for n in reader.GetSize()), path.stat().st_size
    if voxels > max(MAX_EXPANSION * stored, MIN_VOXEL_LIMIT):
        size = "×".join(map(str, reader.GetSize()))
        raise DataError(f"{path} claims {size} voxels, but the file has {stored} bytes")
    if path.name.lower().endswith((".nii", ".nii.gz")) and reader.HasMetaDataKey("bitpix"):
        # what a NIfTI file lacks at its end ITK gives as zeros, without a word
        needed = int(float(reader.GetMetaData("vox_offset"))) + voxels * int(reader.GetMetaData("bitpix")) // 8
        there = _unpacked_bytes(path, needed) if path.name.lower().endswith(".gz") else stored
        if there < needed:
            raise DataError(f"{path} ends after {there} of {needed} bytes: it was cut off")


def _unpacked_bytes(path: Path, needed: int) -> int:
    """How many bytes a gzip file gives. Its last four tell, modulo 2³²; only where they differ it is unpacked."""
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        if int.from_bytes(file.read(), "little") == needed % 2**32:
            return needed
    there = 0
    with suppress(EOFError, OSError, zlib.error), gzip.open(path) as unpacked:
        while part := unpacked.read(2**20):
            there += len(part)
    return there


def without_texts(image: sitk.Image) -> sitk.Image:
    """The image without the texts of its header, which may say anything about anybody."""
    bare = sitk.Image(image)
    for key in bare.GetMetaDataKeys():
        bare.EraseMetaData(key)
    return bare


def write_image(image: sitk.Image, path: Path) -> None:
    """Write a volume, compressed and without the texts of its header; the folder is made where needed.

    Raises DataError for a name whose ending is of no format that volumes are written in.
    """
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(without_texts(image), str(path), useCompression=True)


def check_writable(path: Path) -> None:
    """Raise DataError for a name whose ending is of no format that volumes are written in."""
    if not path.name.lower().endswith(WRITABLE):
        raise DataError(f"{path} cannot be written: its name must end in {', '.join(WRITABLE)}")


def canonical(image: sitk.Image) -> sitk.Image:
    """The same voxels with their axes permuted and flipped to the canonical orientation; no interpolation."""
    return sitk.DICOMOrient(image, CANONICAL)


def to_source_grid(volume: sitk.Image, header: str) -> sitk.Image:
    """A canonical volume of a case back on the grid of the case's source, voxel by voxel; the inverse of `canonical`.

    `header` is the case's record of the source's header. Raises DataError where the volume has another size.
    """
    source = json.loads(header)
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(source["direction"])
    back = sitk.DICOMOrient(volume, orientation)
    if list(back.GetSize()) != source["size_xyz"]:
        raise DataError(f"a volume of {back.GetSize()} voxels is none of a source with {tuple(source['size_xyz'])}")
    back.SetOrigin(source["origin_lps_mm"])
    back.SetSpacing(source["spacing_xyz_mm"])
    back.SetDirection(source["direction"])
    return back


def to_array(image: sitk.Image) -> Array:
    """The voxels as an array zyx, copied."""
    return np.asarray(sitk.GetArrayFromImage(image))


def to_image(array_zyx: Array, geometry: Geometry) -> sitk.Image:
    """A volume out of an array zyx and its grid; booleans become uint8."""
    if array_zyx.dtype == np.bool_:
        array_zyx = array_zyx.astype(np.uint8)
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing(geometry.spacing_zyx_mm[::-1])
    image.SetOrigin(geometry.origin_xyz_mm)
    image.SetDirection(geometry.direction)
    return image


def resample(image: sitk.Image, geometry: Geometry) -> sitk.Image:
    """Linear interpolation of a volume, as float32, at the voxels of another grid.

    Outside the source the nearest voxel of its border is taken. Where the new spacing is coarser, the source is
    smoothed first so that nothing aliases.
    """
    if Geometry.of(image) == geometry:
        return sitk.Cast(image, sitk.sitkFloat32)
    source = sitk.Cast(image, sitk.sitkFloat32)
    old, new = source.GetSpacing(), geometry.spacing_zyx_mm[::-1]
    sigmas = [max(0.0, (b / a) ** 2 - 1) ** 0.5 * 0.4 * a for a, b in zip(old, new, strict=True)]
    for axis, sigma in enumerate(sigmas):
        if sigma > 0.2 * old[axis] and source.GetSize()[axis] >= 4:
            source = sitk.RecursiveGaussian(source, sigma, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis)
    return sitk.Resample(
        source,
        geometry.size_zyx[::-1],
        sitk.Transform(),
        sitk.sitkLinear,
        geometry.origin_xyz_mm,
        new,
        geometry.direction,
        0.0,
        sitk.sitkFloat32,
        True,
    )


def resample_mask(mask: sitk.Image, geometry: Geometry) -> npt.NDArray[np.bool_]:
    """A binary mask on another grid, as an array zyx: interpolated linearly and cut at one half."""
    soft = resample(sitk.Cast(mask > 0, sitk.sitkFloat32), geometry)
    return np.asarray(to_array(soft) > 0.5)

"""Volumes with their geometry: reading, writing, orientation and resampling, by SimpleITK.

Arrays run z, y, x. Positions are LPS millimetres, as in SimpleITK and DICOM. The canonical orientation is LPS: x grows
to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from hepar.errors import DataError, Refusal
from hepar.imaging import headers
from hepar.imaging.grid_rules import DIRECTION_TOLERANCE, MISSING_SPACING_RULE, check_grid, numbers, size_text
from hepar.imaging.headers import check_regular
from hepar.imaging.masks import Mask, voxel_mm3
from hepar.runtime.whole_files import whole_file

CANONICAL = "LPS"
DEFAULT_LEVEL = -1  # of compression: the choice of the format
WRITABLE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
MAX_VOXELS_PER_BYTE = 1100  # of a file: gzip packs zeros to about a thousandth
ALLOWED_VOXELS = 2**27  # whatever the size of the file
ORIGIN_TOLERANCE_MM = 0.01  # between grids that agree: headers round
ALIASING_SIGMA = 0.4  # of the smoothing before a coarser grid, in units of sqrt(new spacing² - old spacing²)
LEAST_SIGMA = 0.2  # voxels; less is not smoothed
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Geometry:
    """A grid in the patient: size, spacing, origin (LPS) and the 3×3 direction matrix, row by row."""

    size_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    origin_xyz_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        """The grid of a volume."""
        x, y, z = image.GetSize()
        dx, dy, dz = image.GetSpacing()
        return cls((z, y, x), (dz, dy, dx), image.GetOrigin(), image.GetDirection())

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return voxel_mm3(self.spacing_zyx_mm) / 1000

    @property
    def orientation(self) -> str:
        """Where the axes x, y and z mostly point, as three letters: LPS is the canonical orientation."""
        return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.direction))

    def to_lps_mm(self, index_zyx: tuple[float, float, float]) -> tuple[float, float, float]:
        """The place of an index, which may lie between voxels, in LPS millimetres."""
        offset_xyz_mm = np.array(index_zyx[::-1]) * self.spacing_zyx_mm[::-1]
        left, posterior, superior = self.origin_xyz_mm + np.array(self.direction).reshape(3, 3) @ offset_xyz_mm
        return float(left), float(posterior), float(superior)

    def cropped(self, box: tuple[slice, ...]) -> Geometry:
        """The grid of a part of a volume; a slice without a start or stop, or beyond the volume, ends at its border."""
        (z, z_stop, _), (y, y_stop, _), (x, x_stop, _) = (
            part.indices(size) for part, size in zip(box, self.size_zyx, strict=True)
        )
        size_zyx = (z_stop - z, y_stop - y, x_stop - x)
        return Geometry(size_zyx, self.spacing_zyx_mm, self.to_lps_mm((z, y, x)), self.direction)

    def with_spacing(self, spacing_zyx_mm: tuple[float, float, float]) -> Geometry:
        """The grid over the same extent at another spacing; outer borders agree to half a voxel."""
        z, y, x = (
            max(1, round(n * old / new))
            for n, old, new in zip(self.size_zyx, self.spacing_zyx_mm, spacing_zyx_mm, strict=True)
        )
        shift_zyx_mm = [(new - old) / 2 for old, new in zip(self.spacing_zyx_mm, spacing_zyx_mm, strict=True)]
        direction = np.array(self.direction).reshape(3, 3)
        origin_xyz_mm = np.array(self.origin_xyz_mm) + direction @ np.array(shift_zyx_mm[::-1])
        return Geometry((z, y, x), spacing_zyx_mm, tuple(origin_xyz_mm.tolist()), self.direction)

    def agrees_with(self, other: Geometry) -> bool:
        """Whether two grids are the same up to rounding in their headers."""
        return (
            self.size_zyx == other.size_zyx
            and bool(np.allclose(self.spacing_zyx_mm, other.spacing_zyx_mm, atol=1e-3))
            and bool(np.allclose(self.origin_xyz_mm, other.origin_xyz_mm, atol=ORIGIN_TOLERANCE_MM))
            and bool(np.allclose(self.direction, other.direction, atol=DIRECTION_TOLERANCE))
        )


def grid_difference(mask: Geometry, image: Geometry) -> str:
    """The grids of a mask and its image, for messages, if they differ; empty if they are the same."""
    if mask.agrees_with(image):
        return ""
    parallel = np.allclose(mask.direction, image.direction, atol=DIRECTION_TOLERANCE)
    axes = ("", "") if parallel else (_describe_axes(mask, image), _describe_axes(image, mask))
    return f"the mask has {_describe_grid(mask)}{axes[0]}, but the image has {_describe_grid(image)}{axes[1]}"


def _describe_grid(grid: Geometry) -> str:
    spacing, origin = (" ".join(f"{mm:g}" for mm in values) for values in (grid.spacing_zyx_mm, grid.origin_xyz_mm))
    return f"{size_text(grid.size_zyx)} voxels, spacing {spacing} mm zyx and origin {origin} mm xyz"


def _describe_axes(grid: Geometry, other: Geometry) -> str:
    """The orientation of a grid, or its direction cosines if the orientation is that of the other grid."""
    if grid.orientation != other.orientation:
        return f" in orientation {grid.orientation}"
    return f" with direction cosines {numbers(grid.direction)}"


def read_image(path: Path, *, spacing_known: bool = True, inside: Path | None = None) -> sitk.Image:
    """Read a volume in its stored orientation.

    If its header names other files for the voxels, they lie in the folder `inside`, by default the file's own. Raises
    DataError if a file is missing, unreadable or elsewhere, not one 3-D volume of real numbers, or its grid is no
    scan's; if `spacing_known`, also if the header does not give the voxel size.
    """
    header = headers.read_header(path)
    check_inside(header.data_files, (inside or path.resolve().parent,))
    check_size(path, header)
    if spacing_known and not header.has_spacing:
        raise Refusal(MISSING_SPACING_RULE, f"{path} gives none")
    with headers.readable(path, header) as opened, _read_errors_of(path):
        reader = sitk.ImageFileReader()
        reader.SetImageIO(header.reader)
        reader.SetFileName(str(opened))
        image = reader.Execute()
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise DataError(f"{path} has size {size_text(image.GetSize()[::-1])} but must be a single 3-D volume")
    check_grid(image)
    return image


def read_mask(path: Path) -> Mask:
    """Read a mask, bool zyx: the voxels above 0, in their stored orientation. Raises DataError as `read_image` does."""
    return np.asarray(to_array(read_image(path)) > 0)


def check_inside(paths: Iterable[Path], folders: Iterable[Path]) -> None:
    """Raise DataError unless all paths are regular files that lie, links followed, in one of the folders."""
    roots = [folder.resolve() for folder in folders]
    for path in paths:
        check_regular(path)
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise DataError(f"{path} leads out of the source")


@contextmanager
def _read_errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from None


def check_size(path: Path, header: headers.Header) -> None:
    """Raise DataError, before memory is allocated, if a file is too small for the size in its header or damaged."""
    stored_bytes = sum(file.stat().st_size for file in header.data_files or (path,))
    if header.voxels > max(MAX_VOXELS_PER_BYTE * stored_bytes, ALLOWED_VOXELS):
        size = size_text(header.size_xyz[::-1])
        raise DataError(f"{path} claims {size} voxels, but the file has {stored_bytes} bytes")
    if header.packed:
        for file in header.data_files or (path,):
            header.packed.check(file)
    elif header.reader == "NiftiImageIO":
        # ITK silently reads the missing end of a NIfTI file as zeros
        needed_bytes = header.data_offset + header.voxels * header.voxel_bytes
        if stored_bytes < needed_bytes:
            raise DataError(f"{path} is truncated: it ends after {stored_bytes} of {needed_bytes} bytes")


def without_metadata(image: sitk.Image) -> sitk.Image:
    """The volume without the text fields of its header, which may identify a patient."""
    bare = sitk.Image(image)
    for key in bare.GetMetaDataKeys():
        bare.EraseMetaData(key)
    return bare


def write_image(image: sitk.Image, path: Path, note: str = "", level: int = DEFAULT_LEVEL) -> None:
    """Write a volume, compressed and without header texts but for a note, and make its folder if needed.

    A note of at most 79 characters becomes the `descrip` of a NIfTI header; `level` is that of the compression, 1 to 9.

    What was written is read back, since ITK ignores a full disk. Raises DataError as `check_writable` does, or if the
    format cannot hold the volume, and DiskFull if the disk is full; then nothing is left.
    """
    check_writable(path)
    with whole_file(path) as partial:
        try:
            bare = without_metadata(image)
            if note:
                bare.SetMetaData("ITK_FileNotes", note)
            sitk.WriteImage(bare, str(partial), useCompression=True, compressionLevel=level)
            problem = _compare_written(image, partial)
        except RuntimeError as error:
            problem = str(error).strip().splitlines()[-1]
        if problem:
            raise DataError(f"{path} cannot be written: {problem}")


def _compare_written(image: sitk.Image, path: Path) -> str:
    """How the file of a volume differs from it; empty if it does not.

    The voxels are compared but for scans in NIfTI, of which only the grid, the type and the unpacked size are.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if reader.GetSize() != image.GetSize() or reader.GetPixelID() != image.GetPixelID():
        return "what was written has another size or voxel type"
    is_mask = image.GetPixelID() == sitk.sitkUInt8
    if not is_mask and path.name.lower().endswith(".nii.gz"):
        offset = int(float(reader.GetMetaData("vox_offset")))
        if _gzip_size(path) != (offset + image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()) % 2**32:
            return "what was written is incomplete"
        return _compare_grids(image, reader)
    stored = reader.Execute()
    if not np.array_equal(sitk.GetArrayViewFromImage(stored), sitk.GetArrayViewFromImage(image), equal_nan=not is_mask):
        return "what was written has other voxels"
    return _compare_grids(image, reader)


def _compare_grids(image: sitk.Image, written: sitk.ImageFileReader) -> str:
    spacing, origin_mm = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    same = (
        np.allclose(written.GetSpacing(), spacing, rtol=1e-4)
        and np.allclose(written.GetOrigin(), origin_mm, rtol=1e-5, atol=1e-2)  # NIfTI has them as float32
        and np.allclose(written.GetDirection(), image.GetDirection(), atol=1e-3)
    )
    return "" if same else "its format cannot hold the spacing, origin or direction of the volume"


def _gzip_size(path: Path) -> int:
    """The unpacked size of a gzip file, modulo 2³², from its last four bytes."""
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little")


def check_writable(path: Path) -> None:
    """Raise DataError unless the file name ends in one of `WRITABLE_SUFFIXES`."""
    if not path.name.lower().endswith(WRITABLE_SUFFIXES):
        raise DataError(f"{path} cannot be written: its name must end in {', '.join(WRITABLE_SUFFIXES)}")


def canonical(image: sitk.Image) -> sitk.Image:
    """Permute and flip the axes of a volume to the canonical orientation, without interpolation."""
    return sitk.DICOMOrient(image, CANONICAL)


def to_source_grid(volume: sitk.Image, header: str) -> sitk.Image:
    """Put a canonical volume of a case back on the grid of its source, without interpolation; inverts `canonical`.

    `header` is `Case.header`, as JSON. Raises DataError if the volume does not have the size of the source.
    """
    source = json.loads(header)
    orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(source["direction"])
    back = sitk.DICOMOrient(volume, orientation)
    if list(back.GetSize()) != source["size_xyz"]:
        raise DataError(
            f"the volume has {back.GetSize()} voxels along x, y, z but must have those of its source,"
            f" {tuple(source['size_xyz'])}"
        )
    back.SetOrigin(source["origin_lps_mm"])
    back.SetSpacing(source["spacing_xyz_mm"])
    back.SetDirection(source["direction"])
    return back


def to_array(image: sitk.Image) -> Array:
    """The voxels of a volume as an array zyx of its own type, copied."""
    return np.asarray(sitk.GetArrayFromImage(image))


def to_image(array_zyx: Array, geometry: Geometry) -> sitk.Image:
    """A volume from an array zyx and its grid; bool becomes uint8."""
    if array_zyx.dtype == np.bool_:
        array_zyx = array_zyx.astype(np.uint8)
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing(geometry.spacing_zyx_mm[::-1])
    image.SetOrigin(geometry.origin_xyz_mm)
    image.SetDirection(geometry.direction)
    return image


def resample(image: sitk.Image, geometry: Geometry) -> sitk.Image:
    """Interpolate a volume linearly on another grid, as float32.

    Outside the volume its nearest border voxel is taken. Along axes with a coarser new spacing it is smoothed first,
    against aliasing.
    """
    if Geometry.of(image) == geometry:
        return sitk.Cast(image, sitk.sitkFloat32)
    source = sitk.Cast(image, sitk.sitkFloat32)
    old, new = source.GetSpacing(), geometry.spacing_zyx_mm[::-1]
    sigmas = [max(0.0, (b / a) ** 2 - 1) ** 0.5 * ALIASING_SIGMA * a for a, b in zip(old, new, strict=True)]
    for axis, sigma in enumerate(sigmas):
        if sigma > LEAST_SIGMA * old[axis] and source.GetSize()[axis] >= 4:
            source = sitk.RecursiveGaussian(source, sigma, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis)
    return _interpolate(source, geometry)


def _interpolate(image: sitk.Image, geometry: Geometry) -> sitk.Image:
    """Interpolate a volume linearly between the centres of its voxels, as float32; outside the nearest one counts."""
    return sitk.Resample(
        image,
        geometry.size_zyx[::-1],
        sitk.Transform(),
        sitk.sitkLinear,
        geometry.origin_xyz_mm,
        geometry.spacing_zyx_mm[::-1],
        geometry.direction,
        0.0,
        sitk.sitkFloat32,
        True,
    )


def resample_mask(mask: sitk.Image, geometry: Geometry) -> Mask:
    """Resample a mask (above 0) to another grid, bool zyx: the voxels whose centres lie in it, by linear interpolation.

    Unlike an image it is not smoothed on the way to a coarser grid, which would shrink lesions of few voxels or lose
    them. An empty mask stays empty.
    """
    share = _interpolate(sitk.Cast(mask > 0, sitk.sitkFloat32), geometry)
    return np.asarray(to_array(share) >= 0.5)

"""Reading DICOM volumes: slices placed by their positions, not by SliceThickness or file names.

Positions are LPS millimetres (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.dataelem import RawDataElement

from hepar.errors import DataError, Refusal, one_line
from hepar.imaging.modality import has_two_values
from hepar.imaging.volumes import to_array
from hepar.ingest.sources.dicom import ENHANCED, MIN_SLICES, Instance, Vector, mixed_identity, read_header
from hepar.params import Uneven

SPACING_TOLERANCE = 0.02  # of the step between slices
TILT_TOLERANCE = 0.02  # sideways from slice to slice, of the step between them
MAX_DRIFT_PIXELS = 0.5  # sideways over the stack: with more, the voxel nearest to a pixel is that of its neighbour


class UnevenRefusal(Refusal):
    """Slices are tilted or unevenly spaced; they can be resampled."""


def with_option(error: DataError) -> str:
    """The sentence of an error, with the option of the commands that predict if its slices can be resampled."""
    hint = "; --uneven-slices resample resamples them" if isinstance(error, UnevenRefusal) else ""
    return f"{error}{hint}"


@dataclass(frozen=True)
class DicomVolume:
    """A stack as a volume: CT in HU, MR in its own units, a mask as 1 where the stored value is not 0."""

    paths: tuple[Path, ...]  # from low to high
    uneven: Uneven = "refuse"
    mask: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        return self.paths

    def read(self) -> sitk.Image:
        """Raises Refusal if slices are missing, doubled, of several patients or show text, or a mask has three values.

        Uneven or tilted ones are refused too, unless `uneven` is resample.
        """
        instances = [instance for instance in map(read_header, self.paths) if instance is not None]
        if len(instances) != len(self.paths):
            broken = len(self.paths) - len(instances)
            raise Refusal("every slice is a DICOM instance", f"{broken} of {len(self.paths)} are not")
        if fault := next((instance.fault for instance in instances if instance.fault), None):
            raise fault
        _check_identity(instances)
        _check_burned_in(instances)
        if len(instances) == 1 and instances[0].get("SOPClassUID") in ENHANCED:
            image = _read_enhanced(self.paths[0])
        else:
            image = _read_classic(instances, self.uneven, self.mask)
        return _as_mask(image, self.paths[0]) if self.mask else image


def _as_mask(image: sitk.Image, path: Path) -> sitk.Image:
    """1 at the upper of two values. A mask may keep the intercept of its CT, so the lower one is 0 or a stored 0.

    `path` is one of its files.
    """
    values_zyx = to_array(image)
    lowest = float(values_zyx.min())
    if not has_two_values(values_zyx):
        raise Refusal("a mask series has at most two values", f"more than two from {lowest:g} to {values_zyx.max():g}")
    header = pydicom.dcmread(path, stop_before_pixels=True)
    intercepts = {float(item.value) for item in header.iterall() if item.keyword == "RescaleIntercept"}
    if not np.isclose(lowest, [0.0, *intercepts]).any():
        raise Refusal("a mask series is 0 outside of its structure", f"its lowest value is {lowest:g}")
    return image > lowest


def _check_identity(instances: Sequence[Instance]) -> None:
    if name := mixed_identity(instances):
        count = len({str(instance.get(name) or "") for instance in instances})
        raise Refusal(f"all slices of a volume have one {name}", f"{count} in {len(instances)} slices")


def _check_burned_in(instances: Sequence[Instance]) -> None:
    """Raise Refusal if a header says that its pixels show text, which may name the patient."""
    marked = sum(str(instance.get("BurnedInAnnotation") or "").strip().upper() == "YES" for instance in instances)
    if marked:
        raise Refusal("no slice has burned-in annotation", f"BurnedInAnnotation is YES in {marked} of {len(instances)}")


def _read_enhanced(path: Path) -> sitk.Image:
    import highdicom

    try:
        volume = highdicom.imread(path).get_volume(dtype=np.float32, apply_voi_transform=False)
    except (ValueError, RuntimeError) as error:
        raise Refusal("the frames of a multi-frame image form one volume", one_line(error)) from None
    return volume.to_simpleitk()


def _check_pixel_data(paths: Sequence[Path]) -> None:
    """Raise Refusal if a slice has fewer pixels than its header says: the reader fills in what lay in memory."""
    tags = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PixelData"]
    for path in paths:
        header = pydicom.dcmread(path, specific_tags=tags)
        if header.file_meta.TransferSyntaxUID.is_compressed:
            continue
        needed_bytes = math.prod(int(header[name].value) for name in tags[:2]) * int(header.BitsAllocated) // 8
        pixels = header.get_item("PixelData") if "PixelData" in header else None
        length_bytes = pixels.length if isinstance(pixels, RawDataElement) else 0  # an empty element is not raw
        if length_bytes < needed_bytes * int(header.get("SamplesPerPixel") or 1):
            value = f"{path.name} has {length_bytes} of {needed_bytes} bytes"
            raise Refusal("the pixel data of every slice is complete", value)


def _read_classic(instances: Sequence[Instance], uneven: Uneven, mask: bool) -> sitk.Image:
    spacing = slice_spacing(instances)
    if spacing.problem and uneven == "refuse":
        raise spacing.problem
    try:
        _check_pixel_data([instance.path for instance in instances])
    except Refusal:
        raise
    except Exception as error:  # whatever a damaged file does to the parser
        raise Refusal("every slice can be decoded", f"reading its pixel data raises {type(error).__name__}") from None
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(instance.path) for instance in instances])
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with _without_itk_warnings():  # of uneven steps, which are resampled
            voxels_zyx = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise Refusal("every slice can be decoded", str(error).strip().splitlines()[-1]) from None
    first = instances[0]
    row_mm, column_mm = (float(value) for value in first.get("PixelSpacing"))
    if spacing.problem:
        voxels_zyx = _resample_evenly(voxels_zyx, instances, spacing.step_mm, (row_mm, column_mm), nearest=mask)
    image = sitk.GetImageFromArray(voxels_zyx)
    image.SetSpacing((column_mm, row_mm, spacing.step_mm))
    image.SetOrigin(first.position_xyz_mm.tolist())
    image.SetDirection(first.axes.T.ravel().tolist())
    return image


@contextmanager
def _without_itk_warnings() -> Iterator[None]:
    """No warnings of ITK's C++ on standard error within the block."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


@dataclass(frozen=True)
class SliceSpacing:
    """The step between slices, and the rule that their positions break, if any."""

    step_mm: float
    problem: UnevenRefusal | None


def slice_spacing(instances: Sequence[Instance]) -> SliceSpacing:
    """The step between slices. Raises Refusal if two share a height or one is missing."""
    if len(instances) < MIN_SLICES:
        raise Refusal(f"a series has at least {MIN_SLICES} slices", f"{len(instances)} slices")
    heights_mm = np.array([instance.height_mm for instance in instances])
    steps_mm = np.diff(heights_mm)
    if (doubled := int((np.abs(steps_mm) < 0.01).sum())) > 0:
        raise Refusal("no two slices share a position", f"{doubled} of {len(heights_mm)} slices are duplicates")
    step_mm = float(np.median(steps_mm))
    wide = np.flatnonzero(steps_mm > 1.5 * step_mm)
    if wide.size and np.allclose(steps_mm / step_mm, np.round(steps_mm / step_mm), atol=0.1):
        at, gap_mm = int(wide[0]), float(steps_mm[wide[0]])
        raise Refusal(
            "no slice is missing",
            f"{gap_mm:.2f} mm between slices {at + 1} and {at + 2} of {len(heights_mm)}, elsewhere {step_mm:.2f} mm",
        )
    if float(np.abs(steps_mm - step_mm).max()) > SPACING_TOLERANCE * step_mm:
        value = f"{steps_mm.min():.2f} to {steps_mm.max():.2f} mm"
        return SliceSpacing(step_mm, UnevenRefusal("slices are evenly spaced", value))
    extent_mm = float(heights_mm[-1] - heights_mm[0])
    even_mm = extent_mm / (len(heights_mm) - 1)  # more exact than rounded positions
    return SliceSpacing(even_mm, _tilt(instances, extent_mm, step_mm))


def _tilt(instances: Sequence[Instance], extent_mm: float, step_mm: float) -> UnevenRefusal | None:
    """The refusal of slices that lie beside each other rather than above; None if a grid without tilt fits them."""
    sideways_mm = _sideways_mm(instances)
    row_mm, column_mm = (float(value) for value in instances[0].get("PixelSpacing"))
    drift_pixels = float((np.abs(sideways_mm) / (column_mm, row_mm)).max())
    slip_mm = float(np.abs(np.diff(sideways_mm, axis=0)).max())
    if slip_mm <= TILT_TOLERANCE * step_mm and drift_pixels <= MAX_DRIFT_PIXELS:
        return None
    drift_mm = float(np.linalg.norm(sideways_mm, axis=1).max())
    degrees = float(np.rad2deg(np.arctan2(drift_mm, extent_mm)))
    value = f"a tilt of {degrees:.3g} degrees, {drift_mm:.2f} mm over {len(instances)} slices"
    return UnevenRefusal("the gantry is not tilted", value)


def _sideways_mm(instances: Sequence[Instance]) -> Vector:
    """Offset of each slice from the first along rows and columns, float64 of n x 2."""
    offsets_mm = np.array([instance.position_xyz_mm for instance in instances]) - instances[0].position_xyz_mm
    return np.asarray(offsets_mm @ instances[0].axes[:2].T)


def _resample_evenly(
    voxels_zyx: npt.NDArray[np.float32],
    instances: Sequence[Instance],
    step_mm: float,
    pixel_yx_mm: tuple[float, float],
    nearest: bool,
) -> npt.NDArray[np.float32]:
    """Slices shifted to lie above the first, then interpolated to even steps; the lowest value fills from outside."""
    kind = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    lowest = float(voxels_zyx.min())
    shifted = []
    for plane, (along_row, along_column) in zip(voxels_zyx, _sideways_mm(instances), strict=True):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing(pixel_yx_mm[::-1])
        back = sitk.TranslationTransform(2, (-along_row, -along_column))
        shifted.append(sitk.GetArrayFromImage(sitk.Resample(image, image, back, kind, lowest)))
    stack_zyx = np.stack(shifted)
    heights_mm = np.array([instance.height_mm for instance in instances])
    slices = int((heights_mm[-1] - heights_mm[0]) / step_mm + 1e-6) + 1  # a whole number may come out just below
    wanted_mm = heights_mm[0] + step_mm * np.arange(slices)
    last = len(heights_mm) - 1
    at = np.clip(np.interp(wanted_mm, heights_mm, np.arange(last + 1)), 0, last)
    if nearest:
        return np.asarray(stack_zyx[np.round(at).astype(int)], np.float32)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, last)
    share = (at - low)[:, None, None].astype(np.float32)
    return np.asarray(stack_zyx[low] * (1 - share) + stack_zyx[high] * share, np.float32)

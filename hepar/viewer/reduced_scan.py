"""A scan and its masks, small enough for a page that is one file: cropped, on a coarser grid, in 256 grey levels."""

from __future__ import annotations

import base64
import gzip
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

from hepar.cases import Modality
from hepar.imaging.masks import Mask, bounding_box, enlarged
from hepar.imaging.parallel_grids import whole_box
from hepar.imaging.volumes import Array, Geometry, resample, resample_mask, to_array, to_image, write_image
from hepar.runtime.scratch import scratch_folder

MAX_VOXELS = 6_000_000  # of a byte each: image and masks take at most some 10 MB as base64, usually half of that
AROUND_MASKS_MM = 20.0
CT_RANGE_HU = (-200.0, 310.0)  # in steps of 2 HU
MR_PERCENTILE = 99.9  # of the crop: brighter voxels are clipped
COARSER = 1.02
STEPS = 255
SLOPE_AT = 112  # in a NIfTI header: slope and intercept, float32
COMPRESSION = 6


@dataclass(frozen=True)
class ReducedScan:
    """NIfTI files, gzip, on one grid; `low` and `high` are the intensities between which 256 levels are told apart."""

    image: bytes
    masks: Mapping[str, bytes]
    low: float
    high: float
    reduced: str

    def facts(self, name: str, modality: Modality) -> dict[str, Any]:
        """The scan as `embedded.js` reads it from JSON."""
        return {
            "name": name,
            "modality": str(modality),
            "image": _text(self.image),
            "masks": {structure: _text(mask) for structure, mask in self.masks.items()},
            "range": {"low": self.low, "high": self.high},
            "reduced": self.reduced,
        }


def reduce_scan(
    image: sitk.Image, modality: Modality, masks_zyx: Mapping[str, Mask], max_voxels: int = MAX_VOXELS
) -> ReducedScan:
    """The part of a canonical scan around its masks, with at most `max_voxels`; all of the scan if they are empty.

    Spacings that are finer than a common bound are raised to it, so that thick slices stay what they are. Masks lie on
    the grid of `image`. CT is clipped to `CT_RANGE_HU`, MR above `MR_PERCENTILE`.
    """
    full = Geometry.of(image)
    occupied = bounding_box(np.logical_or.reduce(list(masks_zyx.values())))
    around = None if occupied is None else enlarged(occupied, full.spacing_zyx_mm, AROUND_MASKS_MM)
    box = around or whole_box(full.size_zyx)
    cropped = full.cropped(box)
    grid = _coarsened(cropped, max_voxels)
    z, y, x = box
    image_zyx = to_array(resample(image[x, y, z], grid))
    low, high = CT_RANGE_HU if modality == Modality.CT else _range_of_mr(image_zyx)
    step = (high - low) / STEPS
    levels_zyx = np.round((np.clip(image_zyx, low, high) - low) / step).astype(np.uint8)
    return ReducedScan(
        image=_nifti(levels_zyx, grid, step, low),
        masks={
            name: _nifti(resample_mask(to_image(mask_zyx[box], cropped), grid).astype(np.uint8), grid)
            for name, mask_zyx in masks_zyx.items()
        },
        low=low,
        high=high,
        reduced=_describe(full, grid, occupied is not None, modality, step),
    )


def _coarsened(grid: Geometry, max_voxels: int) -> Geometry:
    """The grid with the finest spacings raised to the smallest bound that leaves at most `max_voxels`."""
    coarse, bound = grid, min(grid.spacing_zyx_mm)
    while np.prod(coarse.size_zyx) > max_voxels:
        bound *= COARSER
        z, y, x = (max(bound, mm) for mm in grid.spacing_zyx_mm)
        coarse = grid.with_spacing((z, y, x))
    return coarse


def _range_of_mr(image_zyx: Array) -> tuple[float, float]:
    low, high = float(image_zyx.min()), float(np.percentile(image_zyx, MR_PERCENTILE))
    return low, high if high > low else low + 1


def _nifti(array_zyx: Array, grid: Geometry, slope: float = 1.0, intercept: float = 0.0) -> bytes:
    """A compressed NIfTI file of bytes that stand for `slope` · byte + `intercept`. Raises DiskFull."""
    with scratch_folder("page") as folder:
        path = folder / "volume.nii"
        write_image(to_image(array_zyx, grid), path)
        content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, SLOPE_AT, slope, intercept)
    return gzip.compress(bytes(content), COMPRESSION, mtime=0)


def _describe(full: Geometry, grid: Geometry, is_cropped: bool, modality: Modality, step: float) -> str:
    """What the viewer leaves out, in a sentence."""
    parts = [f"cropped to {AROUND_MASKS_MM:.0f} mm around the masks"] if is_cropped else []
    if grid.spacing_zyx_mm != full.spacing_zyx_mm:
        parts.append(f"voxels of {_spacing(grid)} mm instead of {_spacing(full)} mm")
    if modality == Modality.CT:
        parts.append(f"{CT_RANGE_HU[0]:.0f} to {CT_RANGE_HU[1]:.0f} HU in steps of {step:.0f} HU")
    else:
        parts.append("256 grey levels")
    return f"Reduced for this page: {'; '.join(parts)}.".replace("-", "−")


def _spacing(grid: Geometry) -> str:
    return " × ".join(f"{mm:.3g}" for mm in grid.spacing_zyx_mm[::-1])


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")

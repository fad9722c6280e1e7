"""Whether voxel values are those of CT or MR. Only CT has a unit: HU, with air at -1000 and soft tissue near 50.

A CT can be stored with an offset or clipped to a window, and an MR centred on zero, so many scans fit either modality.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.imaging.volumes import Array, to_array

AIR_HU, SOFT_TISSUE_HU = -1000.0, 50.0
AROUND_AIR_HU = 100.0
SOFT_TISSUE_RANGE_HU = (0.0, 100.0)
MIN_SOFT_TISSUE = 0.15  # share of the body's voxels in that range, which contrast agents and fat leave in CT
BELOW_TISSUE_HU = -20.0  # fat and air, and nothing in an MR that is not negative
PLATEAU = 0.02  # of the voxels: from this share on, a value or range is not an accident
# On a scale from 0, air, to 1, soft tissue, nearly the whole body lies between fat, 0.86, and enhanced vessels: shares
# of 0.78 to 0.93 of ten real and synthetic CT, but 0.10 to 0.46 of 20 MR, whose tissues differ by multiples
BODY_ABOVE, TISSUES, MIN_CONCENTRATED = 0.4, (0.8, 1.15), 0.6
LEVELS_OF_A_BYTE = 256
FLOOR_WIDTH = 0.03  # of the range of values: noise of air lies there in MR, but hardly anything in a CT window
MAX_ABOVE_FLOOR = 0.2  # voxels there for each at the minimum
MAX_WINDOW_HU = 500.0  # usual windows end below
MAX_SAMPLES = 2**22
MAX_UNDERSHOOT = 0.01  # of the maximum, which interpolation leaves below zero in MR
Voxels = npt.NDArray[np.float32]


class UnclearModality(DataError):
    """Values fit CT and MR; `finding` says so without how the command line is told which it is."""

    def __init__(self, finding: str) -> None:
        super().__init__(f"{finding}: pass --modality CT or MR (in a table, the column modality)")
        self.finding = finding

    def __reduce__(self) -> tuple[type[UnclearModality], tuple[str]]:
        return type(self), (self.finding,)  # an exception is otherwise rebuilt from its message


def guess_modality(image: sitk.Image, scan: Path) -> Modality:
    """The modality of an image, if its values leave no doubt.

    Raises UnclearModality, which names the file `scan`, if they fit CT and MR, and DataError if there are no voxels.
    """
    voxels_n = _sample(to_array(image))
    if voxels_n.size == 0:
        raise DataError(f"{scan} has no voxels with a value")
    if _is_hu(voxels_n):
        return Modality.CT
    if _is_magnitude(voxels_n):
        return Modality.MR
    raise UnclearModality(f"{scan} may be CT or MR by its values, {voxels_n.min():g} to {voxels_n.max():g}")


def guess_evidence(image: sitk.Image, modality: Modality) -> str:
    """What a guess of `guess_modality` rests on, for people."""
    voxels_n = _sample(to_array(image))
    if modality == Modality.CT:
        air = float(np.mean(voxels_n <= AIR_HU + AROUND_AIR_HU))
        alike = _concentration(voxels_n, AIR_HU, SOFT_TISSUE_HU)
        return f"{air:.0%} of the voxels are as dark as air in HU, and {alike:.0%} of the body as dense as soft tissue"
    values = f"values from {voxels_n.min():g} to {voxels_n.max():g}"
    return f"{values} that are no HU, and tissues that differ by multiples"


def find_contradiction(image: sitk.Image, modality: Modality) -> str:
    """Why the values of an image cannot be of the declared modality; empty if they can.

    The image must have finite voxels.
    """
    image_zyx = to_array(image)
    values = f"values from {image_zyx.min():g} to {image_zyx.max():g}"
    voxels_n = _sample(image_zyx)
    negative = float(np.mean(voxels_n < BELOW_TISSUE_HU)) > PLATEAU
    if modality == Modality.CT and not negative:
        return f"{values} are not HU: at most {PLATEAU:.0%} of the voxels lie below {BELOW_TISSUE_HU:g}"
    if modality == Modality.MR and negative and (_is_hu(voxels_n) or _is_window(voxels_n)):
        return f"{values} look like CT"
    return ""


def is_mask(image: sitk.Image) -> bool:
    """Whether all voxels are 0 or one positive value, as those of a mask are; not if all are 0."""
    image_zyx = to_array(image)
    if image_zyx.size == 0 or image_zyx.max() <= 0:
        return False
    return image_zyx.min() in (0, image_zyx.max()) and has_two_values(image_zyx)


def has_two_values(image_zyx: Array) -> bool:
    """Whether voxels have at most two values; an image without any has."""
    if image_zyx.size == 0:
        return True
    if np.unique(_sample(image_zyx)).size > 2:
        return False
    return bool(((image_zyx == image_zyx.min()) | (image_zyx == image_zyx.max())).all())


def _sample(image_zyx: Array) -> Voxels:
    """Finite values of voxels at even distances, at most about `MAX_SAMPLES`; none for an empty image."""
    step = image_zyx.size // MAX_SAMPLES | 1  # odd, so that it meets every column of 512
    sampled_n = image_zyx.ravel()[::step].astype(np.float32)
    return np.asarray(sampled_n[np.isfinite(sampled_n)])


def _is_hu(voxels_n: Voxels) -> bool:
    """Whether values are HU of the whole range: much air or padding below, soft tissue, and little between them."""
    air = float(np.mean(voxels_n <= AIR_HU + AROUND_AIR_HU))
    body_n = voxels_n[_scaled(voxels_n, AIR_HU, SOFT_TISSUE_HU) > BODY_ABOVE]
    if air < PLATEAU or body_n.size == 0:
        return False
    low, high = SOFT_TISSUE_RANGE_HU
    soft_tissue = float(np.mean((body_n >= low) & (body_n <= high)))
    return soft_tissue >= MIN_SOFT_TISSUE and _concentration(voxels_n, AIR_HU, SOFT_TISSUE_HU) >= MIN_CONCENTRATED


def _is_magnitude(voxels_n: Voxels) -> bool:
    """Whether values are magnitudes of an MR, and neither bytes, nor a CT on another scale, nor cut off by a window."""
    lowest, air, bright, highest = np.percentile(voxels_n, (0, 1, 99, 100))
    if air < -MAX_UNDERSHOOT * highest or lowest == highest or np.unique(voxels_n).size <= LEVELS_OF_A_BYTE:
        return False
    soft_tissue = float(np.median(voxels_n[voxels_n >= (air + bright) / 2]))
    if soft_tissue <= air or _concentration(voxels_n, air, soft_tissue) >= MIN_CONCENTRATED:
        return False
    return not _has_hard_floor(voxels_n)


def _is_window(voxels_n: Voxels) -> bool:
    """Whether values may be HU clipped to a window; they have a minimum below zero."""
    at_floor = float(np.mean(voxels_n == voxels_n.min()))
    return _has_hard_floor(voxels_n) or (at_floor >= PLATEAU and float(voxels_n.max()) <= MAX_WINDOW_HU)


def _has_hard_floor(voxels_n: Voxels) -> bool:
    """Whether many voxels have exactly the minimum, and few lie just above, as after clipping or masking."""
    lowest, highest = float(voxels_n.min()), float(voxels_n.max())
    at_floor = float(np.mean(voxels_n == lowest))
    above = float(np.mean((voxels_n > lowest) & (voxels_n <= lowest + FLOOR_WIDTH * (highest - lowest))))
    return at_floor >= PLATEAU and above < MAX_ABOVE_FLOOR * at_floor


def _concentration(voxels_n: Voxels, air: float, soft_tissue: float) -> float:
    """The share of the body's voxels near soft tissue, on a scale from `air` to `soft_tissue`."""
    scaled_n = _scaled(voxels_n, air, soft_tissue)
    body_n = scaled_n[scaled_n > BODY_ABOVE]
    low, high = TISSUES
    return float(np.mean((body_n > low) & (body_n < high))) if body_n.size else 0.0


def _scaled(voxels_n: Voxels, air: float, soft_tissue: float) -> Voxels:
    return np.asarray((voxels_n - air) / (soft_tissue - air), np.float32)

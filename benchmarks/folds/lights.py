"""Scans in another light: livers of another density, a bright stomach, other contrasts.

Images are zyx in the canonical orientation: x grows to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import Modality
from hepar.imaging.masks import Mask, body_mask, dilate, fill_holes, keep_largest_component

Image = npt.NDArray[np.float32]
EDGE_MM = 2.0  # standard deviation of the smoothing of an edge
STOMACH_SHARE = 0.08  # of the body
STOMACH_BRIGHTNESS = (3.0, 5.0)  # relative to the liver
STOMACH_MARGIN_MM = 5.0  # to the liver
RANGE = (0.5, 99.5)  # percentiles of the body between which contrasts are changed


@dataclass(frozen=True)
class Scan:
    """An image, float32 zyx, with its manual liver, which is not empty."""

    case_id: str
    image_zyx: Image
    liver_zyx: Mask
    spacing_zyx_mm: tuple[float, float, float]


def shift_liver(scan: Scan, shift_hu: float) -> Image:
    """The image with the liver, its tumours included, denser by `shift_hu`, smoothly towards its edge.

    A scan that is cut to a window stays within it; CT has whole HU.
    """
    shifted_zyx = scan.image_zyx + shift_hu * _smooth(scan.liver_zyx, scan.spacing_zyx_mm)
    low, high = scan.image_zyx.min(), scan.image_zyx.max()
    return np.asarray(np.rint(np.clip(shifted_zyx, low, high)), np.float32)


def brighten_stomach(scan: Scan) -> Image:
    """The image with a stomach three to five times as bright as the liver, by the case, that fills 8 % of the body.

    It lies on the patient's left, in front, at the height of the liver, and keeps a distance from it.
    """
    body_zyx = _body(scan.image_zyx)
    brightness = _random(scan.case_id).uniform(*STOMACH_BRIGHTNESS) * np.median(scan.image_zyx[scan.liver_zyx])
    weight_zyx = _smooth(_stomach(scan, body_zyx), scan.spacing_zyx_mm) * ~scan.liver_zyx
    return np.asarray(scan.image_zyx * (1 - weight_zyx) + brightness * weight_zyx, np.float32)


def invert(scan: Scan) -> Image:
    """The image with bright and dark exchanged inside the body; air stays dark."""
    body_zyx = _body(scan.image_zyx)
    low, high = np.percentile(scan.image_zyx[body_zyx], RANGE)
    return np.where(body_zyx, low + high - np.clip(scan.image_zyx, low, high), scan.image_zyx).astype(np.float32)


def change_gamma(scan: Scan, gamma: float) -> Image:
    """The image with intensities raised to the power `gamma`, relative to the range from its darkest to the body's
    brightest."""
    low, high = scan.image_zyx.min(), np.percentile(scan.image_zyx[_body(scan.image_zyx)], RANGE[1])
    return np.asarray(low + (high - low) * ((scan.image_zyx - low) / (high - low)) ** gamma, np.float32)


LIGHTS: Mapping[Modality, Mapping[str, Callable[[Scan], Image]]] = {
    Modality.CT: {
        "liver -60 HU": lambda scan: shift_liver(scan, -60),
        "liver +40 HU": lambda scan: shift_liver(scan, 40),
    },
    Modality.MR: {
        "bright stomach": brighten_stomach,
        "inverted": invert,
        "gamma 0.5": lambda scan: change_gamma(scan, 0.5),
        "gamma 2": lambda scan: change_gamma(scan, 2),
    },
}


def _body(image_zyx: Image) -> Mask:
    """The body in MR, with all that is dark in it."""
    return fill_holes(keep_largest_component(body_mask(image_zyx, Modality.MR)))


def _stomach(scan: Scan, body_zyx: Mask) -> Mask:
    """The free voxels of the body's left half that are nearest to the stomach's centre, `STOMACH_SHARE` of the body."""
    spacing = np.array(scan.spacing_zyx_mm)
    low, high = (edge(np.argwhere(body_zyx), axis=0) for edge in (np.min, np.max))
    middle_x = (low[2] + high[2]) / 2
    height_z = np.argwhere(scan.liver_zyx)[:, 0].mean()
    centre = np.array([height_z, low[1] + 0.4 * (high[1] - low[1]), middle_x + 0.25 * (high[2] - low[2])])
    free_zyx = body_zyx & ~dilate(scan.liver_zyx, scan.spacing_zyx_mm, STOMACH_MARGIN_MM)
    free_zyx &= np.arange(body_zyx.shape[2]) > middle_x
    distance_n = np.linalg.norm((np.argwhere(free_zyx) - centre) * spacing, axis=1)
    wanted = min(round(STOMACH_SHARE * np.count_nonzero(body_zyx)), len(distance_n))
    stomach_zyx = np.zeros_like(body_zyx)
    nearest_3n = np.argwhere(free_zyx)[np.argsort(distance_n, kind="stable")[:wanted]].T
    stomach_zyx[tuple(nearest_3n)] = True
    return stomach_zyx


def _smooth(mask_zyx: Mask, spacing_zyx_mm: tuple[float, float, float]) -> Image:
    """A mask with smooth edges, 0 to 1."""
    sigmas = [EDGE_MM / mm for mm in spacing_zyx_mm]
    return np.asarray(ndimage.gaussian_filter(mask_zyx.astype(np.float32), sigmas), np.float32)


def _random(case_id: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(case_id.encode()).digest()))

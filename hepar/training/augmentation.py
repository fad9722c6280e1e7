"""Augmentation of a batch of patches, on the device of the batch. Each patch has its own random generator.

Legend: b batch, c channel, r structure, d h w space; all tensors are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hepar.imaging.intensities import scale_ct
from hepar.inference.prepared_scan import change_contrast
from hepar.params import AugmentationParams, Interval, SpacingZYX

_AXES = {"z": 2, "y": 3, "x": 4}
ELASTIC_KNOT_SPACING = 8  # voxels between the knots of a displacement field
BIAS_KNOTS = 3  # of a bias field, along each axis
CURVE_KNOTS = 5  # of a random intensity curve
CT_LIVERS_HU = (0.0, 160.0)  # fatty livers to dense and enhanced ones
MR_LIVERS = (-1.3, 1.6)  # laden with iron to enhanced, in standard deviations of the body
CURVE_RISE = (0.1, 1.0)  # between two knots of a monotone curve, before the curve is scaled to its range


def augment_spatial(
    image_bcdhw: Tensor,
    target_brdhw: Tensor,
    weight_brdhw: Tensor,
    params: AugmentationParams,
    rngs: Sequence[np.random.Generator],
    spacing_zyx_mm: SpacingZYX,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror, rotate, scale and deform images, targets and weights alike, in place; returns the three tensors.

    Rotations are rigid in millimetres. Voxels from outside a patch repeat the border of the image and have weight 0.
    """
    for b, rng in enumerate(rngs):
        for axis in params.mirror_axes:
            if rng.random() < 0.5:
                for tensor in (image_bcdhw, target_brdhw, weight_brdhw):
                    tensor[b] = tensor[b].flip(_AXES[axis] - 1)
        grid_1dhw3 = None
        if rng.random() < params.affine_probability:
            grid_1dhw3 = _affine_grid(image_bcdhw[b], params, rng, spacing_zyx_mm)
        if _happens(params.elastic_probability, rng):
            grid_1dhw3 = _elastic_grid(grid_1dhw3, image_bcdhw[b], params, rng)
        if grid_1dhw3 is not None:
            image_bcdhw[b], target_brdhw[b], weight_brdhw[b] = _resample(
                image_bcdhw[b], target_brdhw[b], weight_brdhw[b], grid_1dhw3
            )
    return image_bcdhw, target_brdhw, weight_brdhw


def augment_intensity(
    image_bcdhw: Tensor,
    liver_bdhw: Tensor,
    params: AugmentationParams,
    rngs: Sequence[np.random.Generator],
    is_mr: Sequence[bool],
    window_hu: Interval,
) -> Tensor:
    """Change intensities in place; returns the tensor. `window_hu` is the window of preprocessed CT.

    `liver_bdhw` is the known liver, 0 or 1, which may become brighter or darker as a whole. Only patches of MR scans,
    by `is_mr`, get a bias field or are inverted.
    """
    low, high = scale_ct(np.array(CT_LIVERS_HU), window_hu).tolist()
    for b, rng in enumerate(rngs):
        image_cdhw = image_bcdhw[b]
        if _happens(params.liver_shift_probability, rng):
            shift = float(rng.uniform(-1, 1)) * params.liver_shift
            livers = MR_LIVERS if is_mr[b] else (low, high)
            image_cdhw = shift_liver(image_cdhw, liver_bdhw[b], _within_range(shift, image_cdhw, liver_bdhw[b], livers))
        image_cdhw = _vary_scanner(_vary_intensities(image_cdhw, params, rng), params, rng, is_mr[b])
        image_bcdhw[b] = _vary_curve(image_cdhw, params, rng, is_mr[b])
    return image_bcdhw


def _within_range(shift: float, image_cdhw: Tensor, liver_dhw: Tensor, livers: Interval) -> float:
    """The shift, as far as the medians of livers reach; 0 without a liver."""
    values_n = image_cdhw[0][liver_dhw > 0]
    if not len(values_n):
        return 0.0
    median, (low, high) = float(values_n.median()), livers
    return float(np.clip(shift, min(0.0, low - median), max(0.0, high - median)))


def shift_liver(image_cdhw: Tensor, liver_dhw: Tensor, shift: float) -> Tensor:
    """The image with `shift` added inside the liver, tumours included, over a border one voxel soft.

    So fat, iron, contrast agent or another phase makes a liver dark or bright that looks the same otherwise.
    """
    soft_dhw = F.avg_pool3d(liver_dhw[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
    return image_cdhw + shift * soft_dhw


def _happens(probability: float, rng: np.random.Generator) -> bool:
    """Whether a transform is applied. At probability 0 no number is drawn, and the other transforms stay the same."""
    return probability > 0 and rng.random() < probability


def _affine_grid(
    image_cdhw: Tensor, params: AugmentationParams, rng: np.random.Generator, spacing_zyx_mm: SpacingZYX
) -> Tensor:
    """Sampling grid, 1 d h w 3, of a rotation about and a scaling along each axis around the centre of the patch."""
    matrix = rotation(rng.uniform(-params.rotation_degrees, params.rotation_degrees, 3))
    matrix = matrix / rng.uniform(1 - params.scale, 1 + params.scale, 3)[None, :]
    side_xyz_mm = np.array(image_cdhw.shape[:0:-1]) * spacing_zyx_mm[::-1]
    normalised = matrix * side_xyz_mm[None, :] / side_xyz_mm[:, None]  # grid_sample measures each axis from -1 to 1
    theta = torch.zeros(1, 3, 4, device=image_cdhw.device)
    theta[0, :, :3] = torch.from_numpy(normalised)
    return F.affine_grid(theta, [1, 1, *image_cdhw.shape[1:]], align_corners=False)


def _elastic_grid(
    grid_1dhw3: Tensor | None, image_cdhw: Tensor, params: AugmentationParams, rng: np.random.Generator
) -> Tensor:
    """Sampling grid, 1 d h w 3, plus a smooth displacement with normal knots of a random standard deviation."""
    size = image_cdhw.shape[1:]
    if grid_1dhw3 is None:
        theta = torch.eye(3, 4, device=image_cdhw.device)[None]
        grid_1dhw3 = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    knots = [max(2, round(n / ELASTIC_KNOT_SPACING) + 1) for n in size]
    voxels = rng.uniform(0, params.elastic_voxels) * rng.standard_normal((1, 3, *knots))
    scale = torch.tensor([2 / n for n in size[::-1]], device=image_cdhw.device).view(1, 3, 1, 1, 1)
    field = torch.from_numpy(voxels.astype(np.float32)).to(image_cdhw.device) * scale
    smooth = F.interpolate(field, size=size, mode="trilinear", align_corners=True)
    return grid_1dhw3 + smooth.permute(0, 2, 3, 4, 1)


def _resample(
    image_cdhw: Tensor, target_rdhw: Tensor, weight_rdhw: Tensor, grid_1dhw3: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Image, targets and weights at the points of a sampling grid; targets are 0 or 1 again."""
    labels = torch.cat([target_rdhw, weight_rdhw])[None]
    image_cdhw = F.grid_sample(image_cdhw[None], grid_1dhw3, padding_mode="border", align_corners=False)[0]
    labels_rdhw = F.grid_sample(labels, grid_1dhw3, padding_mode="zeros", align_corners=False)[0]
    target_rdhw, weight_rdhw = labels_rdhw.split(len(target_rdhw))
    return image_cdhw, (target_rdhw > 0.5).float(), weight_rdhw


def rotation(
    degrees_zyx: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """3x3 matrix over x, y, z that rotates about z, then y, then x."""
    cosine, sine = np.cos(np.deg2rad(degrees_zyx)), np.sin(np.deg2rad(degrees_zyx))
    about_z = np.array([[cosine[0], -sine[0], 0], [sine[0], cosine[0], 0], [0, 0, 1]])
    about_y = np.array([[cosine[1], 0, sine[1]], [0, 1, 0], [-sine[1], 0, cosine[1]]])
    about_x = np.array([[1, 0, 0], [0, cosine[2], -sine[2]], [0, sine[2], cosine[2]]])
    return np.asarray(about_x @ about_y @ about_z)


def _vary_intensities(image_cdhw: Tensor, params: AugmentationParams, rng: np.random.Generator) -> Tensor:
    """Blur, contrast and brightness, and Gaussian noise."""
    if rng.random() < params.blur_probability:
        blurred = F.avg_pool3d(image_cdhw[None], 3, stride=1, padding=1, count_include_pad=False)[0]
        image_cdhw = torch.lerp(image_cdhw, blurred, float(rng.uniform(0.3, 1)))
    if rng.random() < params.intensity_probability:
        factor = float(rng.uniform(1 - params.contrast, 1 + params.contrast))
        shift = float(rng.uniform(-params.brightness, params.brightness))
        image_cdhw = change_contrast(image_cdhw, factor, shift)
    if params.noise and rng.random() < params.intensity_probability:
        generator = torch.Generator(image_cdhw.device).manual_seed(int(rng.integers(2**63)))
        noise = torch.randn(image_cdhw.shape, generator=generator, device=image_cdhw.device)
        image_cdhw = image_cdhw + float(rng.uniform(0, params.noise)) * noise
    return image_cdhw


def _vary_scanner(image_cdhw: Tensor, params: AugmentationParams, rng: np.random.Generator, is_mr: bool) -> Tensor:
    """Resolution and bias field, as other scanners would differ."""
    if _happens(params.low_resolution_probability, rng):
        factor = float(rng.uniform(1, params.low_resolution))
        size = [max(1, round(n / factor)) for n in image_cdhw.shape[1:]]
        small = F.interpolate(image_cdhw[None], size=size, mode="trilinear", align_corners=False)
        image_cdhw = F.interpolate(small, size=image_cdhw.shape[1:], mode="trilinear", align_corners=False)[0]
    if is_mr and _happens(params.bias_field_probability, rng):
        knots = rng.uniform(-params.bias_field, params.bias_field, (1, 1, *[BIAS_KNOTS] * 3)).astype(np.float32)
        field = F.interpolate(
            torch.from_numpy(knots).to(image_cdhw.device),
            size=image_cdhw.shape[1:],
            mode="trilinear",
            align_corners=True,
        )
        low = image_cdhw.min()
        image_cdhw = (image_cdhw - low) * field[0].exp() + low
    return image_cdhw


def _vary_curve(image_cdhw: Tensor, params: AugmentationParams, rng: np.random.Generator, is_mr: bool) -> Tensor:
    """Gamma, random intensity curves, and the inverse of an MR image."""
    if _happens(params.gamma_probability, rng):
        exponent = float(np.exp(rng.uniform(-params.gamma, params.gamma)))
        image_cdhw = _apply_normalised(image_cdhw, lambda unit: unit**exponent)
    if _happens(params.remap_probability, rng):
        levels = torch.from_numpy(rng.random(CURVE_KNOTS).astype(np.float32)).to(image_cdhw.device)
        image_cdhw = _apply_normalised(image_cdhw, lambda unit: _piecewise_linear(unit, levels))
    if _happens(params.monotone_probability, rng):
        rises = rng.uniform(*CURVE_RISE, CURVE_KNOTS - 1)
        rising = np.concatenate([[0], np.cumsum(rises)]) / rises.sum()
        curve = torch.from_numpy(rising.astype(np.float32)).to(image_cdhw.device)
        image_cdhw = _apply_normalised(image_cdhw, lambda unit: _piecewise_linear(unit, curve))
    if is_mr and _happens(params.inversion_probability, rng):
        image_cdhw = _apply_normalised(image_cdhw, lambda unit: 1 - unit)
    return image_cdhw


def _apply_normalised(image_cdhw: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function on 0 to 1 to the range of an image; a constant image stays as it is."""
    low, high = image_cdhw.min(), image_cdhw.max()
    span = (high - low).clamp(min=1e-6)
    return function((image_cdhw - low) / span) * span + low


def _piecewise_linear(unit: Tensor, levels: Tensor) -> Tensor:
    """The function on 0 to 1 that is linear between evenly spaced knots of these levels."""
    position = unit * (len(levels) - 1)
    below = position.floor().clamp(max=len(levels) - 2)
    index = below.long()
    return torch.lerp(levels[index], levels[index + 1], position - below)

"""Random changes of a batch of patches, on whatever device the batch lies. The generators are arguments.

A change that is switched off draws no number, so that adding one does not alter what others do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hepar.params import AugmentationParams

_AXES = {"z": 2, "y": 3, "x": 4}
ELASTIC_KNOT = 8  # voxels between the knots of a displacement
BIAS_KNOTS = 3  # of a bias field, along each axis
CURVE_KNOTS = 5  # of a random curve of values


def move(
    image_bcdhw: Tensor,
    y_brdhw: Tensor,
    m_brdhw: Tensor,
    params: AugmentationParams,
    rngs: Sequence[np.random.Generator],
) -> tuple[Tensor, Tensor, Tensor]:
    """Geometry, on image, targets and weights alike, written into them; each patch has its generator.

    What a change pulls in from outside the patch is unknown: its weight is 0.
    """
    for b, rng in enumerate(rngs):
        for axis in params.mirror_axes:
            if rng.random() < 0.5:
                for tensor in (image_bcdhw, y_brdhw, m_brdhw):
                    tensor[b] = tensor[b].flip(_AXES[axis] - 1)
        grid = None
        if rng.random() < params.affine_probability:
            grid = _affine(image_bcdhw[b], params, rng)
        if _happens(params.elastic_probability, rng):
            grid = _displaced(grid, image_bcdhw[b], params, rng)
        if grid is not None:
            image_bcdhw[b], y_brdhw[b], m_brdhw[b] = _moved(image_bcdhw[b], y_brdhw[b], m_brdhw[b], grid)
    return image_bcdhw, y_brdhw, m_brdhw


def recolour(
    image_bcdhw: Tensor,
    params: AugmentationParams,
    rngs: Sequence[np.random.Generator],
    is_mr: Sequence[bool],
) -> Tensor:
    """Intensities, written into the image; each patch has its generator. `is_mr` tells which may get a bias field."""
    for b, rng in enumerate(rngs):
        image_bcdhw[b] = _appearance(_intensities(image_bcdhw[b], params, rng), params, rng, is_mr[b])
    return image_bcdhw


def _happens(probability: float, rng: np.random.Generator) -> bool:
    return probability > 0 and rng.random() < probability


def _affine(image_cdhw: Tensor, params: AugmentationParams, rng: np.random.Generator) -> Tensor:
    """The sampling grid that rotates about each axis and zooms along each axis, around the patch's centre."""
    matrix = rotation(rng.uniform(-params.rotation_degrees, params.rotation_degrees, 3))
    matrix = matrix / rng.uniform(1 - params.scale, 1 + params.scale, 3)[None, :]
    size_xyz = np.array(image_cdhw.shape[:0:-1], float)
    in_unit_cube = matrix * size_xyz[None, :] / size_xyz[:, None]  # grid_sample measures each axis from -1 to 1
    theta = torch.zeros(1, 3, 4, device=image_cdhw.device)
    theta[0, :, :3] = torch.from_numpy(in_unit_cube)
    return F.affine_grid(theta, [1, 1, *image_cdhw.shape[1:]], align_corners=False)


def _displaced(grid: Tensor | None, image_cdhw: Tensor, params: AugmentationParams, rng: np.random.Generator) -> Tensor:
    """A sampling grid with a smooth displacement added, whose knots are normal with a drawn standard deviation."""
    size = image_cdhw.shape[1:]
    if grid is None:
        theta = torch.eye(3, 4, device=image_cdhw.device)[None]
        grid = F.affine_grid(theta, [1, 1, *size], align_corners=False)
    knots = [max(2, round(n / ELASTIC_KNOT) + 1) for n in size]
    voxels = rng.uniform(0, params.elastic_voxels) * rng.standard_normal((1, 3, *knots))
    scale = torch.tensor([2 / n for n in size[::-1]], device=image_cdhw.device).view(1, 3, 1, 1, 1)
    field = torch.from_numpy(voxels.astype(np.float32)).to(image_cdhw.device) * scale
    smooth = F.interpolate(field, size=size, mode="trilinear", align_corners=True)
    return grid + smooth.permute(0, 2, 3, 4, 1)


def _moved(image_cdhw: Tensor, y_rdhw: Tensor, m_rdhw: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image, targets and weights at the places of a sampling grid."""
    labels = torch.cat([y_rdhw, m_rdhw])[None]
    moved = F.grid_sample(image_cdhw[None], grid, padding_mode="border", align_corners=False)[0]
    moved_labels = F.grid_sample(labels, grid, padding_mode="zeros", align_corners=False)[0]
    y, m = moved_labels.split(len(y_rdhw))
    return moved, (y > 0.5).float(), m


def rotation(
    degrees_zyx: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The rotation about z, then y, then x, as a 3x3 matrix over x, y, z."""
    cosine, sine = np.cos(np.deg2rad(degrees_zyx)), np.sin(np.deg2rad(degrees_zyx))
    about_z = np.array([[cosine[0], -sine[0], 0], [sine[0], cosine[0], 0], [0, 0, 1]])
    about_y = np.array([[cosine[1], 0, sine[1]], [0, 1, 0], [-sine[1], 0, cosine[1]]])
    about_x = np.array([[1, 0, 0], [0, cosine[2], -sine[2]], [0, sine[2], cosine[2]]])
    return np.asarray(about_x @ about_y @ about_z)


def _intensities(image_cdhw: Tensor, params: AugmentationParams, rng: np.random.Generator) -> Tensor:
    if rng.random() < params.blur_probability:
        blurred = F.avg_pool3d(image_cdhw[None], 3, stride=1, padding=1, count_include_pad=False)[0]
        image_cdhw = torch.lerp(image_cdhw, blurred, float(rng.uniform(0.3, 1)))
    if rng.random() < params.intensity_probability:
        mean = image_cdhw.mean()
        factor = float(rng.uniform(1 - params.contrast, 1 + params.contrast))
        shift = float(rng.uniform(-params.brightness, params.brightness))
        image_cdhw = (image_cdhw - mean) * factor + mean + shift
    if params.noise and rng.random() < params.intensity_probability:
        generator = torch.Generator(image_cdhw.device).manual_seed(int(rng.integers(2**63)))
        noise = torch.randn(image_cdhw.shape, generator=generator, device=image_cdhw.device)
        image_cdhw = image_cdhw + float(rng.uniform(0, params.noise)) * noise
    return image_cdhw


def _appearance(image_cdhw: Tensor, params: AugmentationParams, rng: np.random.Generator, is_mr: bool) -> Tensor:
    """What other scanners and sequences would show of the same body; the range of values stays."""
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
    if _happens(params.gamma_probability, rng):
        exponent = float(np.exp(rng.uniform(-params.gamma, params.gamma)))
        image_cdhw = _within_range(image_cdhw, lambda share: share**exponent)
    if _happens(params.remap_probability, rng):
        levels = torch.from_numpy(rng.random(CURVE_KNOTS).astype(np.float32)).to(image_cdhw.device)
        image_cdhw = _within_range(image_cdhw, lambda share: _curve(share, levels))
    return image_cdhw


def _within_range(image: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a change of values from 0..1 to 0..1 to the range of an image's values."""
    low, high = image.min(), image.max()
    span = (high - low).clamp(min=1e-6)
    return change((image - low) / span) * span + low


def _curve(share: Tensor, levels: Tensor) -> Tensor:
    """The piecewise linear curve through evenly spaced knots of these heights."""
    place = share * (len(levels) - 1)
    below = place.floor().clamp(max=len(levels) - 2)
    index = below.long()
    return torch.lerp(levels[index], levels[index + 1], place - below)

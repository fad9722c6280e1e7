"""Random changes of a batch of patches, on whatever device the batch lies. The generator is an argument."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hepar.params import AugmentationParams

_AXES = {"z": 2, "y": 3, "x": 4}


def augment(
    image_bcdhw: Tensor, y_brdhw: Tensor, m_brdhw: Tensor, params: AugmentationParams, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Geometry on image, targets and weights alike, then intensities on the image alone.

    What an affine change pulls in from outside the patch is unknown: its weight is 0.
    """
    for axis in params.mirror_axes:
        flipped = np.flatnonzero(rng.random(len(image_bcdhw)) < 0.5).tolist()
        for tensor in (image_bcdhw, y_brdhw, m_brdhw):
            for b in flipped:
                tensor[b] = tensor[b].flip(_AXES[axis] - 1)
    for b in range(len(image_bcdhw)):
        if rng.random() < params.affine_probability:
            image_bcdhw[b], y_brdhw[b], m_brdhw[b] = _affine(image_bcdhw[b], y_brdhw[b], m_brdhw[b], params, rng)
        image_bcdhw[b] = _intensities(image_bcdhw[b], params, rng)
    return image_bcdhw, y_brdhw, m_brdhw


def _affine(
    image_cdhw: Tensor, y_rdhw: Tensor, m_rdhw: Tensor, params: AugmentationParams, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate about each axis and zoom along each axis, around the patch's centre."""
    matrix = rotation(rng.uniform(-params.rotation_degrees, params.rotation_degrees, 3))
    matrix = matrix / rng.uniform(1 - params.scale, 1 + params.scale, 3)[None, :]
    size_xyz = np.array(image_cdhw.shape[:0:-1], float)
    in_unit_cube = matrix * size_xyz[None, :] / size_xyz[:, None]  # grid_sample measures each axis from -1 to 1
    theta = torch.zeros(1, 3, 4, device=image_cdhw.device)
    theta[0, :, :3] = torch.from_numpy(in_unit_cube)
    grid = F.affine_grid(theta, [1, 1, *image_cdhw.shape[1:]], align_corners=False)
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
        noise = rng.standard_normal(tuple(image_cdhw.shape), dtype=np.float32)
        image_cdhw = image_cdhw + float(rng.uniform(0, params.noise)) * torch.from_numpy(noise).to(image_cdhw.device)
    return image_cdhw

"""What painted lesions and organs share: partial volume, smooth random fields, sizes drawn on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.imaging.masks import voxel_mm3


def partial_volume(depth_zyx_mm: npt.NDArray[np.floating], voxel_mm: float) -> npt.NDArray[np.float32]:
    """The share of each voxel inside a surface, as for a plane at this depth in mm; negative depths are outside."""
    return np.asarray(np.clip(depth_zyx_mm / voxel_mm + 0.5, 0, 1), np.float32)


def voxel_side_mm(spacing_zyx_mm: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Side of the cube that has the volume of a voxel."""
    return float(np.cbrt(voxel_mm3(spacing_zyx_mm)))


def draw_log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A number between two positive bounds, drawn on a logarithmic scale: small ones are the more frequent."""
    return float(np.exp(rng.uniform(*np.log(bounds))))


def interpolate_nodes(nodes_zyx: npt.NDArray[np.float32], shape_zyx: Sequence[int]) -> npt.NDArray[np.float32]:
    """A smooth field of a shape, float32 zyx, interpolated linearly between nodes that cover it evenly."""
    factors = [n / nodes for n, nodes in zip(shape_zyx, nodes_zyx.shape, strict=True)]
    return np.asarray(ndimage.zoom(nodes_zyx, factors, order=1, mode="nearest", grid_mode=True), np.float32)


def random_field(rng: np.random.Generator, nodes: int, shape_zyx: Sequence[int]) -> npt.NDArray[np.float32]:
    """A smooth random field of a shape, float32 zyx, between `nodes` normal nodes along each axis.

    Cubic steps from node to node, axis by axis: without the creases of linear interpolation, and far cheaper.
    """
    field_zyx = rng.standard_normal((nodes, nodes, nodes)).astype(np.float32)
    for length in shape_zyx:
        position = np.clip((np.arange(length) + 0.5) / length * nodes - 0.5, 0, nodes - 1)
        left = np.minimum(position.astype(int), nodes - 2)
        step = position - left
        step = step * step * (3 - 2 * step)
        steps_ln = np.zeros((length, nodes), np.float32)
        steps_ln[np.arange(length), left] = 1 - step
        steps_ln[np.arange(length), left + 1] = step
        field_zyx = np.tensordot(field_zyx, steps_ln, (0, 1))  # moves the axis to the end, so three turns restore zyx
    return field_zyx

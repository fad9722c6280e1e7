"""Implicit shapes: signed distances in mm, positive inside, and their partial volumes on a grid.

Coordinates are LPS millimetres from the middle of the abdomen: x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.imaging.painting import interpolate_nodes

Field = npt.NDArray[np.float32]  # zyx
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Space:
    """Anatomical coordinates x, y, z of each voxel, arrays zyx in mm, and the side of a cubic voxel of equal volume."""

    x: Field
    y: Field
    z: Field
    voxel_mm: float

    def box(self, centre: Point, radius_mm: float) -> tuple[slice, slice, slice]:
        """The smallest box of voxels z, y, x that contains a ball, empty if the ball lies outside."""
        slices = []
        for axis, (field, middle) in enumerate(zip((self.z, self.y, self.x), centre[::-1], strict=True)):
            others = tuple(a for a in range(3) if a != axis)
            near = (field.min(axis=others) <= middle + radius_mm) & (field.max(axis=others) >= middle - radius_mm)
            hits = np.flatnonzero(near)
            slices.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0))
        return slices[0], slices[1], slices[2]

    def cropped(self, box: tuple[slice, slice, slice]) -> Space:
        """The coordinates inside a box of voxels."""
        return Space(self.x[box], self.y[box], self.z[box], self.voxel_mm)


def ellipsoid(space: Space, centre: Point, radii: Point) -> Field:
    """Signed distance to an ellipsoid, zyx in mm: exact on its surface, scaled by the smallest radius elsewhere."""
    q = np.sqrt(
        ((space.x - centre[0]) / radii[0]) ** 2
        + ((space.y - centre[1]) / radii[1]) ** 2
        + ((space.z - centre[2]) / radii[2]) ** 2
    )
    return np.asarray((1 - q) * min(radii), np.float32)


def cylinder(space: Space, centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0) -> Field:
    """Signed distance, zyx in mm, to a cylinder along z with a superellipse as its section."""
    q = (np.abs((space.x - centre[0]) / radii[0]) ** power + np.abs((space.y - centre[1]) / radii[1]) ** power) ** (
        1 / power
    )
    return np.asarray((1 - q) * min(radii), np.float32)


def tubes(space: Space, segments: Sequence[tuple[Point, Point, float]]) -> Field:
    """Signed distance, zyx in mm, to a union of capsules given as (start, end, radius)."""
    nearest_zyx_mm = np.full(space.x.shape, -1e3, np.float32)
    for start, end, radius in segments:
        dx, dy, dz = (b - a for a, b in zip(start, end, strict=True))
        length2 = dx * dx + dy * dy + dz * dz
        px, py, pz = space.x - start[0], space.y - start[1], space.z - start[2]
        t = np.clip((px * dx + py * dy + pz * dz) / length2, 0, 1)
        distance_zyx_mm = np.sqrt((px - t * dx) ** 2 + (py - t * dy) ** 2 + (pz - t * dz) ** 2)
        np.maximum(nearest_zyx_mm, radius - distance_zyx_mm, out=nearest_zyx_mm)
    return nearest_zyx_mm


def smooth_union(a_zyx_mm: Field, b_zyx_mm: Field, blend_mm: float) -> Field:
    """Union of two shapes, from their signed distances, with a seam rounded over `blend_mm`."""
    h = np.clip(0.5 + 0.5 * (a_zyx_mm - b_zyx_mm) / blend_mm, 0, 1)
    return np.asarray(b_zyx_mm * (1 - h) + a_zyx_mm * h + blend_mm * h * (1 - h), np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], nodes: int) -> Field:
    """A smooth random field, zyx, interpolated between `nodes` nodes of unit variance along each axis."""
    coarse_zyx = rng.standard_normal((nodes, nodes, nodes)).astype(np.float32)
    noise_zyx = interpolate_nodes(coarse_zyx, shape)
    return np.asarray(ndimage.uniform_filter(noise_zyx, [max(1, n // nodes) for n in shape]), np.float32)

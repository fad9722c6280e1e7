"""Implicit shapes in a patient's space: signed distances in mm, positive inside, and how they become voxels.

Coordinates are LPS millimetres around the middle of the abdomen: x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Field = npt.NDArray[np.float32]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Space:
    """Anatomical coordinates of each voxel, x y z, each zyx in mm, and the blur of one voxel's extent."""

    x: Field
    y: Field
    z: Field
    voxel_mm: float

    def box(self, centre: Point, radius_mm: float) -> tuple[slice, slice, slice]:
        """The smallest box of voxels that may hold a ball; whole axes where it lies outside."""
        slices = []
        for axis, (field, middle) in enumerate(zip((self.z, self.y, self.x), centre[::-1], strict=True)):
            others = tuple(a for a in range(3) if a != axis)
            near = (field.min(axis=others) <= middle + radius_mm) & (field.max(axis=others) >= middle - radius_mm)
            hits = np.flatnonzero(near)
            slices.append(slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0))
        return slices[0], slices[1], slices[2]

    def cropped(self, box: tuple[slice, slice, slice]) -> Space:
        return Space(self.x[box], self.y[box], self.z[box], self.voxel_mm)


def ellipsoid(space: Space, centre: Point, radii: Point) -> Field:
    """Signed distance to an ellipsoid, exact on its surface and scaled to its smallest radius elsewhere."""
    q = np.sqrt(
        ((space.x - centre[0]) / radii[0]) ** 2
        + ((space.y - centre[1]) / radii[1]) ** 2
        + ((space.z - centre[2]) / radii[2]) ** 2
    )
    return np.asarray((1 - q) * min(radii), np.float32)


def column(space: Space, centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0) -> Field:
    """Signed distance to an upright cylinder whose section is a superellipse."""
    q = (np.abs((space.x - centre[0]) / radii[0]) ** power + np.abs((space.y - centre[1]) / radii[1]) ** power) ** (
        1 / power
    )
    return np.asarray((1 - q) * min(radii), np.float32)


def tubes(space: Space, segments: Sequence[tuple[Point, Point, float]]) -> Field:
    """Signed distance to a union of capsules, each (from, to, radius)."""
    nearest = np.full(space.x.shape, -1e3, np.float32)
    for start, end, radius in segments:
        dx, dy, dz = (b - a for a, b in zip(start, end, strict=True))
        length2 = dx * dx + dy * dy + dz * dz
        px, py, pz = space.x - start[0], space.y - start[1], space.z - start[2]
        t = np.clip((px * dx + py * dy + pz * dz) / length2, 0, 1)
        distance = np.sqrt((px - t * dx) ** 2 + (py - t * dy) ** 2 + (pz - t * dz) ** 2)
        np.maximum(nearest, radius - distance, out=nearest)
    return nearest


def join(a: Field, b: Field, blend_mm: float) -> Field:
    """Smooth union of two signed distances."""
    h = np.clip(0.5 + 0.5 * (a - b) / blend_mm, 0, 1)
    return np.asarray(b * (1 - h) + a * h + blend_mm * h * (1 - h), np.float32)


def coverage(distance_mm: Field, voxel_mm: float) -> Field:
    """Share of each voxel inside a surface: the partial volume of a plane at that distance."""
    return np.asarray(np.clip(distance_mm / voxel_mm + 0.5, 0, 1), np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int, int], nodes: int) -> Field:
    """A smooth random field of unit variance at its nodes, `nodes` along each axis."""
    coarse = rng.standard_normal((nodes, nodes, nodes)).astype(np.float32)
    factors = [n / nodes for n in shape]
    field = ndimage.zoom(coarse, factors, order=1, mode="nearest", grid_mode=True)
    return np.asarray(ndimage.uniform_filter(field, [max(1, n // nodes) for n in shape]), np.float32)

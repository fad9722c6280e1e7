"""Grids with parallel axes: resampling one axis at a time, and turning arrays from one orientation to another.

Along one axis, smoothing and linear interpolation are one sparse matrix. Of a part of a scan only the voxels that it
depends on are read, a few slices at a time, so that neither the scan nor its smoothed copy is held as floats. No sum is
left to BLAS, whose order of additions depends on where arrays lie in memory: the same scan gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from hepar.imaging.volumes import ALIASING_SIGMA, LEAST_SIGMA, Geometry

SLICES_AT_ONCE = 16
KERNEL_SIGMAS = 4.0  # to which the smoothing reaches
Box = tuple[slice, ...]


def resample_part(array_zyx: npt.NDArray[Any], source: Geometry, target: Geometry) -> npt.NDArray[np.float32]:
    """Resample an array zyx on the grid `source` to the grid `target` of the same direction, as float32.

    The rules are those of `hepar.imaging.volumes.resample`: linear interpolation, the nearest border voxel outside,
    and smoothing along axes with a coarser new spacing. Both agree within a few thousandths of a scan's contrast.
    """
    z_columns, y_columns, x_columns = (_Axis.between(source, target, axis) for axis in range(3))
    read_yx = (slice(y_columns.start, y_columns.stop), slice(x_columns.start, x_columns.stop))
    result_zyx = np.empty(target.size_zyx, np.float32)
    for first in range(0, target.size_zyx[0], SLICES_AT_ONCE):
        rows = z_columns.weights[first : first + SLICES_AT_ONCE]
        used = slice(int(rows.indices.min()), int(rows.indices.max()) + 1)
        read_z = slice(z_columns.start + used.start, z_columns.start + used.stop)
        slices_zyx = array_zyx[(read_z, *read_yx)].astype(np.float32)
        along_z_zyx = _along_first(rows[:, used], slices_zyx)
        along_y_yzx = _along_first(y_columns.weights, along_z_zyx.transpose(1, 0, 2))
        along_x_xzy = _along_first(x_columns.weights, along_y_yzx.transpose(2, 1, 0))
        result_zyx[first : first + SLICES_AT_ONCE] = along_x_xzy.transpose(1, 2, 0)
    return result_zyx


def _along_first(weights: Any, array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A sparse matrix times an array of three axes, along the first."""
    columns = np.ascontiguousarray(array).reshape(len(array), -1)
    return np.asarray(weights @ columns).reshape(-1, *array.shape[1:])


class _Axis:
    """The weights of old voxels `start` to `stop` in the new ones along one axis: sparse float32, a row a new voxel."""

    def __init__(self, weights: npt.NDArray[np.float64]) -> None:
        used_n = np.flatnonzero(weights.any(axis=0))
        self.start, self.stop = int(used_n[0]), int(used_n[-1]) + 1
        self.weights = csr_array(weights[:, self.start : self.stop].astype(np.float32))

    @classmethod
    def between(cls, source: Geometry, target: Geometry, axis: int) -> _Axis:
        """The weights along an axis, 0 for z."""
        old_mm, new_mm = source.spacing_zyx_mm[axis], target.spacing_zyx_mm[axis]
        places_n = (_offset_mm(source, target, axis) + np.arange(target.size_zyx[axis]) * new_mm) / old_mm
        sigma = max(0.0, (new_mm / old_mm) ** 2 - 1) ** 0.5 * ALIASING_SIGMA
        return cls(_axis_weights(source.size_zyx[axis], places_n, sigma))


def _axis_weights(size: int, places_n: npt.NDArray[np.floating], sigma: float) -> npt.NDArray[np.float64]:
    """Weights of `size` voxels, smoothed with a Gaussian of `sigma` voxels, interpolated at some places."""
    inside_n = np.clip(places_n, 0, size - 1)
    low_n = np.minimum(np.floor(inside_n).astype(np.intp), max(size - 2, 0))
    share_n = inside_n - low_n
    reach = math.ceil(KERNEL_SIGMAS * sigma) if sigma > LEAST_SIGMA and size >= 4 else 0
    kernel_k = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, LEAST_SIGMA)) ** 2)
    kernel_k /= kernel_k.sum()
    weights = np.zeros((len(places_n), size))
    rows_n = np.arange(len(places_n))
    for shift, height in zip(range(-reach, reach + 1), kernel_k, strict=True):
        for neighbour, share in ((0, 1 - share_n), (1, share_n)):
            columns_n = np.clip(np.clip(low_n + neighbour, 0, size - 1) + shift, 0, size - 1)
            np.add.at(weights, (rows_n, columns_n), height * share)
    return weights


def _offset_mm(start: Geometry, end: Geometry, axis: int) -> float:
    """How far the origin of `end` lies from that of `start` along an axis, 0 for z; both have the same direction."""
    direction = np.array(start.direction).reshape(3, 3)[:, 2 - axis]
    return float(np.sum(direction * (np.array(end.origin_xyz_mm) - np.array(start.origin_xyz_mm))))


def box_on(box: Box, source: Geometry, target: Geometry) -> Box:
    """The voxels of `target` whose centres lie in a box of `source`, a grid of the same direction; at least one."""
    inside = []
    for axis, part in enumerate(box):
        offset_mm = _offset_mm(target, source, axis)
        low, high = (
            (offset_mm + (edge - 0.5) * source.spacing_zyx_mm[axis]) / target.spacing_zyx_mm[axis]
            for edge in (part.start, part.stop)
        )
        first = min(max(0, math.ceil(low - 1e-6)), target.size_zyx[axis] - 1)
        inside.append(slice(first, min(max(first + 1, math.ceil(high - 1e-6)), target.size_zyx[axis])))
    return tuple(inside)


def whole_box(size_zyx: Sequence[int]) -> Box:
    """All voxels of a volume."""
    return tuple(slice(0, n) for n in size_zyx)


def within(box: Box, size_zyx: Sequence[int]) -> Box:
    """The box, of which slices may lack a start or stop or go beyond a volume, within a volume of a size."""
    return tuple(slice(*part.indices(n)[:2]) for part, n in zip(box, size_zyx, strict=True))


def inner_box(outer: Box, inner: Box) -> Box:
    """A box that is given from the first voxel of another box, on the grid of that one."""
    return tuple(
        slice(whole.start + part.start, whole.start + part.stop) for whole, part in zip(outer, inner, strict=True)
    )


def shared_slices(one: Box, other: Box) -> tuple[Box, Box] | None:
    """Where two boxes overlap, counted from the start of each; None if they do not."""
    shared = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)]
    if any(start >= stop for start, stop in shared):
        return None
    in_one, in_other = (
        tuple(slice(start - part.start, stop - part.start) for (start, stop), part in zip(shared, box, strict=True))
        for box in (one, other)
    )
    return in_one, in_other


def turned(array_zyx: npt.NDArray[Any], source: Geometry, target: Geometry) -> npt.NDArray[Any]:
    """A view of an array on the grid `source` along the axes of `target`, which are the same but for order and sign.

    The array may have further axes before z y x.
    """
    axes, flipped = _turn(source, target)
    before = array_zyx.ndim - 3
    permuted = array_zyx.transpose([*range(before), *(before + axis for axis in axes)])
    return np.asarray(np.flip(permuted, tuple(before + axis for axis, flip in enumerate(flipped) if flip)))


def turned_box(box: Box, source: Geometry, target: Geometry) -> Box:
    """The box of an array on the grid `source`, with starts and stops, in the array that `turned` makes."""
    axes, flipped = _turn(source, target)
    return tuple(
        slice(source.size_zyx[axis] - box[axis].stop, source.size_zyx[axis] - box[axis].start) if flip else box[axis]
        for axis, flip in zip(axes, flipped, strict=True)
    )


def _turn(source: Geometry, target: Geometry) -> tuple[list[int], list[bool]]:
    """For each axis z y x of `target`, the axis of `source` along it, and whether it runs the other way."""
    old_xyz, new_xyz = (np.array(grid.direction).reshape(3, 3) for grid in (source, target))
    cosines_zyx = (new_xyz.T @ old_xyz)[::-1, ::-1]
    axes = [int(axis) for axis in np.abs(cosines_zyx).argmax(axis=1)]
    return axes, [bool(cosines_zyx[row, axis] < 0) for row, axis in enumerate(axes)]

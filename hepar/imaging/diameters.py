"""Diameters of a lesion on a slice, as RECIST 1.1 measures them, from its mask.

The outline of a mask on a slice runs through the midpoints of the pixel edges between lesion and background (marching
squares at half height), so a row of n pixels is n pixels long. Legend: s segments, p points, 2 coordinates in the
plane of the slice in mm from the centre of its first pixel.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist, squareform

from hepar.imaging.masks import Mask, bounding_box
from hepar.imaging.volumes import Geometry

EQUAL_MM = 1e-6  # lengths that differ by less are equal
Points = npt.NDArray[np.float64]
PointLPS = tuple[float, float, float]
# the edges of a square of four pixels: midpoints, as (y, x) in pixels from its first pixel
_TOP, _LEFT, _RIGHT, _BOTTOM = (0.0, 0.5), (0.5, 0.0), (0.5, 1.0), (1.0, 0.5)
# by the pixels inside: 1 upper left, 2 upper right, 4 lower left, 8 lower right. Pixels that touch only at a corner are
# apart, as face-connected components are
_SEGMENTS = {
    1: ((_TOP, _LEFT),),
    2: ((_TOP, _RIGHT),),
    3: ((_LEFT, _RIGHT),),
    4: ((_LEFT, _BOTTOM),),
    5: ((_TOP, _BOTTOM),),
    6: ((_TOP, _RIGHT), (_LEFT, _BOTTOM)),
    7: ((_RIGHT, _BOTTOM),),
    8: ((_RIGHT, _BOTTOM),),
    9: ((_TOP, _LEFT), (_RIGHT, _BOTTOM)),
    10: ((_TOP, _BOTTOM),),
    11: ((_LEFT, _BOTTOM),),
    12: ((_LEFT, _RIGHT),),
    13: ((_TOP, _RIGHT),),
    14: ((_TOP, _LEFT),),
}


@dataclass(frozen=True)
class Diameter:
    """A straight line between two points of the outline, in LPS millimetres."""

    length_mm: float
    ends_lps_mm: tuple[PointLPS, PointLPS]


@dataclass(frozen=True)
class AxialDiameters:
    """The longest diameter of a lesion on any axial slice, and the longest one at a right angle to it on that slice.

    `slice_index` counts from 0 along the slice axis of the grid (`slice_axis`).
    """

    longest: Diameter
    perpendicular: Diameter
    slice_index: int


def slice_axis(geometry: Geometry) -> int:
    """The axis of an array zyx whose slices count as axial: the one nearest to the patient's long axis.

    In a coronal or sagittal acquisition that is an axis within the acquired plane.
    """
    direction = np.array(geometry.direction).reshape(3, 3)
    return 2 - int(np.abs(direction[2]).argmax())


def axial_tilt_degrees(geometry: Geometry) -> float:
    """The angle between the slice axis of a grid and the patient's long axis, 0 to 54.7."""
    direction = np.array(geometry.direction).reshape(3, 3)
    return float(np.degrees(np.arccos(min(1.0, np.abs(direction[2]).max()))))


def axial_diameters(lesion_zyx: Mask, geometry: Geometry) -> AxialDiameters:
    """The longest axial diameter of a lesion, and the longest perpendicular to it on the same slice.

    Slices are those of the grid along `slice_axis`: on an oblique grid they are oblique, as a reader measures them.
    A line joins two points of the outline and may leave a curved lesion in between; parts of a lesion that are
    separate on a slice are measured one by one. Of equally long ones that with the longest perpendicular counts, so a
    mirrored or permuted grid gives the same numbers; then the first. After Eisenhauer et al., "New response evaluation
    criteria in solid tumours: RECIST guideline (version 1.1)", Eur J Cancer 2009. Raises ValueError if the mask is
    empty.
    """
    box = bounding_box(lesion_zyx)
    if box is None:
        raise ValueError("an empty mask has no diameter")
    axis = slice_axis(geometry)
    spacing_mm = np.delete(np.array(geometry.spacing_zyx_mm), axis)
    cropped = np.moveaxis(lesion_zyx[box], axis, 0)
    longest: list[tuple[float, Points, Points, int]] = []  # all of one length
    for number, slice_yx in enumerate(cropped):
        parts_yx, count = ndimage.label(slice_yx)
        for part in range(1, count + 1):
            outline_s22 = outline_segments(parts_yx == part) * spacing_mm
            length_mm, ends_p22 = _longest(outline_s22)
            if longest and length_mm > longest[0][0] + EQUAL_MM:
                longest.clear()
            if not longest or length_mm > longest[0][0] - EQUAL_MM:
                longest += [(length_mm, ends_22, outline_s22, number) for ends_22 in ends_p22]
    across = [_perpendicular(outline_s22, ends_22) for _, ends_22, outline_s22, _ in longest]
    chosen = max(range(len(across)), key=lambda index: round(across[index][0] / EQUAL_MM))  # the first of equal ones
    (length_mm, ends_22, _, number), (across_mm, across_22) = longest[chosen], across[chosen]
    place = _Plane(geometry, axis, box, number)
    return AxialDiameters(
        Diameter(length_mm, place.lps(ends_22 / spacing_mm)),
        Diameter(across_mm, place.lps(across_22 / spacing_mm)),
        box[axis].start + number,
    )


@dataclass(frozen=True)
class _Plane:
    """A slice of a box in a grid, for the way back from its pixels to the patient."""

    geometry: Geometry
    axis: int
    box: tuple[slice, ...]
    number: int

    def lps(self, ends_22: Points) -> tuple[PointLPS, PointLPS]:
        """Two points of the plane, in pixels of the box, in LPS millimetres."""
        index_23 = np.insert(ends_22, self.axis, self.number, axis=1) + [part.start for part in self.box]
        first, second = (self.geometry.to_lps_mm((z, y, x)) for z, y, x in index_23.tolist())
        return first, second


def outline_segments(mask_yx: Mask) -> Points:
    """The outline of a mask as straight segments, float64 s22 (ends, y and x) in pixels from the first pixel's centre.

    An empty mask gives none.
    """
    padded_yx = np.pad(mask_yx, 1).astype(np.uint8)
    cases_yx = padded_yx[:-1, :-1] + 2 * padded_yx[:-1, 1:] + 4 * padded_yx[1:, :-1] + 8 * padded_yx[1:, 1:]
    segments = [np.zeros((0, 2, 2))]
    for case, ends in _SEGMENTS.items():
        corners_p2 = np.argwhere(cases_yx == case) - 1.0  # of the padding
        segments += [corners_p2[:, None, :] + np.array(segment)[None] for segment in ends]
    return np.concatenate(segments)


def _longest(outline_s22: Points) -> tuple[float, Points]:
    """The longest distance between two points of an outline in mm, and all pairs of that distance, float64 p22."""
    points_p2 = np.unique(outline_s22.reshape(-1, 2), axis=0)
    with suppress(QhullError):  # points on a line
        points_p2 = points_p2[np.sort(ConvexHull(points_p2).vertices)]
    distances_pp = squareform(pdist(points_p2))
    longest_mm = float(distances_pp.max())
    return longest_mm, points_p2[np.argwhere(np.triu(distances_pp >= longest_mm - EQUAL_MM, k=1))]


def _perpendicular(outline_s22: Points, ends_22: Points) -> tuple[float, Points]:
    """The longest line between points of an outline at a right angle to the line between `ends_22`, and its ends.

    Between the corners of the outline its length changes linearly, so that it is longest at a corner.
    """
    along_2 = (ends_22[1] - ends_22[0]) / np.linalg.norm(ends_22[1] - ends_22[0])
    across_2 = np.array([-along_2[1], along_2[0]])
    t_s2, u_s2 = outline_s22 @ along_2, outline_s22 @ across_2
    best = (-1.0, 0.0, 0.0, 0.0)
    for t in np.unique(t_s2):
        crossing = (t_s2.min(axis=1) <= t) & (t <= t_s2.max(axis=1))
        (t_a, t_b), (u_a, u_b) = t_s2[crossing].T, u_s2[crossing].T
        flat = t_a == t_b  # of a segment along the perpendicular one end counts; the other is the next one's
        u_n = u_a + np.where(flat, 0.0, (t - t_a) / np.where(flat, 1.0, t_b - t_a)) * (u_b - u_a)
        if u_n.max() - u_n.min() > best[0]:
            best = (float(u_n.max() - u_n.min()), float(t), float(u_n.min()), float(u_n.max()))
    length_mm, t, low, high = best
    return length_mm, np.array([t * along_2 + u * across_2 for u in (low, high)])

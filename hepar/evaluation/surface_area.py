"""Area of the surface of a mask, by marching cubes.

A corner of the grid touches eight voxels, and what marching cubes draws between their centres (Lorensen and Cline,
SIGGRAPH 1987) is the surface element of that corner. Its area depends on which of the eight are in the mask: 256
neighbourhoods, which are 22 up to rotation and reflection. The triangles are those of the package surface-distance
(Nikolov et al., arXiv 1809.04430), with which the areas agree to rounding. Neither that package nor MONAI's copy of its
table is used: the first calls functions that NumPy and SciPy have dropped, the second computes in single precision and
takes seconds to import.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hepar.imaging.masks import Mask
from hepar.params import SpacingZYX

_Triangles = tuple[tuple[int, int, int], ...]
# Area vectors of the triangles, along z, y and x without sign, in eighths of a voxel's face; by the code of one
# neighbourhood of each kind. Bit 4z + 2y + x of a code is the voxel on the side (z, y, x) of the corner.
_TRIANGLES: dict[int, _Triangles] = {
    0: (),
    1: ((1, 1, 1),),
    3: ((2, 2, 0), (2, 2, 0)),
    6: ((1, 1, 1), (1, 1, 1)),
    7: ((1, 1, 1), (2, 2, 2), (4, 0, 0)),
    15: ((4, 0, 0), (4, 0, 0)),
    22: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    23: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    24: ((1, 1, 1), (1, 1, 1)),
    25: ((0, 2, 2), (0, 2, 2), (1, 1, 1)),
    27: ((0, 2, 2), (1, 1, 1), (2, 0, 2), (3, 3, 3)),
    30: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (4, 0, 0)),
    31: ((1, 1, 1), (2, 2, 2), (4, 0, 0)),
    60: ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)),
    61: ((1, 1, 1), (2, 2, 0), (2, 2, 0)),
    63: ((2, 2, 0), (2, 2, 0)),
    105: ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    107: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    111: ((1, 1, 1), (1, 1, 1)),
    126: ((1, 1, 1), (1, 1, 1)),
    127: ((1, 1, 1),),
    255: (),
}
_SIDES = tuple(itertools.product((0, 1), repeat=3))


def surface_element_areas_mm2(spacing_zyx_mm: SpacingZYX) -> NDArray[np.float64]:
    """Area of the surface element of each neighbourhood, float64 256 by code; 0 for none of the voxels and for all."""
    z, y, x = spacing_zyx_mm
    vectors_kt3_mm2 = _area_vectors() * np.array([y * x, z * x, z * y])
    return np.asarray(np.linalg.norm(vectors_kt3_mm2, axis=-1).sum(axis=-1), dtype=np.float64)


def neighbourhood_codes(mask_zyx: Mask) -> NDArray[np.uint8]:
    """The code of the neighbourhood of each corner of the grid, uint8 with one more corner than voxels on each axis.

    Beyond the edge of the grid is outside.
    """
    padded_zyx = np.pad(mask_zyx, 1).view(np.uint8)
    code_zyx = np.zeros(tuple(n + 1 for n in mask_zyx.shape), np.uint8)
    for bit, sides in enumerate(_SIDES):
        voxels = tuple(slice(side, side + n) for side, n in zip(sides, code_zyx.shape, strict=True))
        code_zyx |= padded_zyx[voxels] << np.uint8(bit)
    return code_zyx


@cache
def _area_vectors() -> NDArray[np.float64]:
    """Area vectors of at most four triangles for each of the 256 codes, in units of a voxel's faces."""
    vectors_kt3 = np.zeros((256, 4, 3))
    for code, triangles in _TRIANGLES.items():
        inside = [sides for bit, sides in enumerate(_SIDES) if code >> bit & 1]
        for axes in itertools.permutations(range(3)):
            turned_t3 = [[triangle[axis] for axis in axes] for triangle in triangles]
            for mirrored in _SIDES:
                same_kind = sum(1 << _SIDES.index(_turn(sides, axes, mirrored)) for sides in inside)
                vectors_kt3[same_kind, : len(triangles)] = np.reshape(turned_t3, (-1, 3)) / 8
    return vectors_kt3


def _turn(sides: tuple[int, ...], axes: tuple[int, ...], mirrored: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sides[axis] ^ flip for axis, flip in zip(axes, mirrored, strict=True))

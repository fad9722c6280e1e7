"""Focal liver lesions: tumours, and what looks like them but is harmless, cysts and areas of focal fat.

A cyst is a sharp, homogeneous sphere of water without a rim. Focal fat is fainter than a tumour and angular, lies at
the capsule, often beside the falciform ligament, and leaves the vessels where they are. A tumour has an irregular
border, a mottled core and perhaps a rim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.imaging.masks import Mask, bounding_box
from hepar.imaging.painting import draw_log_uniform, interpolate_nodes, partial_volume
from hepar.params import SpacingZYX
from hepar.phantoms.anatomy import Anatomy, Tissue
from hepar.phantoms.shapes import Field, smooth_noise

TUMOUR_MM = (5.0, 50.0)
MAIN_TUMOUR_MM = (20.0, 50.0)
CYST_MM = (8.0, 40.0)
FOCAL_FAT_MM = (5.0, 10.0)  # radius of the ball that fits into the tetrahedron
CYST_SHARE = 0.25  # of patients, with one to three
FOCAL_FAT_SHARE = 0.2  # of patients
MOTTLE = 0.15  # standard deviation inside a tumour, relative to its contrast
MOTTLE_MM = 8.0


@dataclass(frozen=True)
class Parenchyma:
    """Where lesions find room: depth below the capsule, zyx in mm and 0 outside the liver, on a grid with a spacing."""

    depth_zyx_mm: Field
    spacing_zyx_mm: SpacingZYX

    @classmethod
    def of(cls, liver_zyx: Mask, spacing_zyx_mm: SpacingZYX) -> Parenchyma:
        """The parenchyma of a liver; of an empty one it has no depth anywhere."""
        depth_zyx_mm = np.zeros(liver_zyx.shape, np.float32)
        if (tight := bounding_box(liver_zyx)) is not None:
            box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in tight)
            depth_zyx_mm[box] = ndimage.distance_transform_edt(liver_zyx[box], sampling=spacing_zyx_mm)
        return cls(depth_zyx_mm, spacing_zyx_mm)

    def around(self, centre_zyx: tuple[int, ...], reach_mm: float) -> tuple[tuple[slice, ...], list[Field]]:
        """The box of voxels up to `reach_mm` from a voxel along each axis, and their offsets along z, y, x in mm."""
        box, offsets_mm = [], []
        for middle, size, spacing_mm in zip(centre_zyx, self.depth_zyx_mm.shape, self.spacing_zyx_mm, strict=True):
            reach = int(reach_mm / spacing_mm)
            box.append(slice(max(middle - reach, 0), min(middle + reach + 1, size)))
            offsets_mm.append((np.arange(box[-1].start, box[-1].stop) - middle).astype(np.float32) * spacing_mm)
        return tuple(box), list(np.meshgrid(*offsets_mm, indexing="ij"))


def draw_look_alikes(anatomy: Anatomy, rng: np.random.Generator, parenchyma: Parenchyma) -> None:
    """Paint the harmless lesions of a patient, if there are any. They are no part of the tumour."""
    if rng.random() < CYST_SHARE:
        for _ in range(rng.integers(1, 4)):
            _paint_cyst(anatomy, rng, parenchyma)
    if rng.random() < FOCAL_FAT_SHARE:
        _paint_focal_fat(anatomy, rng, parenchyma)


def _paint_cyst(anatomy: Anatomy, rng: np.random.Generator, parenchyma: Parenchyma) -> None:
    """Paint a cyst inside the liver, or nothing if it does not fit."""
    radius_mm = draw_log_uniform(rng, CYST_MM) / 2
    centre_zyx = _choose(rng, parenchyma.depth_zyx_mm >= radius_mm)
    if centre_zyx is None:
        return
    box, (dz, dy, dx) = parenchyma.around(centre_zyx, radius_mm * 1.1 + anatomy.space.voxel_mm)
    a, b, c = rng.uniform(0.92, 1.08, 3)
    distance_zyx_mm = radius_mm - np.sqrt((dz / a) ** 2 + (dy / b) ** 2 + (dx / c) ** 2)
    anatomy.paint(Tissue.CYST, _inside(distance_zyx_mm, anatomy.liver_zyx[box]), box)


def _paint_focal_fat(anatomy: Anatomy, rng: np.random.Generator, parenchyma: Parenchyma) -> None:
    """Paint a tetrahedron of parenchyma at the capsule, or nothing if it does not fit."""
    inner_mm = draw_log_uniform(rng, FOCAL_FAT_MM)
    depth_zyx_mm, space = parenchyma.depth_zyx_mm, anatomy.space
    room_zyx = (depth_zyx_mm > 0) & (depth_zyx_mm <= inner_mm)
    if rng.random() < 0.5:
        room_zyx = room_zyx & (np.abs(space.x + 14) < 16) & (space.y < -35)  # beside the falciform ligament
    centre_zyx = _choose(rng, room_zyx)
    if centre_zyx is None:
        return
    # a tetrahedron's corners lie three times as far from its middle as its faces
    box, offsets_zyx_mm = parenchyma.around(centre_zyx, 3 * inner_mm + anatomy.space.voxel_mm)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    normals = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / np.sqrt(3) @ turn
    heights_mm = np.tensordot(normals, np.stack(offsets_zyx_mm), axes=1)
    parenchyma_zyx = anatomy.tissue_zyx[box] == Tissue.LIVER
    anatomy.paint(Tissue.FOCAL_FAT, _inside(inner_mm - heights_mm.max(axis=0), parenchyma_zyx), box)


def draw_tumours(
    anatomy: Anatomy,
    rng: np.random.Generator,
    count: int,
    parenchyma: Parenchyma,
    contrast: Callable[[np.random.Generator], tuple[float, float | None]],
) -> None:
    """Paint `count` tumours of 5–50 mm inside the liver, deep or at the capsule, of at least one voxel each.

    `contrast` draws the intensities of a tumour's core and rim.
    """
    border_noise_zyx = smooth_noise(rng, anatomy.liver_zyx.shape, 14)
    for number in range(count):
        # the first is visible on a coarse grid; among the others, small ones are more frequent
        diameter_mm = rng.uniform(*MAIN_TUMOUR_MM) if number == 0 else draw_log_uniform(rng, TUMOUR_MM)
        free_zyx = ~anatomy.tumour_zyx & (anatomy.tissue_zyx != Tissue.CYST)
        centre_zyx, radius_mm = _place_tumour(rng, parenchyma.depth_zyx_mm, free_zyx, float(diameter_mm) / 2)
        box, (dz, dy, dx) = parenchyma.around(centre_zyx, radius_mm * 1.5 + anatomy.space.voxel_mm)
        distance_zyx_mm = radius_mm * (1 + 0.3 * border_noise_zyx[box]) - np.sqrt(dx**2 + dy**2 + dz**2)
        distance_zyx_mm = _inside(distance_zyx_mm, anatomy.liver_zyx[box])
        core, rim = contrast(rng)
        mottle_zyx = 1 + MOTTLE * _mottle(rng, distance_zyx_mm.shape, parenchyma.spacing_zyx_mm)
        core_zyx = np.asarray(anatomy.intensity_of(Tissue.LIVER) * (1 - mottle_zyx) + core * mottle_zyx, np.float32)
        if rim is not None and radius_mm > 6:
            anatomy.paint(Tissue.RIM, distance_zyx_mm, box, intensity=rim)
            anatomy.paint(Tissue.TUMOUR, distance_zyx_mm - np.float32(0.2 * radius_mm), box, intensity=core_zyx)
        else:
            anatomy.paint(Tissue.TUMOUR, distance_zyx_mm, box, intensity=core_zyx)
        anatomy.tumour_zyx[box] |= partial_volume(distance_zyx_mm, anatomy.space.voxel_mm) > 0.5
        anatomy.tumour_zyx[centre_zyx] = True


def _place_tumour(
    rng: np.random.Generator, depth_zyx_mm: Field, free_zyx: Mask, radius_mm: float
) -> tuple[tuple[int, ...], float]:
    """The voxel at the centre of a tumour, deep or at the capsule, and its radius, smaller if the liver is too thin."""
    at_capsule = rng.random() < 0.3
    low_mm, high_mm = (0.4 * radius_mm, 0.9 * radius_mm) if at_capsule else (radius_mm, np.inf)
    centre_zyx = _choose(rng, (depth_zyx_mm >= low_mm) & (depth_zyx_mm <= high_mm) & free_zyx)
    if centre_zyx is not None:
        return centre_zyx, radius_mm
    deepest_zyx = np.unravel_index(int(depth_zyx_mm.argmax()), depth_zyx_mm.shape)
    return tuple(int(index) for index in deepest_zyx), min(radius_mm, float(depth_zyx_mm.max()))


def _mottle(rng: np.random.Generator, shape_zyx: tuple[int, ...], spacing_zyx_mm: SpacingZYX) -> Field:
    """A random field with nodes of unit variance every 8 mm."""
    nodes = [max(1, round(n * mm / MOTTLE_MM)) for n, mm in zip(shape_zyx, spacing_zyx_mm, strict=True)]
    return interpolate_nodes(rng.standard_normal(nodes, dtype=np.float32), shape_zyx)


def _choose(rng: np.random.Generator, room_zyx: Mask) -> tuple[int, ...] | None:
    """A random voxel of a mask, None if it is empty."""
    candidate_n = np.flatnonzero(room_zyx)
    if candidate_n.size == 0:
        return None
    return tuple(int(index) for index in np.unravel_index(int(rng.choice(candidate_n)), room_zyx.shape))


def _inside(distance_zyx_mm: npt.NDArray[np.floating], mask_zyx: Mask) -> Field:
    """A signed distance cut off at the border of a mask."""
    return np.asarray(np.where(mask_zyx, distance_zyx_mm, -1e3), np.float32)

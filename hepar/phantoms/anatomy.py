"""One patient: organs painted in order into tissue fractions, and the liver with its tumours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.phantoms.shapes import (
    Field,
    Point,
    Space,
    column,
    coverage,
    ellipsoid,
    join,
    smooth_noise,
    tubes,
)

NOMINAL_WIDTH_MM = 350.0  # of the field of view that the organs below are drawn for
NOMINAL_HEIGHT_MM = 260.0
TUMOUR_MM = (5.0, 50.0)
MAIN_TUMOUR_MM = (20.0, 50.0)
SizeZYX = tuple[int, int, int]
SpacingZYX = tuple[float, float, float]


class Tissue(IntEnum):
    """What a voxel mostly is."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    BONE = 3
    MARROW = 4
    LUNG = 5
    VESSEL = 6
    ARTERY = 7
    LIVER = 8
    SPLEEN = 9
    KIDNEY = 10
    WALL = 11  # of stomach and bowel
    CONTENT = 12  # of stomach and bowel, like a tumour in CT
    FLUID = 13  # cysts and gallbladder
    LESION = 14  # in the spleen
    TUMOUR = 15
    RIM = 16


@dataclass
class Anatomy:
    """Tissues on a grid. `values` is painted by `paint`, `tissue` names the largest part of each voxel."""

    space: Space
    intensity: Callable[[Tissue], float]
    values: Field
    tissue: npt.NDArray[np.uint8]
    liver: npt.NDArray[np.bool_] = field(init=False)
    tumour: npt.NDArray[np.bool_] = field(init=False)

    def paint(
        self, tissue: Tissue, distance_mm: Field, box: tuple[slice, ...] = (), value: float | None = None
    ) -> None:
        """Lay a tissue over what is there, with partial volume at its surface."""
        part = coverage(distance_mm, self.space.voxel_mm)
        target = self.values[box] if box else self.values
        target += part * ((self.intensity(tissue) if value is None else value) - target)
        (self.tissue[box] if box else self.tissue)[part > 0.5] = tissue


def make_space(rng: np.random.Generator, size_zyx: SizeZYX, spacing_zyx_mm: SpacingZYX) -> Space:
    """Anatomical coordinates of the voxels: the nominal patient, scaled to the field of view, bent smoothly."""
    scale_xy = NOMINAL_WIDTH_MM / (size_zyx[2] * spacing_zyx_mm[2]) * rng.uniform(0.95, 1.08)
    scale_z = NOMINAL_HEIGHT_MM / (size_zyx[0] * spacing_zyx_mm[0]) * rng.uniform(0.94, 1.06)
    scales = (scale_z, scale_xy * rng.uniform(0.97, 1.05), scale_xy)
    axes = [
        ((np.arange(n) - (n - 1) / 2) * spacing * scale).astype(np.float32)
        for n, spacing, scale in zip(size_zyx, spacing_zyx_mm, scales, strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    bent = [axis + 9 * smooth_noise(rng, size_zyx, 5) for axis in (x, y, z)]
    voxel_mm = float(np.cbrt(np.prod(spacing_zyx_mm)))
    return Space(bent[0], bent[1], bent[2], voxel_mm)


def draw_organs(anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Everything but the tumours, from the skin inwards."""
    space = anatomy.space

    def jitter(centre: Point, mm: float = 5.0) -> Point:
        x, y, z = np.array(centre) + rng.uniform(-mm, mm, 3)
        return float(x), float(y), float(z)

    def sized(radii: Point, share: float = 0.12) -> Point:
        a, b, c = np.array(radii) * rng.uniform(1 - share, 1 + share, 3)
        return float(a), float(b), float(c)

    fat_mm = rng.uniform(8, 22)
    cavity = _draw_trunk(anatomy, rng, fat_mm)
    _draw_bowel(anatomy, rng, cavity)
    for side in (-1, 1):
        lung = ellipsoid(space, jitter((side * 78, 5, 128)), sized((58, 80, 62)))
        anatomy.paint(Tissue.LUNG, np.minimum(lung, cavity))
    anatomy.paint(Tissue.ARTERY, np.minimum(ellipsoid(space, jitter((18, -42, 128)), (50, 42, 36)), cavity))

    _draw_liver(anatomy, rng, cavity, jitter, sized)
    spleen = np.minimum(ellipsoid(space, jitter((106, 32, 38)), sized((27, 46, 46))), cavity)
    anatomy.paint(Tissue.SPLEEN, spleen)
    if rng.random() < 0.5:
        _ball(anatomy, Tissue.LESION, jitter((104, 30, 38), 12), float(rng.uniform(6, 13)))
    for side, height in ((-1, -48.0), (1, -30.0)):
        middle = jitter((side * 66.0, 55, height))
        anatomy.paint(Tissue.KIDNEY, ellipsoid(space, middle, sized((27, 27, 50))))
        _ball(anatomy, Tissue.FAT, (middle[0] - side * 14, middle[1], middle[2]), 10)
        for _ in range(rng.integers(0, 3)):
            shift = rng.uniform(-1, 1, 3) * (22, 22, 40)
            _ball(anatomy, Tissue.FLUID, tuple((np.array(middle) + shift).tolist()), float(rng.uniform(5, 14)))
    gallbladder = ellipsoid(space, jitter((-38, -52, -22), 8), sized((13, 15, 26), 0.25))
    outside_liver = np.where(anatomy.tissue == Tissue.LIVER, np.float32(-1e3), gallbladder)
    anatomy.paint(Tissue.FLUID, outside_liver)


def _draw_trunk(anatomy: Anatomy, rng: np.random.Generator, fat_mm: float) -> Field:
    """Skin to peritoneum, spine, ribs and great vessels; gives the signed distance to the cavity's wall."""
    space = anatomy.space
    skin = column(space, (0, 0), (164, 116), 2.4)
    anatomy.paint(Tissue.FAT, skin)
    muscle = skin - np.float32(fat_mm)
    anatomy.paint(Tissue.MUSCLE, muscle)
    cavity = np.minimum(muscle - np.float32(14), 74 - space.y)
    anatomy.paint(Tissue.FAT, cavity)
    phase, pitch = rng.uniform(0, 1), rng.uniform(24, 30)
    along = (space.z + 0.35 * space.y) / pitch + phase
    rib = 0.2 * pitch - np.abs(along - np.round(along)) * pitch
    shell = 5 - np.abs(muscle - 7)
    in_cage = np.minimum(space.z + 40, 100 - space.y)
    anatomy.paint(Tissue.BONE, np.minimum(np.minimum(rib, shell), in_cage))
    anatomy.paint(Tissue.MUSCLE, np.minimum(26 - np.abs(np.abs(space.x) - 42), column(space, (0, 88), (72, 22))))
    spine = column(space, (0, 72), (23, 19))
    disc = np.abs(space.z / 32 - np.round(space.z / 32)) * 32 - 4
    anatomy.paint(Tissue.BONE, spine)
    anatomy.paint(Tissue.MARROW, np.minimum(spine - 3, disc))
    anatomy.paint(Tissue.MUSCLE, column(space, (0, 97), (8, 8)))
    anatomy.paint(Tissue.ARTERY, column(space, (13, 46), (10, 10)))
    anatomy.paint(Tissue.VESSEL, column(space, (-19, 42), (12, 10)))
    return np.asarray(cavity, np.float32)


def _draw_bowel(anatomy: Anatomy, rng: np.random.Generator, cavity: Field) -> None:
    """Stomach beside the left lobe and loops below the liver; their contents vary as tumours do."""
    space = anatomy.space
    stomach = np.minimum(ellipsoid(space, (62, -38, 28), (46, 40, 58)), cavity)
    anatomy.paint(Tissue.WALL, stomach)
    anatomy.paint(Tissue.CONTENT, stomach - 6, value=_content(anatomy, rng))
    if rng.random() < 0.6:
        anatomy.paint(Tissue.AIR, np.minimum(stomach - 6, -60 - space.y))
    for _ in range(rng.integers(8, 14)):
        middle = (float(rng.uniform(-95, 95)), float(rng.uniform(-75, 20)), float(rng.uniform(-125, -35)))
        radii = tuple(rng.uniform(14, 30, 3).tolist())
        box = space.box(middle, 45)
        loop = np.minimum(ellipsoid(space.cropped(box), middle, radii), cavity[box])
        anatomy.paint(Tissue.WALL, loop, box)
        if rng.random() < 0.25:
            anatomy.paint(Tissue.AIR, loop - 4, box)
        else:
            anatomy.paint(Tissue.CONTENT, loop - 4, box, value=_content(anatomy, rng))


def _content(anatomy: Anatomy, rng: np.random.Generator) -> float:
    """Between fluid and wall: over the range that tumours take."""
    share = rng.uniform(0, 1)
    return float((1 - share) * anatomy.intensity(Tissue.FLUID) + share * anatomy.intensity(Tissue.WALL))


def _draw_liver(
    anatomy: Anatomy,
    rng: np.random.Generator,
    cavity: Field,
    jitter: Callable[..., Point],
    sized: Callable[..., Point],
) -> None:
    """A right and a left lobe, joined, under the diaphragm; with portal and hepatic veins inside."""
    space = anatomy.space
    right = ellipsoid(space, jitter((-72, -2, 22), 7), sized((66, 82, 74)))
    left = ellipsoid(space, jitter((2, -46, 44), 9), sized((74, 36, 38), 0.2))
    fossa = ellipsoid(space, jitter((-36, 22, -52), 8), (52, 46, 52))
    spine = column(space, (0, 62), (44, 44))
    liver = join(right, left, 14)
    liver = np.minimum(liver, np.minimum(-fossa, -spine))
    liver = np.asarray(np.minimum(liver, cavity - 1) + 3 * smooth_noise(rng, space.x.shape, 7), np.float32)
    anatomy.paint(Tissue.LIVER, liver)
    anatomy.liver = largest_component(anatomy.tissue == Tissue.LIVER)
    anatomy.tissue[(anatomy.tissue == Tissue.LIVER) & ~anatomy.liver] = Tissue.FAT
    anatomy.tumour = np.zeros_like(anatomy.liver)

    hilum, confluence = (-24.0, 8.0, 14.0), (-20.0, 36.0, 66.0)
    segments: list[tuple[Point, Point, float]] = []
    for root, ends in ((hilum, 6), (confluence, 4)):
        for _ in range(ends):
            end = (float(rng.uniform(-125, 20)), float(rng.uniform(-70, 50)), float(rng.uniform(-25, 75)))
            middle = tuple(((np.array(root) + end) / 2 + rng.uniform(-8, 8, 3)).tolist())
            radius = float(rng.uniform(3, 5.5))
            segments += [(root, middle, radius), (middle, end, radius * 0.6)]
    box = space.box((-50, -5, 25), 115)
    inside = np.where(anatomy.liver[box], tubes(space.cropped(box), segments), np.float32(-1e3))
    anatomy.paint(Tissue.VESSEL, np.asarray(inside, np.float32), box)


def _ball(anatomy: Anatomy, tissue: Tissue, centre: Point, radius_mm: float) -> None:
    box = anatomy.space.box(centre, radius_mm + anatomy.space.voxel_mm)
    if anatomy.values[box].size:
        anatomy.paint(tissue, ellipsoid(anatomy.space.cropped(box), centre, (radius_mm,) * 3), box)


def largest_component(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return np.asarray(labels == 1 + int(np.bincount(labels.ravel())[1:].argmax()))


def draw_tumours(
    anatomy: Anatomy,
    rng: np.random.Generator,
    count: int,
    spacing_zyx_mm: SpacingZYX,
    contrast: Callable[[np.random.Generator], tuple[float, float | None]],
) -> None:
    """Tumours of 5–50 mm inside the liver, deep or at the capsule; `contrast` gives their core and rim values.

    Each takes at least one voxel.
    """
    depth_mm = ndimage.distance_transform_edt(anatomy.liver, sampling=spacing_zyx_mm)
    index_mm = [
        np.arange(n, dtype=np.float32) * np.float32(s) for n, s in zip(anatomy.liver.shape, spacing_zyx_mm, strict=True)
    ]
    wobble = smooth_noise(rng, anatomy.liver.shape, 14)
    for number in range(count):
        # the first is one that a coarse grid shows; of the others, the smaller ones are the more frequent
        diameter_mm = rng.uniform(*MAIN_TUMOUR_MM) if number == 0 else np.exp(rng.uniform(*np.log(TUMOUR_MM)))
        radius_mm = float(diameter_mm) / 2
        at_capsule = rng.random() < 0.3
        wanted = (0.4 * radius_mm, 0.9 * radius_mm) if at_capsule else (radius_mm, np.inf)
        candidates = np.flatnonzero((depth_mm >= wanted[0]) & (depth_mm <= wanted[1]) & ~anatomy.tumour)
        if candidates.size == 0:
            candidates = np.flatnonzero(depth_mm == depth_mm.max())
            radius_mm = min(radius_mm, float(depth_mm.max()))
        centre = np.unravel_index(int(rng.choice(candidates)), anatomy.liver.shape)
        _grow(anatomy, tuple(int(c) for c in centre), radius_mm, index_mm, wobble, *contrast(rng))


def _grow(
    anatomy: Anatomy,
    centre: tuple[int, ...],
    radius_mm: float,
    index_mm: list[npt.NDArray[np.float32]],
    wobble: Field,
    core: float,
    rim: float | None,
) -> None:
    reach = radius_mm * 1.5 + anatomy.space.voxel_mm
    near = [np.flatnonzero(np.abs(axis - axis[c]) <= reach) for axis, c in zip(index_mm, centre, strict=True)]
    box = tuple(slice(int(hits[0]), int(hits[-1]) + 1) for hits in near)
    dz, dy, dx = np.meshgrid(
        *(axis[part] - axis[c] for axis, part, c in zip(index_mm, box, centre, strict=True)), indexing="ij"
    )
    distance = radius_mm * (1 + 0.3 * wobble[box]) - np.sqrt(dx**2 + dy**2 + dz**2)
    distance = np.asarray(np.where(anatomy.liver[box], distance, -1e3), np.float32)
    if rim is not None and radius_mm > 6:
        anatomy.paint(Tissue.RIM, distance, box, value=rim)
        anatomy.paint(Tissue.TUMOUR, distance - np.float32(0.2 * radius_mm), box, value=core)
    else:
        anatomy.paint(Tissue.TUMOUR, distance, box, value=core)
    inside = coverage(distance, anatomy.space.voxel_mm) > 0.5
    anatomy.tumour[box] |= inside
    anatomy.tumour[centre] = True

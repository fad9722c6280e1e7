"""Anatomy of one patient: organs painted on a grid in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from hepar.imaging.masks import Mask, keep_largest_component
from hepar.imaging.painting import partial_volume, voxel_side_mm
from hepar.params import SizeZYX, SpacingZYX
from hepar.phantoms.shapes import (
    Field,
    Point,
    Space,
    cylinder,
    ellipsoid,
    smooth_noise,
    smooth_union,
    tubes,
)

NOMINAL_WIDTH_MM = 350.0  # field of view that the coordinates of the organs refer to
NOMINAL_HEIGHT_MM = 260.0


class Tissue(IntEnum):
    """The tissue with the largest share of a voxel."""

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
    CONTENT = 12  # of stomach and bowel: like tumours, or oral contrast
    FLUID = 13  # gallbladder and cysts of the kidneys
    LESION = 14  # in the spleen
    TUMOUR = 15
    RIM = 16
    CYST = 17  # of the liver
    FOCAL_FAT = 18  # an area of the liver with more fat than the rest, or spared by it in a fatty liver


@dataclass
class Anatomy:
    """Tissues on a grid, zyx: intensity without noise, and the main tissue of each voxel as `Tissue`."""

    space: Space
    intensity_of: Callable[[Tissue], float]
    intensity_zyx: Field
    tissue_zyx: npt.NDArray[np.uint8]
    liver_zyx: Mask = field(init=False)
    tumour_zyx: Mask = field(init=False)

    def paint(
        self,
        tissue: Tissue,
        distance_zyx_mm: Field,
        box: tuple[slice, ...] = (),
        intensity: float | Field | None = None,
    ) -> None:
        """Paint a tissue over what is there, with partial volume at its surface.

        `distance_zyx_mm` is the signed distance to the surface, in `box` if one is given, as is an array of
        intensities. Without `intensity` it is that of the tissue.
        """
        share_zyx = partial_volume(distance_zyx_mm, self.space.voxel_mm)
        target_zyx = self.intensity_zyx[box] if box else self.intensity_zyx
        target_zyx += share_zyx * ((self.intensity_of(tissue) if intensity is None else intensity) - target_zyx)
        (self.tissue_zyx[box] if box else self.tissue_zyx)[share_zyx > 0.5] = tissue


def make_space(rng: np.random.Generator, size_zyx: SizeZYX, spacing_zyx_mm: SpacingZYX) -> Space:
    """Anatomical coordinates of the voxels: the nominal patient scaled to the field of view and bent smoothly."""
    scale_xy = NOMINAL_WIDTH_MM / (size_zyx[2] * spacing_zyx_mm[2]) * rng.uniform(0.95, 1.08)
    scale_z = NOMINAL_HEIGHT_MM / (size_zyx[0] * spacing_zyx_mm[0]) * rng.uniform(0.94, 1.06)
    scales = (scale_z, scale_xy * rng.uniform(0.97, 1.05), scale_xy)
    axes_mm = [
        ((np.arange(n) - (n - 1) / 2) * spacing * scale).astype(np.float32)
        for n, spacing, scale in zip(size_zyx, spacing_zyx_mm, scales, strict=True)
    ]
    z, y, x = np.meshgrid(*axes_mm, indexing="ij")
    bent_zyx_mm = [axis + 9 * smooth_noise(rng, size_zyx, 5) for axis in (x, y, z)]
    return Space(bent_zyx_mm[0], bent_zyx_mm[1], bent_zyx_mm[2], voxel_side_mm(spacing_zyx_mm))


def draw_organs(anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Paint everything but focal liver lesions, from the skin inwards."""
    space = anatomy.space

    def jittered(centre: Point, mm: float = 5.0) -> Point:
        x, y, z = np.array(centre) + rng.uniform(-mm, mm, 3)
        return float(x), float(y), float(z)

    def scaled(radii: Point, share: float = 0.12) -> Point:
        a, b, c = np.array(radii) * rng.uniform(1 - share, 1 + share, 3)
        return float(a), float(b), float(c)

    fat_mm = rng.uniform(8, 22)
    cavity_zyx_mm = _draw_trunk(anatomy, rng, fat_mm)
    _draw_bowel(anatomy, rng, cavity_zyx_mm)
    for side in (-1, 1):
        lung_zyx_mm = ellipsoid(space, jittered((side * 78, 5, 128)), scaled((58, 80, 62)))
        anatomy.paint(Tissue.LUNG, np.minimum(lung_zyx_mm, cavity_zyx_mm))
    anatomy.paint(Tissue.ARTERY, np.minimum(ellipsoid(space, jittered((18, -42, 128)), (50, 42, 36)), cavity_zyx_mm))

    _draw_liver(anatomy, rng, cavity_zyx_mm, jittered, scaled)
    spleen_zyx_mm = np.minimum(ellipsoid(space, jittered((106, 32, 38)), scaled((27, 46, 46))), cavity_zyx_mm)
    anatomy.paint(Tissue.SPLEEN, spleen_zyx_mm)
    if rng.random() < 0.5:
        _paint_ball(anatomy, Tissue.LESION, jittered((104, 30, 38), 12), float(rng.uniform(6, 13)))
    for side, height in ((-1, -48.0), (1, -30.0)):
        middle = jittered((side * 66.0, 55, height))
        anatomy.paint(Tissue.KIDNEY, ellipsoid(space, middle, scaled((27, 27, 50))))
        _paint_ball(anatomy, Tissue.FAT, (middle[0] - side * 14, middle[1], middle[2]), 10)
        for _ in range(rng.integers(0, 3)):
            shift = rng.uniform(-1, 1, 3) * (22, 22, 40)
            _paint_ball(anatomy, Tissue.FLUID, tuple((np.array(middle) + shift).tolist()), float(rng.uniform(5, 14)))
    gallbladder_zyx_mm = ellipsoid(space, jittered((-38, -52, -22), 8), scaled((13, 15, 26), 0.25))
    outside_liver_zyx_mm = np.where(anatomy.tissue_zyx == Tissue.LIVER, np.float32(-1e3), gallbladder_zyx_mm)
    anatomy.paint(Tissue.FLUID, outside_liver_zyx_mm)


def _draw_trunk(anatomy: Anatomy, rng: np.random.Generator, fat_mm: float) -> Field:
    """Paint skin to peritoneum, spine, ribs and great vessels; returns the signed distance to the abdominal cavity."""
    space = anatomy.space
    skin_zyx_mm = cylinder(space, (0, 0), (164, 116), 2.4)
    anatomy.paint(Tissue.FAT, skin_zyx_mm)
    muscle_zyx_mm = skin_zyx_mm - np.float32(fat_mm)
    anatomy.paint(Tissue.MUSCLE, muscle_zyx_mm)
    cavity_zyx_mm = np.minimum(muscle_zyx_mm - np.float32(14), 74 - space.y)
    anatomy.paint(Tissue.FAT, cavity_zyx_mm)
    phase, pitch = rng.uniform(0, 1), rng.uniform(24, 30)
    along = (space.z + 0.35 * space.y) / pitch + phase
    rib_zyx_mm = 0.2 * pitch - np.abs(along - np.round(along)) * pitch
    shell_zyx_mm = 5 - np.abs(muscle_zyx_mm - 7)
    in_cage_zyx_mm = np.minimum(space.z + 40, 100 - space.y)
    anatomy.paint(Tissue.BONE, np.minimum(np.minimum(rib_zyx_mm, shell_zyx_mm), in_cage_zyx_mm))
    anatomy.paint(Tissue.MUSCLE, np.minimum(26 - np.abs(np.abs(space.x) - 42), cylinder(space, (0, 88), (72, 22))))
    spine_zyx_mm = cylinder(space, (0, 72), (23, 19))
    disc_zyx_mm = np.abs(space.z / 32 - np.round(space.z / 32)) * 32 - 4
    anatomy.paint(Tissue.BONE, spine_zyx_mm)
    anatomy.paint(Tissue.MARROW, np.minimum(spine_zyx_mm - 3, disc_zyx_mm))
    anatomy.paint(Tissue.MUSCLE, cylinder(space, (0, 97), (8, 8)))
    anatomy.paint(Tissue.ARTERY, cylinder(space, (13, 46), (10, 10)))
    anatomy.paint(Tissue.VESSEL, cylinder(space, (-19, 42), (12, 10)))
    return np.asarray(cavity_zyx_mm, np.float32)


def _draw_bowel(anatomy: Anatomy, rng: np.random.Generator, cavity_zyx_mm: Field) -> None:
    """Paint the stomach beside the left lobe and bowel loops below the liver.

    Their contents look like tumours; after oral contrast the stomach is distended, and its contents and those of most
    loops are bright.
    """
    space = anatomy.space
    filled = 1.25 if _has_oral_contrast(anatomy) else 1.0
    stomach_zyx_mm = ellipsoid(space, (62, -38, 28), (46 * filled, 40 * filled, 58 * filled))
    stomach_zyx_mm = np.minimum(stomach_zyx_mm, cavity_zyx_mm)
    anatomy.paint(Tissue.WALL, stomach_zyx_mm)
    anatomy.paint(Tissue.CONTENT, stomach_zyx_mm - 6, intensity=_content_intensity(anatomy, rng, 1.0))
    if rng.random() < 0.6:
        anatomy.paint(Tissue.AIR, np.minimum(stomach_zyx_mm - 6, -60 - space.y))
    for _ in range(rng.integers(8, 14)):
        middle = (float(rng.uniform(-95, 95)), float(rng.uniform(-75, 20)), float(rng.uniform(-125, -35)))
        radii = tuple(rng.uniform(14, 30, 3).tolist())
        box = space.box(middle, 45)
        loop_zyx_mm = np.minimum(ellipsoid(space.cropped(box), middle, radii), cavity_zyx_mm[box])
        anatomy.paint(Tissue.WALL, loop_zyx_mm, box)
        if rng.random() < 0.25:
            anatomy.paint(Tissue.AIR, loop_zyx_mm - 4, box)
        else:
            anatomy.paint(Tissue.CONTENT, loop_zyx_mm - 4, box, intensity=_content_intensity(anatomy, rng, 0.8))


def _has_oral_contrast(anatomy: Anatomy) -> bool:
    return anatomy.intensity_of(Tissue.CONTENT) != anatomy.intensity_of(Tissue.WALL)


def _content_intensity(anatomy: Anatomy, rng: np.random.Generator, contrast_share: float) -> float:
    """An intensity between fluid and wall, the range of tumours, or that of oral contrast where the patient drank it.

    `contrast_share` is the probability that contrast has reached this part.
    """
    share, reached = rng.uniform(0, 1), rng.random() < contrast_share
    if reached and _has_oral_contrast(anatomy):
        return float(anatomy.intensity_of(Tissue.CONTENT) * (0.85 + 0.3 * share))
    return float((1 - share) * anatomy.intensity_of(Tissue.FLUID) + share * anatomy.intensity_of(Tissue.WALL))


def _draw_liver(
    anatomy: Anatomy,
    rng: np.random.Generator,
    cavity_zyx_mm: Field,
    jittered: Callable[..., Point],
    scaled: Callable[..., Point],
) -> None:
    """Paint a liver of two lobes under the diaphragm, with portal and hepatic veins."""
    space = anatomy.space
    right_zyx_mm = ellipsoid(space, jittered((-72, -2, 22), 7), scaled((66, 82, 74)))
    left_zyx_mm = ellipsoid(space, jittered((2, -46, 44), 9), scaled((74, 36, 38), 0.2))
    fossa_zyx_mm = ellipsoid(space, jittered((-36, 22, -52), 8), (52, 46, 52))
    spine_zyx_mm = cylinder(space, (0, 62), (44, 44))
    liver_zyx_mm = smooth_union(right_zyx_mm, left_zyx_mm, 14)
    liver_zyx_mm = np.minimum(liver_zyx_mm, np.minimum(-fossa_zyx_mm, -spine_zyx_mm))
    liver_zyx_mm = np.asarray(
        np.minimum(liver_zyx_mm, cavity_zyx_mm - 1) + 3 * smooth_noise(rng, space.x.shape, 7), np.float32
    )
    anatomy.paint(Tissue.LIVER, liver_zyx_mm)
    anatomy.liver_zyx = keep_largest_component(anatomy.tissue_zyx == Tissue.LIVER)
    anatomy.tissue_zyx[(anatomy.tissue_zyx == Tissue.LIVER) & ~anatomy.liver_zyx] = Tissue.FAT
    anatomy.tumour_zyx = np.zeros_like(anatomy.liver_zyx)

    hilum, confluence = (-24.0, 8.0, 14.0), (-20.0, 36.0, 66.0)
    segments: list[tuple[Point, Point, float]] = []
    for root, ends in ((hilum, 6), (confluence, 4)):
        for _ in range(ends):
            end = (float(rng.uniform(-125, 20)), float(rng.uniform(-70, 50)), float(rng.uniform(-25, 75)))
            middle = tuple(((np.array(root) + end) / 2 + rng.uniform(-8, 8, 3)).tolist())
            radius = float(rng.uniform(3, 5.5))
            segments += [(root, middle, radius), (middle, end, radius * 0.6)]
    box = space.box((-50, -5, 25), 115)
    inside_zyx_mm = np.where(anatomy.liver_zyx[box], tubes(space.cropped(box), segments), np.float32(-1e3))
    anatomy.paint(Tissue.VESSEL, np.asarray(inside_zyx_mm, np.float32), box)


def _paint_ball(anatomy: Anatomy, tissue: Tissue, centre: Point, radius_mm: float) -> None:
    """Paint a ball, or nothing if it lies outside the grid."""
    box = anatomy.space.box(centre, radius_mm + anatomy.space.voxel_mm)
    if anatomy.intensity_zyx[box].size:
        anatomy.paint(tissue, ellipsoid(anatomy.space.cropped(box), centre, (radius_mm,) * 3), box)

"""Shapes of synthetic lesions: rough ellipsoids with lobes and satellites, as depths below their surface in mm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hepar.imaging.painting import draw_log_uniform, random_field
from hepar.training.canvas import Box

DIAMETER_MM = (6.0, 45.0)  # drawn on a logarithmic scale: small lesions are the more frequent, as in patients
ELONGATION = 0.25  # largest relative change of an axis
ROUGHNESS = (0.05, 0.22)  # relative deviation of the surface: from a smooth metastasis to a ragged border
INFILTRATION = 0.12  # added to the roughness of a lesion that infiltrates
FINGERS = 0.6  # of the roughness again, at twice the spatial frequency
MAX_LOBES = 4
LOBE_OFFSET, LOBE_RADIUS = (0.6, 0.95), (0.35, 0.6)  # relative to the radius
SEAM = 0.25  # of a lobe's radius: the width over which the seam between lobes is rounded
SATELLITE_SHARE = 0.2  # of lesions of `SATELLITE_RADIUS_MM`: smaller ones have none, larger ones fill the patch
SATELLITE_RADIUS_MM = (6.0, 15.0)
MAX_SATELLITES = 3
SATELLITE_DISTANCE, SATELLITE_SIZE = (1.5, 2.2), (0.2, 0.4)  # relative to the radius
REACH, SATELLITE_REACH = 1.9, 2.7  # relative to the radius: no surface lies beyond it


@dataclass(frozen=True)
class LesionShape:
    """Size and border of a lesion; the rest of its shape is drawn with its depth."""

    radius_mm: float
    roughness: float
    margin_mm: float  # over which the lesion fades into the liver
    lobes: int
    satellites: int

    @property
    def reach_mm(self) -> float:
        """Distance from the centre within which the whole lesion lies."""
        return self.radius_mm * (SATELLITE_REACH if self.satellites else REACH) + self.margin_mm


def draw_shape(
    rng: np.random.Generator, voxel_mm: float, max_diameter_mm: float, infiltrative_share: float
) -> LesionShape:
    """A random lesion of at most a diameter; its margin is wide if it infiltrates, and never narrower than a voxel."""
    radius_mm = min(draw_log_uniform(rng, DIAMETER_MM), max_diameter_mm) / 2
    infiltrative = rng.random() < infiltrative_share
    margin_mm = max(voxel_mm, rng.uniform(0.4, 0.9) * radius_mm if infiltrative else rng.uniform(1.5, 4.0))
    has_satellites = SATELLITE_RADIUS_MM[0] < radius_mm < SATELLITE_RADIUS_MM[1] and rng.random() < SATELLITE_SHARE
    return LesionShape(
        radius_mm,
        rng.uniform(*ROUGHNESS) + INFILTRATION * infiltrative,
        min(margin_mm, radius_mm),  # a wider margin would leave no core
        int(rng.integers(0, MAX_LOBES + 1)),
        int(rng.integers(1, MAX_SATELLITES + 1)) if has_satellites else 0,
    )


def lesion_depth_mm(shape: LesionShape, box: Box, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Depth of each voxel of the box below the surface of the lesion at its centre, float32 zyx; negative outside."""
    axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    axes = axes / rng.uniform(1 - ELONGATION, 1 + ELONGATION, 3)[:, None]
    depth_zyx_mm = shape.radius_mm - _distance_mm(box, np.zeros(3), axes)
    for _ in range(shape.lobes):
        depth_zyx_mm = _union(depth_zyx_mm, *_ball_depth_mm(shape, box, LOBE_OFFSET, LOBE_RADIUS, rng))
    for _ in range(shape.satellites):
        satellite_zyx_mm, _ = _ball_depth_mm(shape, box, SATELLITE_DISTANCE, SATELLITE_SIZE, rng)
        depth_zyx_mm = np.maximum(depth_zyx_mm, satellite_zyx_mm)
    nodes = 4 if not shape.satellites else 6
    field_zyx = random_field(rng, nodes, box.shape) + FINGERS * random_field(rng, 2 * nodes, box.shape)
    rough_mm = shape.roughness * min(shape.radius_mm, SATELLITE_RADIUS_MM[1])
    return np.asarray(depth_zyx_mm + rough_mm * np.clip(field_zyx, -2, 2), np.float32)


def _ball_depth_mm(
    shape: LesionShape, box: Box, offsets: tuple[float, float], sizes: tuple[float, float], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], float]:
    """Depth in a ball somewhere around the centre, and the width of its seam; bounds are relative to the radius."""
    direction = rng.standard_normal(3)
    centre_mm = shape.radius_mm * rng.uniform(*offsets) * direction / np.linalg.norm(direction)
    radius_mm = shape.radius_mm * rng.uniform(*sizes)
    return np.asarray(radius_mm - _distance_mm(box, centre_mm, np.eye(3)), np.float32), SEAM * radius_mm


def _distance_mm(
    box: Box, centre_zyx_mm: npt.NDArray[np.float64], axes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Distance of each voxel from a point of the box, float32 zyx in mm, measured along scaled axes (rows)."""
    z, y, x = (offset - np.float32(c) for offset, c in zip(box.offsets_zyx_mm, centre_zyx_mm, strict=True))
    rows = axes.astype(np.float32)
    return np.asarray(np.sqrt(sum((row[0] * z + row[1] * y + row[2] * x) ** 2 for row in rows)), np.float32)


def _union(
    a_zyx_mm: npt.NDArray[np.float32], b_zyx_mm: npt.NDArray[np.float32], seam_mm: float
) -> npt.NDArray[np.float32]:
    """Depth in the union of two shapes, with the crease between them filled over `seam_mm`."""
    overlap_zyx = np.clip(1 - np.abs(a_zyx_mm - b_zyx_mm) / seam_mm, 0, 1)
    return np.asarray(np.maximum(a_zyx_mm, b_zyx_mm) + 0.25 * seam_mm * overlap_zyx**2, np.float32)

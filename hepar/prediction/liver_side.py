"""On which side of the Cantlie plane a lesion lies: an estimate from the outline of the liver alone.

The plane between right and left liver runs through the vena cava and the fossa of the gallbladder, which no model here
segments. So it is placed by what is usual: upright, and turned to the patient's right towards the front, since the
gallbladder lies some 2 to 3 cm farther right than the vena cava and 8 cm in front of it. The right liver has 65 ± 7 %
of the volume (Abdalla et al., "Total and segmental liver volume variations", Surgery 2004). A side is only given where
all planes within two of these standard deviations, and within 20° of that turn, agree.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from hepar.imaging.masks import Mask
from hepar.imaging.volumes import Geometry

RIGHT_SHARES = (0.65, 0.51, 0.79)  # of the volume: the mean, then two standard deviations to either side
TURNS_DEGREES = (20.0, 0.0, 40.0)  # the usual one first
MAX_VOXELS = 100_000  # of the liver that are looked at: every n-th along each axis of a larger one
Vector = npt.NDArray[np.float64]


class Side(StrEnum):
    """Where a lesion lies; unclear if that depends on the choice of a plausible plane."""

    RIGHT = "right"
    LEFT = "left"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class UprightPlane:
    """The points p in LPS mm with `towards_left` · p = `offset_mm`."""

    towards_left: Vector
    offset_mm: float

    def distance_mm(self, point_lps_mm: tuple[float, float, float]) -> float:
        """The distance of a point, negative on the right of the plane."""
        return float(self.towards_left @ point_lps_mm) - self.offset_mm


@dataclass(frozen=True)
class LiverHalves:
    """Plausible planes between right and left liver, the usual one first."""

    planes: tuple[UprightPlane, ...]

    @classmethod
    def of(cls, liver_zyx: Mask, grid: Geometry) -> LiverHalves | None:
        """The planes of a liver; None if it is empty."""
        step = max(1, int(np.ceil((np.count_nonzero(liver_zyx) / MAX_VOXELS) ** (1 / 3))))
        index_n3 = np.argwhere(liver_zyx[::step, ::step, ::step]) * step
        if not len(index_n3):
            return None
        scaled = np.array(grid.direction).reshape(3, 3) * grid.spacing_zyx_mm[::-1]
        points_n3 = index_n3[:, ::-1] @ scaled.T + grid.origin_xyz_mm
        planes = []
        for turn, share in itertools.product(np.deg2rad(TURNS_DEGREES), RIGHT_SHARES):
            towards_left = np.array([np.cos(turn), -np.sin(turn), 0.0])
            planes.append(UprightPlane(towards_left, float(np.quantile(points_n3 @ towards_left, share))))
        return cls(tuple(planes))

    def distance_mm(self, point_lps_mm: tuple[float, float, float]) -> float:
        """The distance of a point from the usual plane, negative on the right."""
        return self.planes[0].distance_mm(point_lps_mm)

    def side(self, point_lps_mm: tuple[float, float, float]) -> Side:
        """The side of a point."""
        distances_mm = [plane.distance_mm(point_lps_mm) for plane in self.planes]
        return Side.LEFT if min(distances_mm) > 0 else Side.RIGHT if max(distances_mm) < 0 else Side.UNCLEAR

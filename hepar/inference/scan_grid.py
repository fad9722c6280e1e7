"""From the grid of a model's plan back to that of the scan.

Legend: r the two structures liver and tumour.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hepar.cases import STRUCTURES
from hepar.imaging.masks import Mask, bounding_box, enlarged
from hepar.imaging.parallel_grids import Box, box_on, resample_part, turned, turned_box, within
from hepar.imaging.volumes import Geometry
from hepar.inference.sliding_window import Probabilities

NEGLIGIBLE = 0.05  # a probability below which neither a liver nor a candidate of a lesion lies


def on_canonical_scan(predicted_rzyx: Probabilities, grid: Geometry, scan: Geometry) -> tuple[Probabilities, Box]:
    """Probabilities resampled to the grid of the canonical scan, in the box where they are not negligible."""
    inner = bounding_box(np.asarray((predicted_rzyx >= NEGLIGIBLE).any(axis=0))) or (slice(0, 1),) * 3
    part = within(enlarged(inner, grid.spacing_zyx_mm, 0.0), grid.size_zyx)
    box = box_on(part, grid, scan)
    from_grid, to_grid = grid.cropped(part), scan.cropped(box)
    probability_rzyx = np.empty((len(STRUCTURES), *to_grid.size_zyx), np.float32)
    for structure, probability_zyx in enumerate(predicted_rzyx):
        probability_rzyx[structure] = resample_part(probability_zyx[part], from_grid, to_grid)
    return probability_rzyx, box


@dataclass(frozen=True)
class ScannedOrientation:
    """Turns a box of the canonical scan to the orientation in which the scan came."""

    canonical_box: Box
    canonical: Geometry
    own: Geometry

    @property
    def box(self) -> Box:
        """The box in the scan."""
        return turned_box(self.canonical_box, self.canonical, self.own)

    def mask(self, part_zyx: Mask) -> Mask:
        """A mask of the box as one of the whole scan."""
        mask_zyx = np.zeros(self.own.size_zyx, bool)
        mask_zyx[self.box] = turned(part_zyx, self.canonical, self.own)
        return mask_zyx

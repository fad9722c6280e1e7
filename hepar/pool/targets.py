"""Training targets: for every voxel the target of liver and tumour, and the weight of that target.

The structures are nested: L is the whole liver including its tumours, T the tumours. In docs/mixed-labels.md `y` is the
target and `m`, 0 to 1, its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hepar.cases import LabelState
from hepar.imaging.masks import Mask, dilate, fill_holes
from hepar.params import UnknownTumour

FULL = 255  # weight 1 as stored


@dataclass(frozen=True)
class Targets:
    """Targets of one case, bool zyx, and their weights, uint8 zyx: 0 is unknown, 255 fully known."""

    liver_zyx: Mask
    tumour_zyx: Mask
    liver_weight_zyx: npt.NDArray[np.uint8]
    tumour_weight_zyx: npt.NDArray[np.uint8]

    @property
    def known_share(self) -> float:
        """Mean weight over all voxels and both structures, 0 to 1."""
        return float((self.liver_weight_zyx.mean() + self.tumour_weight_zyx.mean()) / (2 * FULL))


@dataclass(frozen=True)
class KnownLabels:
    """Label states and masks of one case, bool zyx on the plan's grid; a missing mask is None.

    `liver_zyx` is the manual or pseudo mask. `liver_weight`, 0 to 1, is how much a pseudo-liver is trusted, and
    `uncertain_zyx` marks its uncertain boundary.
    """

    liver_state: LabelState
    tumour_state: LabelState
    liver_zyx: Mask | None
    tumour_zyx: Mask | None
    liver_weight: float = 1.0
    uncertain_zyx: Mask | None = None

    @property
    def mask_weight(self) -> float:
        """How much the liver mask is trusted: fully if it is manual, not at all if it is missing."""
        if self.liver_zyx is None:
            return 0.0
        return 1.0 if self.liver_state == LabelState.MANUAL else self.liver_weight


def is_known_everywhere(tumour_state: LabelState, unknown_tumour: UnknownTumour) -> bool:
    """Whether every voxel has a tumour label: a manual or absent one, or an unknown one that the rule calls absent."""
    return tumour_state in (LabelState.MANUAL, LabelState.ABSENT) or unknown_tumour == "background"


def tumour_weight(tumour_state: LabelState, unknown_tumour: UnknownTumour, liver_weight: float) -> float:
    """The weight of the tumour label, 0 to 1; for an unknown tumour that of its absence outside the liver.

    `liver_weight` is that of the liver mask, 0 without one.
    """
    if is_known_everywhere(tumour_state, unknown_tumour):
        return 1.0
    return liver_weight if unknown_tumour == "masked" else 0.0


def make_targets(
    known: KnownLabels,
    shape_zyx: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float],
    unknown_tumour: UnknownTumour,
    margin_mm: float,
) -> Targets:
    """Returns targets and weights of a case by the table in docs/mixed-labels.md.

    Without a liver mask L is unknown everywhere. An unknown tumour is still known to be absent outside the liver
    dilated by `margin_mm`, with the weight of that liver (`masked`); an empty liver mask makes it absent everywhere.
    `ignored` leaves it unknown everywhere, and so does `left-out`, whose pool has such cases for validation only;
    `background` treats it as absent: the mistake that the others avoid.
    """
    tumour_zyx = np.zeros(shape_zyx, bool) if known.tumour_zyx is None else known.tumour_zyx
    if known.liver_zyx is None:
        liver_zyx = tumour_zyx.copy()
        liver_weight_zyx = np.zeros(shape_zyx, np.uint8)
    elif known.liver_state == LabelState.MANUAL:
        liver_zyx = known.liver_zyx | tumour_zyx
        liver_weight_zyx = np.full(shape_zyx, FULL, np.uint8)
    else:
        liver_zyx = fill_holes(known.liver_zyx | tumour_zyx)
        liver_weight_zyx = np.full(shape_zyx, round(known.liver_weight * FULL), np.uint8)
        if known.uncertain_zyx is not None:
            liver_weight_zyx[known.uncertain_zyx] = 0
        liver_weight_zyx[tumour_zyx] = FULL

    weight = round(tumour_weight(known.tumour_state, unknown_tumour, known.mask_weight) * FULL)
    tumour_weight_zyx = np.full(shape_zyx, weight, np.uint8)
    if weight and not is_known_everywhere(known.tumour_state, unknown_tumour):
        tumour_weight_zyx[dilate(liver_zyx, spacing_zyx_mm, margin_mm)] = 0
    return Targets(liver_zyx, tumour_zyx, liver_weight_zyx, tumour_weight_zyx)

"""Targets on a line of twelve voxels, 2 mm apart, small enough to check by hand."""

from __future__ import annotations

import numpy as np

from hepar.cases import LabelState
from hepar.pool.targets import KnownLabels, Targets, UnknownTumour, make_targets

LINE_ZYX = (1, 1, 12)
SPACING_ZYX_MM = (1.0, 1.0, 2.0)
LIVER_X, TUMOUR_X = slice(4, 8), slice(5, 6)


def line_targets(liver: LabelState, tumour: LabelState, weight: float = 1.0, rule: UnknownTumour = "masked") -> Targets:
    """The liver is voxels 4 to 7, its tumour voxel 5; in a pseudo-liver voxels 4 and 5 are uncertain."""
    liver_zyx, tumour_zyx, uncertain_zyx = (np.zeros(LINE_ZYX, bool) for _ in range(3))
    liver_zyx[..., LIVER_X] = True
    tumour_zyx[..., TUMOUR_X] = True
    uncertain_zyx[..., 4:6] = True
    known = KnownLabels(
        liver_state=liver,
        tumour_state=tumour,
        liver_zyx=None if liver == LabelState.UNKNOWN else liver_zyx,
        tumour_zyx=tumour_zyx if tumour == LabelState.MANUAL else None,
        liver_weight=weight,
        uncertain_zyx=uncertain_zyx if liver == LabelState.PSEUDO else None,
    )
    return make_targets(known, LINE_ZYX, SPACING_ZYX_MM, rule, margin_mm=5.0)

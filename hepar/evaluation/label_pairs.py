"""What every metric compares: the reference mask and the predicted mask of a structure.

A mask is a boolean array zyx, True inside the structure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hepar.imaging.grid_rules import size_text
from hepar.imaging.masks import Mask, bounding_box
from hepar.params import SpacingZYX


@dataclass(frozen=True)
class LabelPair:
    """One structure in one scan: two masks of the same shape. A `reference_zyx` of None is unknown, an empty one
    absent."""

    reference_zyx: Mask | None
    prediction_zyx: Mask


@dataclass(frozen=True)
class CaseIdentity:
    """A case, its patient, and the groups that it is reported in."""

    case_id: str
    patient_id: str
    modality: str
    sequence: str
    source: str


@dataclass(frozen=True)
class SegmentedCase:
    """A scan with reference and prediction. The liver includes its tumours.

    `distances_known` is False if the spacing is nominal, so that lengths and volumes mean nothing.
    """

    identity: CaseIdentity
    liver: LabelPair
    tumour: LabelPair
    spacing_zyx_mm: SpacingZYX
    distances_known: bool


def check_masks(reference_zyx: Mask, prediction_zyx: Mask) -> None:
    """Check that two masks can be compared voxel by voxel.

    Raises ValueError if one is not boolean or not three-dimensional, or if their shapes differ. Label maps are refused
    rather than cast, because `labels.astype(bool)` would silently merge liver and tumour.
    """
    for name, mask_zyx in (("reference", reference_zyx), ("prediction", prediction_zyx)):
        if mask_zyx.dtype != np.bool_:
            raise ValueError(f"{name} mask must be boolean but is {mask_zyx.dtype}")
        if mask_zyx.ndim != 3:
            raise ValueError(f"{name} mask must have the axes z, y, x but has the shape {mask_zyx.shape}")
    if reference_zyx.shape != prediction_zyx.shape:
        raise ValueError(
            f"reference mask is {size_text(reference_zyx.shape)} "
            f"but the prediction is {size_text(prediction_zyx.shape)}"
        )


def check_spacing(spacing_zyx_mm: SpacingZYX) -> None:
    """Raises ValueError unless the spacing is three finite positive lengths in mm."""
    lengths_mm = np.asarray(spacing_zyx_mm, dtype=np.float64)
    if lengths_mm.shape != (3,) or not np.isfinite(lengths_mm).all() or (lengths_mm <= 0).any():
        raise ValueError(f"spacing must be three positive lengths in mm (z, y, x) but is {spacing_zyx_mm}")


def joint_bounding_box(reference_zyx: Mask, prediction_zyx: Mask) -> tuple[slice, slice, slice] | None:
    """The smallest box that contains both masks, as slices for z, y and x; None if both are empty."""
    box = bounding_box(reference_zyx | prediction_zyx)
    return None if box is None else (box[0], box[1], box[2])

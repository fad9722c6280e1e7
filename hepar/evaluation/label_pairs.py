"""What every metric compares: the reference mask and the predicted mask of a structure.

A mask is a boolean array zyx, True inside the structure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from hepar.imaging.masks import Mask

SpacingMm: TypeAlias = tuple[float, float, float]


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
    spacing_zyx_mm: SpacingMm
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
            f"reference mask is {shape_text(reference_zyx.shape)} "
            f"but the prediction is {shape_text(prediction_zyx.shape)}"
        )


def check_spacing(spacing_zyx_mm: SpacingMm) -> None:
    """Raises ValueError unless the spacing is three finite positive lengths in mm."""
    lengths_mm = np.asarray(spacing_zyx_mm, dtype=np.float64)
    if lengths_mm.shape != (3,) or not np.isfinite(lengths_mm).all() or (lengths_mm <= 0).any():
        raise ValueError(f"spacing must be three positive lengths in mm (z, y, x) but is {spacing_zyx_mm}")


def joint_bounding_box(reference_zyx: Mask, prediction_zyx: Mask) -> tuple[slice, slice, slice] | None:
    """The smallest box that contains both masks, as slices for z, y and x; None if both are empty."""
    slices = []
    for axis in range(3):
        other_axes = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(reference_zyx.any(axis=other_axes) | prediction_zyx.any(axis=other_axes))
        if occupied.size == 0:
            return None
        slices.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return slices[0], slices[1], slices[2]


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for messages: `40x128x128`."""
    return "x".join(str(length) for length in shape)

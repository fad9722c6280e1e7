"""What every metric compares: the reference mask and the predicted mask of a structure.

A mask is a boolean array zyx, True inside the structure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hepar.imaging.grid_rules import size_text
from hepar.imaging.masks import Mask, bounding_box
from hepar.imaging.parallel_grids import whole_box
from hepar.params import SizeZYX, SpacingZYX


@dataclass(frozen=True)
class LabelPair:
    """One structure in one scan: two masks of the same shape. A `reference_zyx` of None is unknown, an empty one
    absent."""

    reference_zyx: Mask | None
    prediction_zyx: Mask

    @property
    def likely_zyx(self) -> Mask:
        """The best mask of where the structure is: the reference, or the prediction if that is unknown or empty."""
        if self.reference_zyx is not None and self.reference_zyx.any():
            return self.reference_zyx
        return self.prediction_zyx


@dataclass(frozen=True)
class CaseIdentity:
    """A case, its patient, and the groups that it is reported in."""

    case_id: str
    patient_id: str
    modality: str
    sequence: str
    source: str


@dataclass(frozen=True)
class TumourProbability:
    """The predicted probability that a voxel is tumour, float32 zyx, and where lesions were looked for.

    `inside_liver`: only in the predicted liver. Smaller lesions than `min_lesion_voxels` were dropped.
    """

    probability_zyx: npt.NDArray[np.float32]
    inside_liver: bool
    min_lesion_voxels: float


@dataclass(frozen=True)
class SegmentedCase:
    """A scan with reference and prediction. The liver includes its tumours.

    `distances_known` is False if the spacing is nominal, so that lengths and volumes mean nothing.
    `tumour_probability` is None if only masks are known. `cut_from_zyx` is the size of the scan if the case was cut out
    of it by `cut_case`.
    """

    identity: CaseIdentity
    liver: LabelPair
    tumour: LabelPair
    spacing_zyx_mm: SpacingZYX
    distances_known: bool
    tumour_probability: TumourProbability | None = None
    cut_from_zyx: SizeZYX | None = None

    @property
    def masks_zyx(self) -> tuple[Mask, ...]:
        """The known masks."""
        masks_zyx = (self.liver.reference_zyx, self.tumour.reference_zyx)
        known_zyx = tuple(mask_zyx for mask_zyx in masks_zyx if mask_zyx is not None)
        return (*known_zyx, self.liver.prediction_zyx, self.tumour.prediction_zyx)

    @property
    def size_zyx(self) -> SizeZYX:
        """The size of the whole scan."""
        z, y, x = self.cut_from_zyx or self.liver.prediction_zyx.shape
        return z, y, x


def case_box(case: SegmentedCase) -> tuple[slice, ...]:
    """The smallest box that holds liver and tumours of reference and prediction.

    It is the whole scan if there are none, or if lesions were looked for beyond the liver.
    """
    shape_zyx = case.liver.prediction_zyx.shape
    boxes = [box for mask_zyx in case.masks_zyx if (box := bounding_box(mask_zyx)) is not None]
    if not boxes or (case.tumour_probability is not None and not case.tumour_probability.inside_liver):
        return whole_box(shape_zyx)
    return tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in zip(*boxes, strict=True)
    )


def cut_case(case: SegmentedCase, box: tuple[slice, ...]) -> SegmentedCase:
    """A copy of the part of a case in a box that holds its `case_box`. It has the scores of the whole case."""

    def cut(pair: LabelPair) -> LabelPair:
        reference_zyx = None if pair.reference_zyx is None else pair.reference_zyx[box].copy()
        return LabelPair(reference_zyx, pair.prediction_zyx[box].copy())

    probability = case.tumour_probability
    if probability is not None:
        probability = replace(probability, probability_zyx=probability.probability_zyx[box].copy())
    return replace(
        case,
        liver=cut(case.liver),
        tumour=cut(case.tumour),
        tumour_probability=probability,
        cut_from_zyx=case.size_zyx,
    )


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

"""Synthetic lesions, painted into the known livers of training patches where the pool has few real ones.

After Hu et al., "Label-free liver tumor segmentation", CVPR 2023: a network that sees lesions of any size, place and
contrast in real livers needs far fewer real ones. The shapes and numbers here are our own; contrasts are measured
against the local spread of the liver (`Canvas.texture`), so that no lesion is fainter than healthy texture. In the
train patients of the real cohort tumours of 4 ml and more had contrasts of 1.9 to 5.3 spreads, 12 to 45 HU. Legend: r
structure (`LIVER`, `TUMOUR`), z y x space; image values are those of the preprocessed image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.imaging.intensities import CT_RANGE
from hepar.imaging.masks import Mask
from hepar.imaging.painting import partial_volume, random_field
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.training.canvas import Box, Canvas, Texture, canvas_around_tumours, canvas_of_liver, surface
from hepar.training.lesion_shapes import DIAMETER_MM, LesionShape, draw_shape, lesion_depth_mm
from hepar.training.sampling import Patch

MAX_LESIONS = 3  # in a patch
MIN_CONTRAST = 2.0  # to the liver, in local spreads: less is healthy texture
MAX_CONTRAST = 6.0
CONTRAST_BOUNDS = {  # in units of the preprocessed image; MIN_CONTRAST holds beyond them
    Modality.CT: (0.12, 0.55),  # 12 to 56 HU in a window 205 HU wide, 24 to 110 HU in one of 400 HU
    Modality.MR: (0.3, 1.8),  # a unit is one standard deviation of the body's intensities
}
MAX_BRIGHTER_CT = 0.35  # lesions enhance by less than vessels
MAX_DARKER = 0.6  # of the way from the liver to the darkest voxel of an MR patch, air: no lesion is a void
DARKER_SHARE = {Modality.CT: 0.95, Modality.MR: 0.5}  # of 48 in portal-venous CT all were; MR shows lesions either way
INFILTRATIVE_SHARE = 0.25
TEXTURE_SHARE = (0.05, 0.3)  # of the contrast: slow changes inside a lesion
TEXTURE_NODES = 5
RIM_SHARE = 0.3
RIM_MM = (1.5, 5.0)
RIM_CONTRAST = (0.3, 0.8)  # of the core's; MIN_CONTRAST holds for rims as well
RIM_OPPOSITE_SHARE = 0.5  # of rims: brighter than the liver around a darker core, or the reverse
NECROTIC_SHARE = 0.3  # of the lesions of at least `NECROTIC_RADIUS_MM`
NECROTIC_RADIUS_MM = 9.0
NECROTIC_WALL = (0.2, 0.5)  # of the radius
NECROTIC_CONTRAST = (1.5, 2.5)  # of the core's: fluid, darker in CT and T1, brighter in T2; at most water in CT
CALCIFIED_SHARE = 0.1  # of CT lesions
MAX_SPECKS, SPECK_RADIUS_MM = 5, (1.0, 3.0)
ISODENSE_SHARE = 0.1  # with a rim, or with a bulge of the capsule, so that there is something to see
ISODENSE_CONTRAST = 0.3  # of the contrast that it would have: below the spread of the liver
ISODENSE_RADIUS_VOXELS = 3.0  # a smaller lesion has no core inside its rim
EXOPHYTIC_SHARE = 0.2
EXOPHYTIC_DEPTH = (0.1, 0.6)  # of the centre below the capsule, relative to the radius
BULGE_RADIUS_MM = 8.0  # a smaller lesion makes no visible bulge
MIN_BULGE = 0.15  # of a lesion that bulges, beyond the capsule
MAX_DIAMETER_AROUND_TUMOUR_MM = 14.0  # fits between a tumour and `AROUND_TUMOUR_MM` from it
ROOM = 0.9  # of a lesion around a tumour that must lie in what is surely liver, and of a bulge where labels are known
TRIES = 4  # to find such a place


@dataclass(frozen=True)
class Appearance:
    """Intensities of a lesion relative to the liver; `rim` and `fluid` are None for a lesion without."""

    core: float
    texture: float
    rim: float | None
    rim_mm: float
    fluid: float | None
    wall_mm: float
    specks: int


def add_synthetic_lesions(patch: Patch, plan: PreprocessingPlan, rng: np.random.Generator) -> Patch:
    """A copy of the patch with one to three more lesions, in liver that is known and shows no tumour.

    Lesion voxels become tumour, and liver where a lesion bulges the capsule. Weights never change: in a liver whose
    tumours are known a lesion is a positive among negatives, elsewhere it has weight 0 and teaches the liver alone. In
    a patch whose liver is unknown, lesions lie around its known tumours. A patch without room is returned as it is.
    """
    canvas = canvas_of_liver(patch, plan) or canvas_around_tumours(patch, plan)
    if canvas is None:
        return patch
    for _ in range(int(rng.integers(1, MAX_LESIONS + 1))):
        _add_lesion(canvas, rng)
    return canvas.patch


@dataclass(frozen=True)
class Place:
    """Where a lesion lies in a patch: its depth and where it may be painted, both in a box, and whether it bulges."""

    box: Box
    depth_zyx_mm: npt.NDArray[np.float32]
    paintable_zyx: Mask
    bulges: bool


def _add_lesion(canvas: Canvas, rng: np.random.Generator) -> None:
    """Find a place for one lesion and paint it; around tumours there may be none."""
    max_diameter_mm = MAX_DIAMETER_AROUND_TUMOUR_MM if canvas.bounded else DIAMETER_MM[1]
    shape = draw_shape(rng, canvas.voxel_mm, max_diameter_mm, INFILTRATIVE_SHARE)
    place = None
    if not canvas.bounded and shape.radius_mm >= BULGE_RADIUS_MM and rng.random() < EXOPHYTIC_SHARE:
        place = _exophytic_place(canvas, shape, rng)
    place = place or _inner_place(canvas, shape, rng)
    if place is None:
        return
    texture = canvas.texture(place.box)
    looks = _draw_appearance(canvas, shape, texture, place.bulges, rng)
    share_zyx = partial_volume(place.depth_zyx_mm, shape.margin_mm) * place.paintable_zyx
    lesion_zyx = share_zyx > 0.5
    if not lesion_zyx.any():
        return
    canvas.blend(place.box, _intensities(canvas, place, texture, looks, rng), share_zyx)
    canvas.patch.target_rzyx[TUMOUR][place.box.slices][lesion_zyx] = 1
    if place.bulges:
        canvas.patch.target_rzyx[LIVER][place.box.slices][lesion_zyx] = 1


def _inner_place(canvas: Canvas, shape: LesionShape, rng: np.random.Generator) -> Place | None:
    """A place in the liver, where the capsule cuts the lesion off, or None if there is no room around a tumour."""
    for _ in range(TRIES if canvas.bounded else 1):
        box = canvas.box(canvas.draw_voxel(canvas.paintable_zyx, rng), shape.reach_mm)
        depth_zyx_mm, paintable_zyx = lesion_depth_mm(shape, box, rng), canvas.paintable_zyx[box.slices]
        if not canvas.bounded or _has_room(depth_zyx_mm, paintable_zyx):
            return Place(box, depth_zyx_mm, paintable_zyx, bulges=False)
    return None


def _exophytic_place(canvas: Canvas, shape: LesionShape, rng: np.random.Generator) -> Place | None:
    """A place at the capsule, so that the lesion bulges it, or None if too little is known around the liver.

    Beyond the capsule the liver must be known, and the tumour too if it is known at the centre, and only then: a bulge
    alone would be a positive without the rest of its lesion.
    """
    weight_rzyx, target_rzyx = canvas.patch.weight_rzyx, canvas.patch.target_rzyx
    outside_zyx = (target_rzyx[LIVER] == 0) & (weight_rzyx[LIVER] > 0) & (target_rzyx[TUMOUR] == 0)
    capsule_zyx = surface(canvas.paintable_zyx, outside_zyx)
    if not capsule_zyx.any():
        return None
    tumour_known_zyx = weight_rzyx[TUMOUR] > 0
    for _ in range(TRIES):
        centre_zyx = _below_capsule(canvas, canvas.draw_voxel(capsule_zyx, rng), shape.radius_mm, rng)
        box = canvas.box(centre_zyx, shape.reach_mm)
        beyond_zyx = outside_zyx[box.slices] & (tumour_known_zyx[box.slices] == tumour_known_zyx[tuple(centre_zyx)])
        depth_zyx_mm, paintable_zyx = lesion_depth_mm(shape, box, rng), canvas.paintable_zyx[box.slices] | beyond_zyx
        bulge_zyx = beyond_zyx & (depth_zyx_mm > 0)
        if _has_room(depth_zyx_mm, paintable_zyx) and bulge_zyx.sum() >= MIN_BULGE * np.sum(depth_zyx_mm > 0):
            return Place(box, depth_zyx_mm, paintable_zyx, bulges=True)
    return None


def _has_room(depth_zyx_mm: npt.NDArray[np.float32], paintable_zyx: Mask) -> bool:
    inside_zyx = depth_zyx_mm > 0
    return bool(inside_zyx.any() and paintable_zyx[inside_zyx].mean() >= ROOM)


def _below_capsule(
    canvas: Canvas, capsule_zyx: npt.NDArray[np.int64], radius_mm: float, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """A voxel some way from a voxel of the capsule towards the middle of the liver around it."""
    box = canvas.box(capsule_zyx, radius_mm)
    corner_zyx = np.array([part.start for part in box.slices])
    inwards_mm = (
        np.argwhere(canvas.paintable_zyx[box.slices]).mean(0) + corner_zyx - capsule_zyx
    ) * canvas.spacing_zyx_mm
    depth_mm = radius_mm * rng.uniform(*EXOPHYTIC_DEPTH)
    shift_zyx = depth_mm * inwards_mm / max(float(np.linalg.norm(inwards_mm)), 1e-3) / canvas.spacing_zyx_mm
    last_zyx = np.array(canvas.given_zyx.shape) - 1
    return np.asarray(np.clip(np.round(capsule_zyx + shift_zyx), 0, last_zyx), np.int64)


def _draw_appearance(
    canvas: Canvas, shape: LesionShape, texture: Texture, bulges: bool, rng: np.random.Generator
) -> Appearance:
    """Random intensities of a lesion, measured against the texture of the liver around it."""
    is_ct, contrast = canvas.patch.modality == Modality.CT, _draw_contrast(canvas, texture, rng)
    isodense = shape.radius_mm >= ISODENSE_RADIUS_VOXELS * canvas.voxel_mm and rng.random() < ISODENSE_SHARE
    rim_mm = min(rng.uniform(*RIM_MM), 0.4 * shape.radius_mm)
    rim = None
    if rng.random() < RIM_SHARE:
        rim = max(MIN_CONTRAST * texture.spread, abs(contrast) * rng.uniform(*RIM_CONTRAST)) * np.sign(contrast)
        rim *= -1 if rng.random() < RIM_OPPOSITE_SHARE else 1
    if isodense:
        rim, rim_mm = (rim if bulges else contrast), max(rim_mm, canvas.voxel_mm)
        contrast *= ISODENSE_CONTRAST
    fluid = (-abs(contrast) if is_ct else contrast) * rng.uniform(*NECROTIC_CONTRAST)
    necrotic = not isodense and shape.radius_mm >= NECROTIC_RADIUS_MM and rng.random() < NECROTIC_SHARE
    calcified = is_ct and rng.random() < CALCIFIED_SHARE
    return Appearance(
        core=contrast,
        texture=abs(contrast) * rng.uniform(*TEXTURE_SHARE),
        rim=rim,
        rim_mm=rim_mm,
        fluid=max(fluid, -_room_below(canvas, texture)) if necrotic else None,
        wall_mm=shape.radius_mm * rng.uniform(*NECROTIC_WALL),
        specks=int(rng.integers(1, MAX_SPECKS + 1)) if calcified else 0,
    )


def _draw_contrast(canvas: Canvas, texture: Texture, rng: np.random.Generator) -> float:
    """A signed contrast to the liver, on the other side where there is too little room on the side that was drawn."""
    modality, least = canvas.patch.modality, MIN_CONTRAST * texture.spread
    contrast = max(
        least, float(np.clip(rng.uniform(MIN_CONTRAST, MAX_CONTRAST) * texture.spread, *CONTRAST_BOUNDS[modality]))
    )
    below = _room_below(canvas, texture)
    above = min(CT_RANGE[1] - texture.level, MAX_BRIGHTER_CT) if modality == Modality.CT else np.inf
    darker = rng.random() < DARKER_SHARE[modality]
    if (below if darker else above) < least:
        darker = below > above
    contrast = min(contrast, max(below if darker else above, least))
    return -contrast if darker else contrast


def _room_below(canvas: Canvas, texture: Texture) -> float:
    """By how much a lesion may be darker than the liver: to water in CT, and not to a void in MR."""
    if canvas.patch.modality == Modality.CT:
        return texture.level - canvas.water_ct[0]
    return MAX_DARKER * (texture.level - float(canvas.given_zyx.min()))


def _intensities(
    canvas: Canvas, place: Place, texture: Texture, looks: Appearance, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The intensities of a lesion in its box, float32 zyx: core, rim, fluid and specks, with the noise of the liver."""
    depth_zyx_mm, voxel_mm = place.depth_zyx_mm, canvas.voxel_mm
    field_zyx = np.clip(random_field(rng, TEXTURE_NODES, place.box.shape), -1.5, 1.5)
    value_zyx = texture.level + looks.core + looks.texture * field_zyx
    if looks.fluid is not None:
        centre_zyx = partial_volume(depth_zyx_mm - looks.wall_mm + field_zyx * looks.wall_mm / 3, voxel_mm)
        value_zyx += centre_zyx * (texture.level + looks.fluid - value_zyx)
    if looks.rim is not None:
        value_zyx += partial_volume(looks.rim_mm - depth_zyx_mm, voxel_mm) * (texture.level + looks.rim - value_zyx)
    value_zyx += canvas.noise(place.box, texture)
    lesion_n3 = np.argwhere((depth_zyx_mm > 0) & place.paintable_zyx)
    for _ in range(looks.specks if len(lesion_n3) else 0):
        speck_zyx = lesion_n3[rng.integers(len(lesion_n3))]
        distance_zyx_mm = np.sqrt(
            sum(
                (offset - offset.ravel()[i]) ** 2 for offset, i in zip(place.box.offsets_zyx_mm, speck_zyx, strict=True)
            )
        )
        speck_share_zyx = partial_volume(rng.uniform(*SPECK_RADIUS_MM) - distance_zyx_mm, voxel_mm)
        value_zyx += speck_share_zyx * (CT_RANGE[1] - value_zyx)
    return np.asarray(value_zyx, np.float32)

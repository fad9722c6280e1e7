"""Harmless findings that look like tumours, painted into the known livers of training patches as negatives.

Each differs from a synthetic lesion as the real one does: a cyst is a sharp, even ball; a vessel is a tube; focal fat
is a wedge at the capsule that vessels cross; partial volume lies on the dome; a streak crosses the liver in its slices.
Legend: r structure, z y x space; image values are those of the preprocessed image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from hepar.cases import LIVER, Modality
from hepar.imaging.intensities import CT_RANGE
from hepar.imaging.painting import draw_log_uniform, partial_volume, random_field
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.training.canvas import Box, Canvas, canvas_of_liver, surface
from hepar.training.sampling import Patch

MAX_LOOK_ALIKES = 2  # in a patch
CYST_DIAMETER_MM = (5.0, 35.0)
CYST_ELONGATION = 0.08  # a simple cyst is a ball
CYST_CONTRAST = {Modality.CT: (0.4, 4.0), Modality.MR: (1.2, 6.0)}  # at least: in image units, and in local spreads
MAX_CYST_MR = 2.0  # times that
BRIGHT_CYST_SHARE = 0.75  # of MR patches: cysts are dark in T1 and hepatobiliary series
VESSEL_RADIUS_MM = (1.5, 5.0)
VESSEL_LENGTH_MM = (30.0, 90.0)
VESSEL_BEND = 0.35  # of its length, at most
VESSEL_CONTRAST = (2.0, 5.0)  # local spreads
BRIGHT_VESSEL_SHARE = {Modality.CT: 0.7, Modality.MR: 0.5}  # dark: without contrast medium, or flow voids
FAT_LENGTH_MM = (15.0, 40.0)  # from the capsule to the tip of the wedge
FAT_HALF_ANGLE_DEG = (15.0, 40.0)
FAT_FLATNESS = (0.7, 2.0)  # of the wedge's section
FAT_WAVES_MM, FAT_MARGIN_MM = 1.5, 5.0  # of its border: nearly straight, and not sharp
FAT_CONTRAST = {Modality.CT: (1.5, 3.0), Modality.MR: (1.0, 2.0)}  # local spreads
BRIGHT_FAT_SHARE = {Modality.CT: 0.15, Modality.MR: 0.5}  # focal sparing, or in phase
DOME_RADIUS_MM = (12.0, 35.0)
DOME_SHARE = ((0.3, 0.65), (0.05, 0.25))  # of what lies above, in the top slice of the liver and in the next
DOME_DROP = 4.0  # local spreads by which what lies above must be darker: lung, or fat
STREAK_CONTRAST = (1.5, 4.0)  # local spreads
STREAK_WIDTH_MM, STREAK_SLAB_MM = (4.0, 10.0), (4.0, 20.0)  # in the slice, and along z
STREAK_SOURCE_MM = (80.0, 250.0)  # from the middle: ribs, or the arms
MAX_STREAKS, STREAK_SPAN_MM = 5, 50.0


def add_look_alikes(patch: Patch, plan: PreprocessingPlan, rng: np.random.Generator) -> Patch:
    """A copy of the patch with one or two harmless findings in its known liver; targets and weights stay.

    They are negatives where the tumour is known. Cysts and vessels spare tumours, fat and streaks cross them. A patch
    without known liver is returned as it is.
    """
    canvas = canvas_of_liver(patch, plan)
    if canvas is None:
        return patch
    kinds = LOOK_ALIKES[patch.modality]
    for kind in rng.choice(len(kinds), int(rng.integers(1, MAX_LOOK_ALIKES + 1)), replace=False):
        kinds[kind](canvas, rng)
    return canvas.patch


def add_cyst(canvas: Canvas, rng: np.random.Generator) -> None:
    """A sharp, even ball of water."""
    radius_mm = draw_log_uniform(rng, CYST_DIAMETER_MM) / 2
    box = canvas.box(canvas.draw_voxel(canvas.paintable_zyx, rng), 1.2 * radius_mm + canvas.voxel_mm)
    texture, modality = canvas.texture(box), canvas.patch.modality
    axes = rng.uniform(1 - CYST_ELONGATION, 1 + CYST_ELONGATION, 3)
    z, y, x = (offset / np.float32(a) for offset, a in zip(box.offsets_zyx_mm, axes, strict=True))
    share_zyx = partial_volume(radius_mm - np.sqrt(z**2 + y**2 + x**2), canvas.voxel_mm)
    in_units, in_spreads = CYST_CONTRAST[modality]
    contrast = max(in_units, in_spreads * texture.spread)
    if modality == Modality.CT:
        water = max(CT_RANGE[0], min(rng.uniform(*canvas.water_ct), texture.level - contrast))
    else:
        sign = 1 if rng.random() < BRIGHT_CYST_SHARE else -1
        water = texture.level + sign * contrast * rng.uniform(1, MAX_CYST_MR)
    canvas.blend(box, np.float32(water) + canvas.noise(box, texture), share_zyx * canvas.paintable_zyx[box.slices])


def add_vessel(canvas: Canvas, rng: np.random.Generator) -> None:
    """A bent tube that tapers to both ends, mostly along one axis: along z it is cut across in every slice."""
    length_mm, radius_mm = rng.uniform(*VESSEL_LENGTH_MM), rng.uniform(*VESSEL_RADIUS_MM)
    box = canvas.box(canvas.draw_voxel(canvas.paintable_zyx, rng), 0.5 * length_mm + radius_mm)
    along = int(rng.integers(3))
    t = box.offsets_zyx_mm[along] / (0.5 * length_mm)
    distance2_zyx_mm2 = np.zeros((1, 1, 1), np.float32)
    slope2 = np.ones((1, 1, 1), np.float32)
    for axis in {0, 1, 2} - {along}:
        bend_mm, tilt_mm = rng.uniform(-1, 1, 2) * VESSEL_BEND * length_mm
        middle_mm = bend_mm * (t**2 - 0.3) + tilt_mm * t
        slope2 = slope2 + ((2 * bend_mm * t + tilt_mm) / (0.5 * length_mm)) ** 2
        distance2_zyx_mm2 = distance2_zyx_mm2 + (box.offsets_zyx_mm[axis] - middle_mm) ** 2
    taper = np.sqrt(np.clip(1 - t**2, 0, 1))
    depth_zyx_mm = radius_mm * taper - np.sqrt(distance2_zyx_mm2 / slope2)
    texture, modality = canvas.texture(box), canvas.patch.modality
    sign = 1 if rng.random() < BRIGHT_VESSEL_SHARE[modality] else -1
    blood = texture.level + sign * rng.uniform(*VESSEL_CONTRAST) * texture.spread
    share_zyx = partial_volume(depth_zyx_mm, canvas.voxel_mm) * canvas.paintable_zyx[box.slices]
    canvas.blend(box, np.float32(blood) + canvas.noise(box, texture), share_zyx)


def add_focal_fat(canvas: Canvas, rng: np.random.Generator) -> None:
    """A wedge from the capsule inwards with straight sides. It adds to the liver, so vessels run through it."""
    capsule_zyx = surface(canvas.paintable_zyx, canvas.patch.target_rzyx[LIVER] == 0)
    if not capsule_zyx.any():
        return
    length_mm, angle = rng.uniform(*FAT_LENGTH_MM), np.deg2rad(rng.uniform(*FAT_HALF_ANGLE_DEG))
    box = canvas.box(canvas.draw_voxel(capsule_zyx, rng), length_mm)
    liver_n3 = np.argwhere(canvas.paintable_zyx[box.slices])
    offsets = box.offsets_zyx_mm
    inwards = np.array([offset.ravel()[liver_n3[:, axis]].mean() for axis, offset in enumerate(offsets)])
    inwards /= max(float(np.linalg.norm(inwards)), 1e-3)
    across = np.cross(inwards, rng.standard_normal(3))
    across /= max(float(np.linalg.norm(across)), 1e-3)
    up = np.cross(inwards, across) * rng.uniform(*FAT_FLATNESS)
    from_axis_zyx_mm = np.sqrt(_along(box, across) ** 2 + _along(box, up) ** 2)
    depth_zyx_mm = (length_mm - _along(box, inwards)) * np.sin(angle) - from_axis_zyx_mm * np.cos(angle)
    depth_zyx_mm += FAT_WAVES_MM * random_field(rng, 5, box.shape)
    texture, modality = canvas.texture(box), canvas.patch.modality
    sign = 1 if rng.random() < BRIGHT_FAT_SHARE[modality] else -1
    share_zyx = partial_volume(depth_zyx_mm, FAT_MARGIN_MM) * canvas.whole_liver_zyx[box.slices]
    _add(canvas, box, sign * rng.uniform(*FAT_CONTRAST[modality]) * texture.spread * share_zyx)


def add_dome(canvas: Canvas, rng: np.random.Generator) -> None:
    """The top slices of the liver mixed with the darker tissue above them, as in a thick slice through the dome.

    Volumes are canonical: z rises to the head. Nothing is done if nothing darker lies above the liver.
    """
    liver_zyx, given_zyx = canvas.paintable_zyx, canvas.given_zyx
    is_top_zyx = np.zeros_like(liver_zyx)
    is_top_zyx[:-1] = liver_zyx[:-1] & (canvas.patch.target_rzyx[LIVER][1:] == 0)
    tops_n3 = np.argwhere(is_top_zyx)
    if not len(tops_n3):
        return
    middle_zyx, radius_mm = tops_n3[rng.integers(len(tops_n3))], rng.uniform(*DOME_RADIUS_MM)
    texture = canvas.texture(canvas.box(middle_zyx, radius_mm))
    distance_n_mm = np.linalg.norm((tops_n3 - middle_zyx) * canvas.spacing_zyx_mm, axis=1)
    z, y, x = tops_n3.T
    over_n = given_zyx[z + 1, y, x]
    fade_n = np.clip(1.2 - distance_n_mm / radius_mm, 0, 1) * (over_n < texture.level - DOME_DROP * texture.spread)
    for below, bounds in enumerate(DOME_SHARE):
        place = (np.maximum(z - below, 0), y, x)
        share_n = fade_n * rng.uniform(*bounds) * liver_zyx[place]
        image_n = canvas.patch.image_zyx[place]
        canvas.patch.image_zyx[place] = image_n + share_n * (over_n - image_n)


def add_streaks(canvas: Canvas, rng: np.random.Generator) -> None:
    """Dark bands that fan out from a point within some slices: beam hardening by ribs, arms or metal."""
    box = canvas.box(canvas.draw_voxel(canvas.paintable_zyx, rng), max(canvas.spacing_zyx_mm * canvas.given_zyx.shape))
    texture, (z, y, x) = canvas.texture(box), box.offsets_zyx_mm
    distance_mm, angle = rng.uniform(*STREAK_SOURCE_MM), rng.uniform(0, 2 * np.pi)
    away_yx_mm = np.cos(angle) * y + np.sin(angle) * x + distance_mm
    across_yx_mm = (np.cos(angle) * x - np.sin(angle) * y) / np.maximum(away_yx_mm, 1) * distance_mm
    bands_yx = np.zeros_like(across_yx_mm)
    for _ in range(int(rng.integers(1, MAX_STREAKS + 1))):
        from_band_yx_mm = across_yx_mm - rng.uniform(-STREAK_SPAN_MM, STREAK_SPAN_MM)
        band_yx = rng.uniform(0.4, 1) * np.exp(-((2 * from_band_yx_mm / rng.uniform(*STREAK_WIDTH_MM)) ** 2))
        bands_yx = np.maximum(bands_yx, band_yx * (away_yx_mm > 1))
    slab_zyx = np.exp(-((z / rng.uniform(*STREAK_SLAB_MM)) ** 2)) * bands_yx * canvas.whole_liver_zyx[box.slices]
    _add(canvas, box, -rng.uniform(*STREAK_CONTRAST) * texture.spread * slab_zyx)


def _along(box: Box, direction_zyx: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """How far each voxel lies from the middle of the box in a direction, float32 zyx in mm."""
    z, y, x = (offset * np.float32(d) for offset, d in zip(box.offsets_zyx_mm, direction_zyx, strict=True))
    return np.asarray(z + y + x, np.float32)


def _add(canvas: Canvas, box: Box, change_zyx: npt.NDArray[np.floating]) -> None:
    """Add to the image in a box; CT stays within its window."""
    image_zyx = canvas.patch.image_zyx[box.slices]
    image_zyx += change_zyx.astype(np.float32)
    if canvas.patch.modality == Modality.CT:
        np.clip(image_zyx, *CT_RANGE, out=image_zyx)


LookAlike = Callable[[Canvas, np.random.Generator], None]
LOOK_ALIKES: dict[Modality, tuple[LookAlike, ...]] = {
    Modality.CT: (add_cyst, add_vessel, add_focal_fat, add_dome, add_streaks),
    Modality.MR: (add_cyst, add_vessel, add_focal_fat, add_dome),
}

"""Acquisition: tissue intensities by CT phase or MR sequence, blur, noise and artefacts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from hepar.phantoms.anatomy import Tissue
from hepar.phantoms.shapes import Field, smooth_noise

# typical HU by phase: liver, spleen, vein, artery, kidney, muscle
CT_PHASES = {
    "non-contrast": (58, 48, 42, 42, 34, 54),
    "arterial": (70, 112, 85, 280, 165, 60),
    "portal-venous": (108, 118, 165, 160, 185, 64),
    "delayed": (90, 94, 118, 118, 150, 62),
}
CT_FIXED = {
    Tissue.AIR: -1000,
    Tissue.FAT: -100,
    Tissue.BONE: 420,
    Tissue.MARROW: 170,
    Tissue.LUNG: -840,
    Tissue.WALL: 70,
    Tissue.FLUID: 8,
}
# relative to a liver of 100, fat suppressed as usual in liver MR: liver, spleen, vein, artery, kidney, muscle, fat,
# bone, marrow, lung, wall, fluid; air is 0
MR_SEQUENCES = {
    "T1": (100, 66, 60, 70, 72, 68, 30, 25, 45, 8, 72, 28),
    "T2": (100, 190, 40, 35, 210, 55, 38, 25, 60, 10, 120, 330),
    "hepatobiliary": (100, 52, 48, 52, 88, 46, 28, 12, 40, 5, 72, 26),
}
_VARIABLE = (Tissue.LIVER, Tissue.SPLEEN, Tissue.VESSEL, Tissue.ARTERY, Tissue.KIDNEY, Tissue.MUSCLE)
_MR_ORDER = (*_VARIABLE, Tissue.FAT, Tissue.BONE, Tissue.MARROW, Tissue.LUNG, Tissue.WALL, Tissue.FLUID)
# share of tumours that are darker than the liver; the others are brighter
DARK_SHARE = {
    "non-contrast": 0.95,
    "arterial": 0.4,
    "portal-venous": 0.9,
    "delayed": 0.9,
    "T1": 0.9,
    "T2": 0.1,
    "hepatobiliary": 0.95,
}
RIM_SHARE = 0.35
FATTY_SHARE = 0.2  # of CT patients
FATTY_LIVER = (0.05, 0.6)  # attenuation relative to a lean liver: a few HU in severe steatosis
SOLID_HU = (14, 26)  # tumours are denser than water
MIN_CONTRAST_HU = 25
ORAL_CONTRAST_SHARE = 0.25  # of MR patients, who drank contrast or juice
ORAL_CONTRAST = (2.5, 5.0)  # relative to the liver
# share of MR patients whose veins are brighter than the liver: contrast in T1, slow flow in T2
BRIGHT_VEINS_SHARE = {"T1": 0.3, "T2": 0.4, "hepatobiliary": 0.0}
BRIGHT_VEINS = (1.3, 2.0)  # relative to the liver


def draw_intensities(modality: str, sequence: str, rng: np.random.Generator) -> dict[Tissue, float]:
    """Draw the intensity of each tissue for one patient, around the typical values of the phase or sequence.

    That of `CONTENT` is the intensity of oral contrast; it equals that of `WALL` where the patient drank none.
    """
    values = _draw_ct(sequence, rng) if modality == "CT" else _draw_mr(sequence, rng)
    values.setdefault(Tissue.CONTENT, values[Tissue.WALL])
    return values


def _draw_ct(phase: str, rng: np.random.Generator) -> dict[Tissue, float]:
    values = {tissue: float(v) + rng.normal(0, 5) for tissue, v in zip(_VARIABLE, CT_PHASES[phase], strict=True)}
    values.update({tissue: float(v) for tissue, v in CT_FIXED.items()})
    values[Tissue.LESION] = values[Tissue.SPLEEN] - rng.uniform(25, 55)
    values[Tissue.CYST] = float(rng.normal(5, 3))
    fatty = rng.random() < FATTY_SHARE
    if fatty:
        values[Tissue.LIVER] *= rng.uniform(*FATTY_LIVER)
    step_hu = rng.uniform(18, 32)
    values[Tissue.FOCAL_FAT] = values[Tissue.LIVER] + (step_hu if fatty else -step_hu)
    return values


def _draw_mr(sequence: str, rng: np.random.Generator) -> dict[Tissue, float]:
    row = MR_SEQUENCES[sequence]
    values = {tissue: v * float(rng.normal(1, 0.06)) for tissue, v in zip(_MR_ORDER, row, strict=True)}
    liver = values[Tissue.LIVER]
    values[Tissue.AIR] = 0.0
    values[Tissue.LESION] = values[Tissue.SPLEEN] * float(rng.uniform(0.5, 1.5))
    values[Tissue.CYST] = values[Tissue.FLUID] * float(rng.normal(1, 0.06))
    values[Tissue.FOCAL_FAT] = liver * float(rng.uniform(0.75, 0.88))
    if rng.random() < BRIGHT_VEINS_SHARE[sequence]:
        values[Tissue.VESSEL] = liver * float(rng.uniform(*BRIGHT_VEINS))
    if rng.random() < ORAL_CONTRAST_SHARE:
        values[Tissue.CONTENT] = liver * float(rng.uniform(*ORAL_CONTRAST))
    return values


def draw_tumour_intensities(
    values: Mapping[Tissue, float], modality: str, sequence: str, rng: np.random.Generator
) -> tuple[float, float | None]:
    """Draw the intensities of a tumour's core and, for some tumours, its rim.

    Dark cores look like bowel contents, bright ones like vessels or the spleen. In CT a core is denser than water and
    holds no fat: in a fatty liver it is as dense as in a lean one, but never isodense with the liver around it.
    """
    liver = values[Tissue.LIVER]
    dark = rng.random() < DARK_SHARE[sequence]
    if modality == "CT":
        lean = max(liver, CT_PHASES[sequence][0] - 15.0)
        core = max(lean - rng.uniform(30, 65), rng.uniform(*SOLID_HU)) if dark else lean + rng.uniform(30, 55)
        if abs(core - liver) < MIN_CONTRAST_HU:
            core = liver + rng.uniform(MIN_CONTRAST_HU, 50)
        rim = liver + rng.uniform(5, 30)
    else:
        core = liver * (rng.uniform(0.45, 0.7) if dark else rng.uniform(1.4, 2.0))
        rim = liver * rng.uniform(1.05, 1.3)
    return float(core), float(rim) if rng.random() < RIM_SHARE else None


def acquire_ct(intensity_zyx: Field, rng: np.random.Generator) -> Field:
    """A CT image in whole HU from tissue intensities, zyx: blurred, with correlated noise."""
    sigma_hu = rng.uniform(7, 12)
    noise_zyx = ndimage.gaussian_filter(rng.standard_normal(intensity_zyx.shape, dtype=np.float32), 0.6)
    noise_zyx *= sigma_hu / noise_zyx.std()
    blurred_zyx = ndimage.gaussian_filter(intensity_zyx, 0.35)
    return np.asarray(np.clip(np.rint(blurred_zyx + noise_zyx), -1024, 3071), np.float32)


def acquire_mr(intensity_zyx: Field, rng: np.random.Generator) -> Field:
    """An MR image from tissue intensities, zyx: with coil bias, Rician noise and an arbitrary scale per scan."""
    depth, height, width = intensity_zyx.shape
    bias_zyx = np.exp(0.08 * smooth_noise(rng, (depth, height, width), 4))
    signal_zyx = ndimage.gaussian_filter(intensity_zyx, 0.35) * bias_zyx
    sigma = rng.uniform(4, 7)
    real_zyx = signal_zyx + sigma * rng.standard_normal(intensity_zyx.shape, dtype=np.float32)
    imaginary_zyx = sigma * rng.standard_normal(intensity_zyx.shape, dtype=np.float32)
    return np.asarray(np.hypot(real_zyx, imaginary_zyx) * np.exp(rng.uniform(np.log(0.5), np.log(12))), np.float32)

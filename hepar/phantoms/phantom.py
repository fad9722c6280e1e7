"""A phantom: a scan and its ground truth, made from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hepar.params import SizeZYX, SpacingZYX
from hepar.phantoms.acquisition import (
    CT_PHASES,
    MR_SEQUENCES,
    acquire_ct,
    acquire_mr,
    draw_intensities,
    draw_tumour_intensities,
)
from hepar.phantoms.anatomy import Anatomy, Tissue, draw_organs, make_space
from hepar.phantoms.liver_lesions import Parenchyma, draw_look_alikes, draw_tumours


@dataclass(frozen=True)
class Phantom:
    """A scan and its ground truth, arrays zyx in LPS; CT in whole HU, MR in arbitrary units.

    `liver_zyx` includes the tumour. `tissue_zyx` holds the main tissue of each voxel, an `anatomy.Tissue`.
    """

    image_zyx: npt.NDArray[np.float32]
    liver_zyx: npt.NDArray[np.bool_]
    tumour_zyx: npt.NDArray[np.bool_]
    tissue_zyx: npt.NDArray[np.uint8]
    spacing_zyx_mm: SpacingZYX
    modality: str
    sequence: str


def make_phantom(
    seed: int,
    modality: str,
    sequence: str,
    size_zyx: SizeZYX = (64, 96, 96),
    spacing_zyx_mm: SpacingZYX = (4.0, 3.6, 3.6),
    tumours: int | None = None,
) -> Phantom:
    """Make a phantom; the same arguments give the same voxels.

    `tumours` is their number, by default one to five at random; 0 makes a healthy patient, with an empty tumour mask.
    A patient with or without tumours may have harmless lesions, a fatty liver or bright bowel contents.
    Raises ValueError for an unknown modality or sequence.
    """
    sequences: Mapping[str, Mapping[str, tuple[int, ...]]] = {"CT": CT_PHASES, "MR": MR_SEQUENCES}
    known = sequences.get(modality)
    if known is None or sequence not in known:
        raise ValueError(f"phantom {modality} {sequence}: must be CT {tuple(CT_PHASES)} or MR {tuple(MR_SEQUENCES)}")
    rng = np.random.default_rng([seed, 17])
    intensities = draw_intensities(modality, sequence, rng)
    space = make_space(rng, size_zyx, spacing_zyx_mm)
    anatomy = Anatomy(
        space=space,
        intensity_of=lambda tissue: intensities[tissue],
        intensity_zyx=np.full(size_zyx, intensities[Tissue.AIR], np.float32),
        tissue_zyx=np.zeros(size_zyx, np.uint8),
    )
    draw_organs(anatomy, rng)
    parenchyma = Parenchyma.of(anatomy.liver_zyx, spacing_zyx_mm)
    draw_look_alikes(anatomy, rng, parenchyma)
    count = int(rng.integers(1, 6)) if tumours is None else tumours
    if count:
        draw_tumours(
            anatomy,
            rng,
            count,
            parenchyma,
            lambda r: draw_tumour_intensities(intensities, modality, sequence, r),
        )
    image_zyx = acquire_ct(anatomy.intensity_zyx, rng) if modality == "CT" else acquire_mr(anatomy.intensity_zyx, rng)
    return Phantom(
        image_zyx=image_zyx,
        liver_zyx=anatomy.liver_zyx,
        tumour_zyx=anatomy.tumour_zyx,
        tissue_zyx=anatomy.tissue_zyx,
        spacing_zyx_mm=spacing_zyx_mm,
        modality=modality,
        sequence=sequence,
    )

"""From a seed to a scan: the patient's anatomy, seen by CT or MR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hepar.phantoms.acquisition import CT_PHASES, MR_SEQUENCES, acquire_ct, acquire_mr, intensities, tumour_values
from hepar.phantoms.anatomy import Anatomy, SizeZYX, SpacingZYX, Tissue, draw_organs, draw_tumours, make_space


@dataclass(frozen=True)
class Phantom:
    """A scan and its truth, arrays zyx in LPS. CT in whole HU, MR in arbitrary units.

    `liver_zyx` includes the tumour; `label_zyx` names each voxel's tissue by `anatomy.Tissue`.
    """

    image_zyx: npt.NDArray[np.float32]
    liver_zyx: npt.NDArray[np.bool_]
    tumour_zyx: npt.NDArray[np.bool_]
    label_zyx: npt.NDArray[np.uint8]
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
    """Make a scan; the same arguments give the same voxels. `tumours` None draws one to five.

    Raises ValueError for a modality or sequence that there is not.
    """
    sequences: Mapping[str, Mapping[str, tuple[int, ...]]] = {"CT": CT_PHASES, "MR": MR_SEQUENCES}
    known = sequences.get(modality)
    if known is None or sequence not in known:
        raise ValueError(f"phantom {modality} {sequence}: there are CT {tuple(CT_PHASES)} and MR {tuple(MR_SEQUENCES)}")
    rng = np.random.default_rng([seed, 17])
    values = intensities(known[sequence], modality, rng)
    space = make_space(rng, size_zyx, spacing_zyx_mm)
    anatomy = Anatomy(
        space=space,
        intensity=lambda tissue: values[tissue],
        values=np.full(size_zyx, values[Tissue.AIR], np.float32),
        tissue=np.zeros(size_zyx, np.uint8),
    )
    draw_organs(anatomy, rng)
    count = int(rng.integers(1, 6)) if tumours is None else tumours
    if count:
        draw_tumours(anatomy, rng, count, spacing_zyx_mm, lambda r: tumour_values(values, modality, sequence, r))
    image_zyx = acquire_ct(anatomy.values, rng) if modality == "CT" else acquire_mr(anatomy.values, rng)
    return Phantom(image_zyx, anatomy.liver, anatomy.tumour, anatomy.tissue, spacing_zyx_mm, modality, sequence)

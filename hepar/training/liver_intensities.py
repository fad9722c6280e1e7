"""How bright the livers of a pool are, so that a scan with another liver can be told from those learned from."""

from __future__ import annotations

import numpy as np

from hepar.cases import Modality
from hepar.pool.table import Pool
from hepar.runtime.progress import current_stage

MIN_DEVIATION = 0.1  # of median liver intensities, in units of the preprocessed image: few cases may agree by chance


def liver_intensities(pool: Pool) -> dict[Modality, tuple[float, float]]:
    """By modality the mean and standard deviation, over cases, of the median preprocessed intensity of the liver.

    Counted are the cases whose liver is trusted, manual or pseudo, with their known tumours left out; not one whose
    mask is empty. The deviation is at least `MIN_DEVIATION`. A modality without such a case is missing.
    """
    entries = [entry for entry in pool.entries if entry.liver.weight > 0]
    medians: dict[Modality, list[float]] = {}
    current_stage().log(f"measures the brightness of {len(entries)} livers")
    for entry in entries:
        arrays = pool.arrays(entry).loaded()
        healthy_zyx = (arrays.liver_zyx > 0) & (arrays.tumour_zyx == 0)
        if healthy_zyx.any():
            median = float(np.median(np.asarray(arrays.image_zyx)[healthy_zyx].astype(np.float32)))
            medians.setdefault(entry.modality, []).append(median)
    return {
        modality: (float(np.mean(values)), max(float(np.std(values)), MIN_DEVIATION))
        for modality, values in sorted(medians.items())
    }

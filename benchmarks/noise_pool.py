"""Pools of noise with boxes as livers and tumours, 56×80×80 voxels per case, for the benchmarks beside this file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hepar.cases import LabelState, Modality, Split
from hepar.imaging.masks import lesion_diameters_mm
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.pool.arrays import PreprocessedArrays
from hepar.pool.table import ArraysRecord, LiverRecord, Pool, PoolEntry, Provenance, TumourRecord
from hepar.pool.targets import FULL, KnownLabels, make_targets

SIZE_ZYX, SPACING_ZYX_MM = (56, 80, 80), (4.0, 3.5, 3.5)
PLAN = PreprocessingPlan(spacing_zyx_mm=SPACING_ZYX_MM, window_hu=(-20.0, 180.0), mr_percentiles=(2.0, 98.0))
DISTINCT_CASES = 8


def noise_pool(folder: Path, cases: int) -> Pool:
    """A pool, half CT and half MR. Every eighth case shares its arrays, so that a thousand take seconds."""
    rng = np.random.default_rng(1)
    distinct = [_write_case(folder, number, rng) for number in range(min(cases, DISTINCT_CASES))]
    entries = [replace(distinct[n % len(distinct)], case_id=f"c{n}", patient_id=f"p{n}") for n in range(cases)]
    return Pool(folder, PLAN, tuple(entries))


def _write_case(folder: Path, number: int, rng: np.random.Generator) -> PoolEntry:
    liver_zyx, tumour_zyx = np.zeros(SIZE_ZYX, bool), np.zeros(SIZE_ZYX, bool)
    liver_zyx[14:44, 20:62, 8:52] = True
    for _ in range(3):
        z, y, x = rng.integers((16, 24, 12), (36, 52, 44))
        tumour_zyx[z : z + 4, y : y + 5, x : x + 5] = True
    image_zyx = (rng.normal(0, 0.3, SIZE_ZYX) + liver_zyx - 0.5 * tumour_zyx).astype(np.float32)
    known = KnownLabels(LabelState.MANUAL, LabelState.MANUAL, liver_zyx, tumour_zyx)
    targets = make_targets(known, SIZE_ZYX, SPACING_ZYX_MM, "masked", 5.0)
    PreprocessedArrays.encode(image_zyx, targets).save(folder / f"case-{number}")
    voxel_ml = float(np.prod(SPACING_ZYX_MM)) / 1000
    tumour = TumourRecord(
        LabelState.MANUAL,
        1.0,
        volume_ml=float(tumour_zyx.sum()) * voxel_ml,
        lesion_diameters_mm=lesion_diameters_mm(tumour_zyx, voxel_ml),
    )
    return PoolEntry(
        case_id=f"c{number}",
        patient_id=f"p{number}",
        split=Split.TRAIN,
        modality=Modality.CT if number % 2 else Modality.MR,
        liver=LiverRecord(LabelState.MANUAL, 1.0, volume_ml=float(liver_zyx.sum()) * voxel_ml),
        tumour=tumour,
        provenance=Provenance("synthetic", "", "", ""),
        arrays=ArraysRecord(f"case-{number}", key="", known_share=float((targets.liver_weight_zyx / FULL).mean())),
    )

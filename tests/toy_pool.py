"""A pool of toy cases, whose livers and tumours are balls with centres and radii that a test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hepar.cases import LabelState, Modality, Split
from hepar.imaging.masks import lesion_diameters_mm
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.pool.building import hashes_of
from hepar.pool.table import FULL, KnownLabels, Pool, PoolEntry, PreprocessedArrays, make_targets
from hepar.runtime.artifacts import sha256_json

SPACING = (2.0, 2.0, 2.0)
VOXEL_ML = 0.008
PLAN = PreprocessingPlan(spacing_zyx_mm=SPACING, window_hu=(-150.0, 250.0), mr_percentiles=(2.0, 98.0))
Ball = tuple[tuple[int, int, int], float]  # centre z y x and radius, in voxels


@dataclass(frozen=True)
class Toy:
    """One case. The image is `level` everywhere, 1 more in the liver and 1 less in a tumour, so a patch tells both."""

    case_id: str
    modality: Modality = Modality.CT
    source: str = "toy"
    split: Split = Split.TRAIN
    liver_state: LabelState = LabelState.MANUAL
    tumour_state: LabelState = LabelState.MANUAL
    shape: tuple[int, int, int] = (24, 24, 24)
    liver: Ball = ((12, 12, 12), 9)
    lesions: tuple[Ball, ...] = (((12, 12, 12), 4),)
    level: float = 0.0


def ball(shape: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> npt.NDArray[np.bool_]:
    """Voxels whose centre lies within `radius` of the centre of a voxel."""
    grid = np.indices(shape)
    squared = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
    return np.asarray(squared <= radius**2)


def toy_pool(folder: Path, toys: Sequence[Toy]) -> Pool:
    """Write the cases and give their pool."""
    return Pool(folder, PLAN, tuple(_write(folder, toy) for toy in toys))


def _write(folder: Path, toy: Toy) -> PoolEntry:
    liver = ball(toy.shape, *toy.liver)
    tumour = np.zeros(toy.shape, bool)
    for centre, radius in toy.lesions:
        tumour |= ball(toy.shape, centre, radius)
    known = KnownLabels(
        toy.liver_state,
        toy.tumour_state,
        None if toy.liver_state == LabelState.UNKNOWN else liver,
        tumour if toy.tumour_state == LabelState.MANUAL else None,
    )
    targets = make_targets(known, toy.shape, SPACING, "masked", margin_mm=5.0)
    image = (toy.level + 1.0 * liver - 2.0 * tumour).astype(np.float32)
    PreprocessedArrays.of(image, targets).save(folder / toy.case_id)
    return PoolEntry(
        case_id=toy.case_id,
        patient_id=toy.case_id,
        source=toy.source,
        modality=toy.modality,
        sequence="",
        split=toy.split,
        group=f"{toy.modality}/{toy.source}",
        liver_state=toy.liver_state,
        tumour_state=toy.tumour_state,
        liver_weight=0.0 if known.liver is None else 1.0,
        tumour_weight=0.0 if toy.tumour_state == LabelState.UNKNOWN else 1.0,
        liver_origin="",
        tumour_origin="",
        teacher="",
        gate="",
        reasons="",
        review="",
        liver_ml=float(targets.liver.sum() * VOXEL_ML) if known.liver is not None else 0.0,
        tumour_ml=float(targets.tumour.sum() * VOXEL_ML),
        known_share=float((targets.liver_weight.mean() + targets.tumour_weight.mean()) / (2 * FULL)),
        lesion_diameters_mm=lesion_diameters_mm(targets.tumour, VOXEL_ML),
        licence="",
        image_sha256="",
        file=toy.case_id,
        sha256=sha256_json(list(hashes_of(folder / toy.case_id).values())),
        key="",
    )

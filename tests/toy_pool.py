"""A pool of toy cases whose livers and tumours are balls with given centres and radii."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hepar.cases import LabelState, Modality, Split
from hepar.imaging.masks import Mask, lesion_diameters_mm
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.pool.arrays import PreprocessedArrays, hash_arrays, hash_files
from hepar.pool.table import (
    ArraysRecord,
    LiverRecord,
    Pool,
    PoolEntry,
    Provenance,
    TumourRecord,
    entry_from_row,
    entry_row,
)
from hepar.pool.targets import KnownLabels, make_targets
from hepar.runtime.artifacts import sha256_json, write_artifact

SPACING_ZYX_MM = (2.0, 2.0, 2.0)
VOXEL_ML = 0.008
PLAN = PreprocessingPlan(spacing_zyx_mm=SPACING_ZYX_MM, window_hu=(-150.0, 250.0), mr_percentiles=(2.0, 98.0))
Ball = tuple[tuple[int, int, int], float]  # centre zyx and radius, in voxels


@dataclass(frozen=True)
class Toy:
    """One case. The image is `level`, plus 1 in the liver and minus 1 in a tumour, so that a patch shows both."""

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


TOYS = [Toy("a"), Toy("b", liver=((12, 12, 12), 8)), Toy("c", tumour_state=LabelState.ABSENT, level=5.0)]


def ball(shape: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> Mask:
    """Voxels whose centre lies within `radius` of the centre of a voxel."""
    grid = np.indices(shape)
    squared = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
    return np.asarray(squared <= radius**2)


def toy_pool(folder: Path, toys: Sequence[Toy]) -> Pool:
    """Writes the arrays of the cases into a folder and returns their pool."""
    return Pool(folder, PLAN, tuple(_write(folder, toy) for toy in toys))


def _write(folder: Path, toy: Toy) -> PoolEntry:
    liver_zyx = ball(toy.shape, *toy.liver)
    tumour_zyx = np.zeros(toy.shape, bool)
    for centre, radius in toy.lesions:
        tumour_zyx |= ball(toy.shape, centre, radius)
    has_liver, has_tumour = toy.liver_state != LabelState.UNKNOWN, toy.tumour_state == LabelState.MANUAL
    known = KnownLabels(
        toy.liver_state,
        toy.tumour_state,
        liver_zyx if has_liver else None,
        tumour_zyx if has_tumour else None,
    )
    targets = make_targets(known, toy.shape, SPACING_ZYX_MM, "masked", margin_mm=5.0)
    image_zyx = (toy.level + 1.0 * liver_zyx - 2.0 * tumour_zyx).astype(np.float32)
    PreprocessedArrays.encode(image_zyx, targets).save(folder / toy.case_id)
    liver_ml, tumour_ml = (float(mask.sum() * VOXEL_ML) for mask in (targets.liver_zyx, targets.tumour_zyx))
    diameters_mm = lesion_diameters_mm(targets.tumour_zyx, VOXEL_ML)
    return PoolEntry(
        case_id=toy.case_id,
        patient_id=toy.case_id,
        split=toy.split,
        modality=toy.modality,
        liver=LiverRecord(toy.liver_state, float(has_liver), volume_ml=liver_ml if has_liver else 0.0),
        tumour=TumourRecord(
            toy.tumour_state,
            float(toy.tumour_state != LabelState.UNKNOWN),
            volume_ml=tumour_ml,
            lesion_diameters_mm=diameters_mm,
        ),
        provenance=Provenance(toy.source, sequence="", licence="", image_sha256=""),
        arrays=ArraysRecord(
            toy.case_id,
            key="",
            sha256=hash_arrays(hash_files(folder / toy.case_id)),
            known_share=targets.known_share,
        ),
    )


def with_columns(entry: PoolEntry, **columns: object) -> PoolEntry:
    """The entry with other values in some columns of the pool's table."""
    return entry_from_row(entry_row(entry) | columns)


def finished_pool(folder: Path, toys: list[Toy]) -> Path:
    """A finished pool of toy cases, in which each entry has the hash of its toy."""
    with write_artifact(folder, Pool.KIND, {}) as partial:
        pool = toy_pool(partial, toys)
        hashes = [sha256_json(repr(toy)) for toy in toys]
        entries = (with_columns(entry, sha256=own) for entry, own in zip(pool.entries, hashes, strict=True))
        Pool(partial, pool.plan, tuple(entries)).save()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

"""A scan in 3072 bytes, by which the same scan is found again after resampling, mirroring, or a change of values.

The body is cut out, brought to 12 x 16 x 16 block means, and its values are replaced by their ranks, so that spacing,
axes of another sign and intensity scales do not matter. Two perceptual hashes are compared by their correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from hepar.cases import Case, Modality
from hepar.imaging.masks import body_mask
from hepar.imaging.volumes import Array

FILE = "perceptual_hashes.npz"  # of a cohort
SIZE_ZYX = (12, 16, 16)
SAME = 0.955  # correlation; `benchmarks/duplicates.py` shows what copies and scans of different patients reach
PerceptualHash = npt.NDArray[np.int8]
FLIPS = tuple(product((1, -1), repeat=3))


def perceptual_hash(image_zyx: Array, modality: Modality) -> PerceptualHash:
    """The perceptual hash of a canonical volume, int8 of `SIZE_ZYX`."""
    inside = body_mask(image_zyx, modality)
    part = image_zyx[_bounds(inside)] if inside.any() else image_zyx
    means = _block_means(part.astype(np.float64), SIZE_ZYX)
    _, at, counts = np.unique(np.round(means, 6), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts + 1) / 2)[at].reshape(SIZE_ZYX)  # from 0; of equal values their mean
    return np.round(ranks / (ranks.size - 1) * 254 - 127).astype(np.int8)


def _bounds(inside: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box around the planes of which at least a tenth of the fullest one's voxels are inside."""
    box = []
    for axis in range(3):
        counts = inside.sum(axis=tuple(other for other in range(3) if other != axis))
        full = np.flatnonzero(counts >= 0.1 * counts.max())
        box.append(slice(int(full[0]), int(full[-1]) + 1))
    return tuple(box)


def _block_means(array: npt.NDArray[np.float64], size: Sequence[int]) -> npt.NDArray[np.float64]:
    """Means over equal boxes whose borders may cut voxels: integrate along each axis, then take differences."""
    for axis, wanted in enumerate(size):
        sums = np.concatenate([np.zeros_like(array.take([0], axis)), array.cumsum(axis)], axis)
        borders = np.linspace(0, array.shape[axis], wanted + 1)
        low = np.floor(borders).astype(int)
        high = np.minimum(low + 1, array.shape[axis])
        share = (borders - low).reshape([-1 if other == axis else 1 for other in range(3)])
        edges = sums.take(low, axis) * (1 - share) + sums.take(high, axis) * share
        array = np.diff(edges, axis=axis) / (array.shape[axis] / wanted)
    return array


@dataclass(frozen=True)
class Alike:
    """Another case and how alike it is."""

    case_id: str
    correlation: float


class Seen:
    """The scans met so far, to be asked for the same one."""

    def __init__(self) -> None:
        self._voxels: dict[str, list[str]] = {}
        self._cases: list[Case] = []
        self._found: list[PerceptualHash] = []
        self._units = np.empty((64, int(np.prod(SIZE_ZYX))), np.float32)

    def add(self, case: Case, found: PerceptualHash | None) -> None:
        """Note a case; one without a perceptual hash by its voxels alone."""
        self._voxels.setdefault(case.voxels_sha256, []).append(case.case_id)
        if found is None:
            return
        if len(self._cases) == len(self._units):
            self._units = np.concatenate([self._units, np.empty_like(self._units)])
        self._units[len(self._cases)] = _unit(found)
        self._cases.append(case)
        self._found.append(found)

    def same(self, case: Case) -> Sequence[str]:
        """The noted cases with the same voxels."""
        return self._voxels.get(case.voxels_sha256, ())

    def alike(self, case: Case, found: PerceptualHash) -> Alike | None:
        """The noted case of another patient that is most alike, if it is the same scan."""
        others = [i for i, other in enumerate(self._cases) if other.patient_id != case.patient_id]
        if not others:
            return None
        alike = _best(self._units[: len(self._cases)], found)[others]
        at = int(alike.argmax())
        return Alike(self._cases[others[at]].case_id, float(alike[at])) if alike[at] >= SAME else None

    def save(self, path: Path) -> None:
        """Write the perceptual hashes by case id."""
        order = sorted(range(len(self._cases)), key=lambda i: self._cases[i].case_id)
        rows = [self._found[i].ravel() for i in order]
        ids = np.array([self._cases[i].case_id for i in order], dtype=np.str_)
        np.savez(path, case_id=ids, perceptual_hash=np.stack(rows) if rows else np.empty((0, 0), np.int8))


def load_perceptual_hashes(path: Path) -> dict[str, PerceptualHash]:
    """PerceptualHashs by case id; none where the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {
                str(name): row.reshape(SIZE_ZYX)
                for name, row in zip(file["case_id"], file["perceptual_hash"], strict=True)
            }
    except (OSError, ValueError, KeyError, BadZipFile):
        return {}


def correlation(one: PerceptualHash, other: PerceptualHash) -> float:
    """How alike two scans are, 1 for the same, whichever axes of one are mirrored."""
    return float(_best(_unit(one)[None], other)[0])


def _best(units: npt.NDArray[np.float32], found: PerceptualHash) -> npt.NDArray[np.float32]:
    """The highest correlation of each row with the mirror images of a perceptual hash."""
    grid = _unit(found).reshape(SIZE_ZYX)
    flipped = np.stack([grid[tuple(slice(None, None, sign) for sign in signs)].ravel() for signs in FLIPS])
    return np.asarray((units @ flipped.T).max(axis=1))


def _unit(found: PerceptualHash) -> npt.NDArray[np.float32]:
    centred = found.astype(np.float32).ravel() - found.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), np.float32)

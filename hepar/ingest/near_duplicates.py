"""Finding scans that occur twice: the same voxels, or nearly the same scan under another patient's id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from hepar.cases import Case
from hepar.ingest.perceptual_hash import SIZE_ZYX, PerceptualHash, best_correlations, unit_vector
from hepar.runtime.whole_files import write_bytes

# `benchmarks/duplicates.py` shows what copies and scans of different patients reach
MIN_CORRELATION = 0.955


@dataclass(frozen=True)
class NearDuplicate:
    """A case that is nearly the same scan, and the correlation of the perceptual hashes."""

    case_id: str
    correlation: float


class ScanIndex:
    """The scans seen so far, by voxels and by perceptual hash."""

    def __init__(self) -> None:
        self._by_voxels: dict[str, list[str]] = {}
        self._cases: list[Case] = []
        self._hashes: list[PerceptualHash] = []
        self._units_nk = np.empty((64, int(np.prod(SIZE_ZYX))), np.float32)

    def add(self, case: Case, scan_hash: PerceptualHash | None) -> None:
        """Add a case; without a perceptual hash it is found by its voxels alone."""
        self._by_voxels.setdefault(case.voxels_sha256, []).append(case.case_id)
        if scan_hash is None:
            return
        if len(self._cases) == len(self._units_nk):
            self._units_nk = np.concatenate([self._units_nk, np.empty_like(self._units_nk)])
        self._units_nk[len(self._cases)] = unit_vector(scan_hash)
        self._cases.append(case)
        self._hashes.append(scan_hash)

    def same_voxels(self, case: Case) -> Sequence[str]:
        """Ids of the added cases with the same voxels."""
        return self._by_voxels.get(case.voxels_sha256, ())

    def near_duplicate(self, case: Case, scan_hash: PerceptualHash) -> NearDuplicate | None:
        """The added case of another patient that correlates best, or None below `MIN_CORRELATION`."""
        others = [i for i, other in enumerate(self._cases) if other.patient_id != case.patient_id]
        if not others:
            return None
        correlations = best_correlations(self._units_nk[: len(self._cases)], scan_hash)[others]
        best = int(correlations.argmax())
        if correlations[best] < MIN_CORRELATION:
            return None
        return NearDuplicate(self._cases[others[best]].case_id, float(correlations[best]))

    def save(self, path: Path) -> None:
        """Write the perceptual hashes, ordered by case id."""
        order = sorted(range(len(self._cases)), key=lambda i: self._cases[i].case_id)
        rows = [self._hashes[i].ravel() for i in order]
        ids = np.array([self._cases[i].case_id for i in order], dtype=np.str_)
        archive = BytesIO()
        np.savez(archive, case_id=ids, perceptual_hash=np.stack(rows) if rows else np.empty((0, 0), np.int8))
        write_bytes(path, archive.getvalue())


def load_perceptual_hashes(path: Path) -> dict[str, PerceptualHash]:
    """Perceptual hashes by case id; empty if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {
                str(case_id): row.reshape(SIZE_ZYX)
                for case_id, row in zip(file["case_id"], file["perceptual_hash"], strict=True)
            }
    except (OSError, ValueError, KeyError, BadZipFile):
        return {}

"""Training patches, sampled in balance over modalities, sources and lesion sizes.

Patches are numbered through the whole training; each is a function of the seed and its number alone, whatever the
number of processes and threads. Legend: r structure (`LIVER`, `TUMOUR`), z y x space, n voxels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import LabelState, Modality
from hepar.errors import DataError
from hepar.imaging.masks import (
    LESION_SIZES,
    Mask,
    bounding_box,
    equivalent_diameter_mm,
    label_components,
    lesion_size,
)
from hepar.params import SamplingParams, SizeZYX
from hepar.pool.arrays import PreprocessedArrays
from hepar.pool.table import Pool, PoolEntry
from hepar.pool.targets import FULL
from hepar.runtime.progress import current_stage

MIN_LESION_VOXELS = 8  # a smaller lesion is barely visible on the plan's grid: it is learned from, but not centred on
MAX_CENTRES = 4096  # candidate voxels kept per structure
MAX_REPEAT = 2.0  # how much more often than others a case of a small group may be drawn
TUMOUR_PATCH, TUMOUR_FREE_PATCH, LIVER_PATCH, ANY_PATCH, BESIDE_LIVER_PATCH = range(5)
Indices = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Patch:
    """One training patch, all float32; a target is 0 or 1, its weight 0 (unknown) to 1 (known)."""

    image_zyx: npt.NDArray[np.float32]
    target_rzyx: npt.NDArray[np.float32]
    weight_rzyx: npt.NDArray[np.float32]
    modality: Modality


@dataclass(frozen=True)
class Lesion:
    """Voxel indices of one lesion, candidates for the centre of a patch, and its size bin."""

    entry: int
    size_bin: str
    voxels_n3: Indices


@dataclass(frozen=True)
class Centres:
    """Candidate centres in the cases of one modality, by index of the entry, and the number of cases per group."""

    entries: tuple[int, ...]
    group_sizes: Mapping[str, int]
    with_liver: tuple[int, ...]
    tumour_free: tuple[int, ...]  # with a known liver that is known to have no tumour
    lesions: tuple[Lesion, ...]


class PatchSampler:
    """Cuts the patches of a batch."""

    def __init__(
        self,
        pool: Pool,
        entries: Sequence[PoolEntry],
        patch_zyx: SizeZYX,
        params: SamplingParams,
        seed: int,
        memory_bytes: int,
    ) -> None:
        """Index the livers and lesions of `entries`, and keep all arrays in memory if they fit into `memory_bytes`.

        Raises DataError if there is no entry.
        """
        if not entries:
            raise DataError("the pool has no training case")
        self.entries = tuple(entries)
        self.patch_zyx = patch_zyx
        self.params = params
        self.seed = seed
        self.plan = pool.plan
        self._pool = pool
        fits = sum(pool.arrays(entry).nbytes for entry in self.entries) <= memory_bytes
        self._in_memory: list[PreprocessedArrays] | None = [] if fits else None
        self._liver_voxels_n3: dict[int, Indices] = {}
        lesions = []
        with current_stage().counting(len(self.entries), "cases opened") as count:
            for index, entry in enumerate(self.entries):
                if self._in_memory is not None:
                    self._in_memory.append(pool.arrays(entry).loaded())
                lesions.append(self._index(index))
                count.advance()
        modalities = sorted({entry.modality for entry in self.entries})
        self.centres = [self._centres(modality, lesions) for modality in modalities]

    def arrays(self, index: int) -> PreprocessedArrays:
        """The arrays of an entry: in memory, or else on disk and opened by each call, because threads share no file."""
        return self._in_memory[index] if self._in_memory else self._pool.arrays(self.entries[index])

    def liver_count(self) -> int:
        """Number of cases with a known liver."""
        return len(self._liver_voxels_n3)

    def lesion_counts(self) -> dict[Modality, int]:
        """Number of lesions that a patch can be centred on, by modality."""
        return {self.entries[centres.entries[0]].modality: len(centres.lesions) for centres in self.centres}

    def _index(self, index: int) -> list[Lesion]:
        """Keep candidate voxels of a case's liver; returns its lesions."""
        entry, arrays = self.entries[index], self.arrays(index)
        rng = np.random.default_rng([self.seed, index])
        liver_n3 = _some_voxels(arrays.liver_zyx > 0, rng)
        if entry.liver.weight > 0 and len(liver_n3):
            self._liver_voxels_n3[index] = liver_n3
        if entry.tumour.state != LabelState.MANUAL:
            return []
        tumour_zyx = arrays.tumour_zyx > 0
        if (box := bounding_box(tumour_zyx)) is None:
            return []
        labels_zyx, sizes = label_components(tumour_zyx[box])
        corner_zyx = np.array([part.start for part in box], np.int32)
        voxel_mm3 = entry.tumour.volume_ml * 1000 / sizes.sum()
        lesions = []
        for number, (region, size) in enumerate(zip(ndimage.find_objects(labels_zyx), sizes, strict=True), start=1):
            if size < MIN_LESION_VOXELS:
                continue
            lesion_zyx = labels_zyx[region] == number
            start_zyx = corner_zyx + np.array([part.start for part in region], np.int32)
            voxels_n3 = _some_voxels(lesion_zyx, rng) + start_zyx
            lesions.append(Lesion(index, lesion_size(equivalent_diameter_mm(size * voxel_mm3)), voxels_n3))
        return lesions

    def _centres(self, modality: Modality, lesions: Sequence[Sequence[Lesion]]) -> Centres:
        members = tuple(index for index, entry in enumerate(self.entries) if entry.modality == modality)
        with_liver = tuple(index for index in members if index in self._liver_voxels_n3)
        return Centres(
            entries=members,
            group_sizes=Counter(self.entries[index].group for index in members),
            with_liver=with_liver,
            tumour_free=tuple(i for i in with_liver if self.entries[i].tumour.state == LabelState.ABSENT),
            lesions=tuple(lesion for index in members for lesion in lesions[index]),
        )

    def batch(self, step: int, size: int, rank: int = 0, processes: int = 1) -> list[Patch]:
        """The patches of one process in batch number `step`, which has `size` patches over all processes.

        Modalities alternate from patch to patch, so each has an equal share.
        """
        return [self._patch(number) for number in patch_numbers(step, size, rank, processes)]

    def _patch(self, number: int) -> Patch:
        centres, rng = self.centres[number % len(self.centres)], np.random.default_rng([self.seed, number])
        kind = self._draw_kind(centres, rng)
        if kind == TUMOUR_PATCH:
            index, centre_zyx = self._tumour_centre(centres, rng)
        elif kind == ANY_PATCH or not centres.with_liver:
            index = self._draw_entry(centres, centres.entries, rng)
            centre_zyx = self._any_voxel(index, rng)
        else:
            candidates = centres.tumour_free if kind == TUMOUR_FREE_PATCH else centres.with_liver
            index = self._draw_entry(centres, candidates, rng)
            voxels_n3 = self._liver_voxels_n3[index]
            beside = kind == BESIDE_LIVER_PATCH
            centre_zyx = self._any_voxel(index, rng) if beside else voxels_n3[rng.integers(len(voxels_n3))]
        shift_zyx = np.array([rng.integers(-(n // 4), n // 4 + 1) for n in self.patch_zyx], np.int32)
        return cut(self.arrays(index), centre_zyx + shift_zyx, self.patch_zyx, self.entries[index].modality)

    def _draw_kind(self, centres: Centres, rng: np.random.Generator) -> int:
        """Draw what a patch is centred on.

        A share for which the modality has no case goes to its scans with a known liver: half of these patches are
        centred on it, half anywhere. On livers alone, little would be learned of what prediction sees around them.
        """
        shares = np.cumsum([self.params.tumour_share, self.params.tumour_free_share, self.params.liver_share])
        kind = int(np.searchsorted(shares, rng.random(), side="right"))
        has_case = {TUMOUR_PATCH: bool(centres.lesions), TUMOUR_FREE_PATCH: bool(centres.tumour_free)}
        if has_case.get(kind, True):
            return kind
        return LIVER_PATCH if rng.random() < 0.5 else BESIDE_LIVER_PATCH

    def _any_voxel(self, index: int, rng: np.random.Generator) -> Indices:
        return np.array([rng.integers(n) for n in self.arrays(index).image_zyx.shape], np.int32)

    def _draw_entry(self, centres: Centres, candidates: Sequence[int], rng: np.random.Generator) -> int:
        """Draw an entry: a group weighs the square root of its number of cases, split evenly among its candidates.

        So a large group does not dominate, and neither does one in which most cases qualify. No case is drawn more than
        `MAX_REPEAT` times as often as if all were drawn alike, however small its group.
        """
        groups = [self.entries[index].group for index in candidates]
        in_group = Counter(groups)
        weights = np.array([centres.group_sizes[group] ** 0.5 / in_group[group] for group in groups])
        return int(rng.choice(np.array(candidates), p=_capped(weights / weights.sum(), MAX_REPEAT / len(weights))))

    def _tumour_centre(self, centres: Centres, rng: np.random.Generator) -> tuple[int, Indices]:
        """Draw an entry and a voxel of a lesion: the size bin first, so small lesions are as frequent as large ones."""
        present = {lesion.size_bin for lesion in centres.lesions}
        size_bin = rng.choice([name for name in LESION_SIZES if name in present])
        lesions = [lesion for lesion in centres.lesions if lesion.size_bin == size_bin]
        index = self._draw_entry(centres, sorted({lesion.entry for lesion in lesions}), rng)
        candidates = [lesion for lesion in lesions if lesion.entry == index]
        lesion = candidates[rng.integers(len(candidates))]
        return index, lesion.voxels_n3[rng.integers(len(lesion.voxels_n3))]


def patch_numbers(step: int, size: int, rank: int, processes: int) -> range:
    """Numbers of the patches of one process in batch number `step` of `size` patches."""
    return range(step * size + rank, (step + 1) * size, processes)


def _capped(shares_n: npt.NDArray[np.float64], most: float) -> npt.NDArray[np.float64]:
    """Shares of a whole, none above `most`: what the largest lose goes to the others in proportion."""
    capped_n = np.zeros(len(shares_n), bool)
    while (over_n := (shares_n > most * (1 + 1e-9)) & ~capped_n).any():
        capped_n |= over_n
        rest = shares_n[~capped_n].sum()
        if rest == 0:
            return np.full(len(shares_n), 1 / len(shares_n))
        shares_n = np.where(capped_n, most, shares_n * (1 - most * capped_n.sum()) / rest)
    return shares_n


def _some_voxels(mask_zyx: Mask, rng: np.random.Generator) -> Indices:
    """Indices of at most `MAX_CENTRES` voxels of a mask, int32 n3 in scan order; none of an empty mask."""
    voxels_n3 = np.argwhere(mask_zyx).astype(np.int32)
    if len(voxels_n3) > MAX_CENTRES:
        voxels_n3 = voxels_n3[np.sort(rng.choice(len(voxels_n3), MAX_CENTRES, replace=False))]
    return voxels_n3


def cut(arrays: PreprocessedArrays, centre_zyx: Indices, patch_zyx: SizeZYX, modality: Modality) -> Patch:
    """Cut the patch around a voxel, shifted inwards where it would leave the volume.

    If the volume is smaller than the patch, the image is padded with its border as in prediction, targets and weights
    with 0.
    """
    shape_zyx = arrays.image_zyx.shape
    starts = [
        int(np.clip(c - p // 2, min(0, n - p), max(0, n - p)))
        for c, p, n in zip(centre_zyx, patch_zyx, shape_zyx, strict=True)
    ]
    inside = tuple(slice(max(s, 0), min(s + p, n)) for s, p, n in zip(starts, patch_zyx, shape_zyx, strict=True))
    pad = [(part.start - s, s + p - part.stop) for part, s, p in zip(inside, starts, patch_zyx, strict=True)]

    image_zyx = np.asarray(arrays.image_zyx[inside], np.float32)
    code_zyx = np.asarray(arrays.code_zyx[inside], np.intp)
    scale_41 = np.array([[1], [1], [1 / FULL], [1 / FULL]], np.float32)
    palette_4n = np.asarray(arrays.palette_n4.T, np.float32) * scale_41
    labels_4zyx = np.empty((len(palette_4n), *code_zyx.shape), np.float32)
    for column_n, label_zyx in zip(palette_4n, labels_4zyx, strict=True):
        np.take(column_n, code_zyx, out=label_zyx, mode="clip")  # without clip numpy checks every index first
    if any(map(any, pad)):
        image_zyx = np.pad(image_zyx, pad, mode="edge")
        labels_4zyx = np.pad(labels_4zyx, [(0, 0), *pad])
    return Patch(image_zyx, labels_4zyx[:2], labels_4zyx[2:], modality)

"""Where patches are cut: balanced over modalities, sources and lesion sizes, each a function of (seed, its number)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hepar.cases import LabelState, Modality
from hepar.errors import DataError
from hepar.imaging.masks import LESION_SIZES, equivalent_diameter_mm, lesion_size
from hepar.params import SamplingParams, SizeZYX
from hepar.pool.table import FULL, Pool, PoolEntry, PreprocessedArrays
from hepar.runtime.progress import current

MIN_LESION_VOXELS = 8  # a smaller lesion is hardly seen on the plan's grid; it is learned from, but not centred on
MAX_CENTRES = 4096  # voxels remembered per structure
Voxels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Patch:
    """One training patch: `image` float32 zyx, `y` and `m` float32 r zyx with r liver, tumour."""

    image: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    m: npt.NDArray[np.float32]
    modality: Modality


@dataclass(frozen=True)
class Lesion:
    """Voxels of one lesion, for choosing a patch's centre, and its size bin."""

    entry: int
    size_bin: str
    voxels_zyx: Voxels


@dataclass(frozen=True)
class Centres:
    """Candidate patch centres of one modality, and how many of its cases each group has."""

    entries: tuple[int, ...]
    group_sizes: Mapping[str, int]
    with_liver: tuple[int, ...]
    lesions: tuple[Lesion, ...]


class PatchSampler:
    """Cuts the batch of a step. The same (pool, params, seed, step) gives the same batch, however many share it."""

    def __init__(
        self,
        pool: Pool,
        entries: Sequence[PoolEntry],
        patch_zyx: SizeZYX,
        params: SamplingParams,
        seed: int,
        memory_bytes: int,
    ) -> None:
        """Arrays stay in memory where all of them together take at most `memory_bytes`."""
        if not entries:
            raise DataError("the pool has no training case")
        self.entries = tuple(entries)
        self.patch_zyx = patch_zyx
        self.params = params
        self.seed = seed
        self.spacing_zyx_mm = pool.plan.spacing_zyx_mm
        self._pool = pool
        fits = sum(pool.arrays(entry).nbytes for entry in self.entries) <= memory_bytes
        self._loaded: list[PreprocessedArrays] | None = [] if fits else None
        self._liver_voxels: dict[int, Voxels] = {}
        lesions = []
        with current().counting(len(self.entries), "cases opened") as count:
            for index, entry in enumerate(self.entries):
                if self._loaded is not None:
                    self._loaded.append(pool.arrays(entry).loaded())
                lesions.append(self._index(index))
                count.advance()
        modalities = sorted({entry.modality for entry in self.entries})
        self.centres = [self._centres(modality, lesions) for modality in modalities]

    def arrays(self, index: int) -> PreprocessedArrays:
        """The arrays of an entry: in memory where all of them fit, else on disk, opened anew for each thread's sake."""
        return self._loaded[index] if self._loaded else self._pool.arrays(self.entries[index])

    def livers(self) -> int:
        """How many cases have a liver to cut patches around."""
        return len(self._liver_voxels)

    def lesions(self) -> dict[Modality, int]:
        """How many lesions there are to cut patches around, by modality."""
        return {self.entries[centres.entries[0]].modality: len(centres.lesions) for centres in self.centres}

    def _index(self, index: int) -> list[Lesion]:
        """Remember where a case's liver and lesions lie."""
        entry, arrays = self.entries[index], self.arrays(index)
        rng = np.random.default_rng([self.seed, index])
        liver = _some_voxels(arrays.liver > 0, rng)
        if entry.liver_weight > 0 and len(liver):
            self._liver_voxels[index] = liver
        if entry.tumour_state != LabelState.MANUAL:
            return []
        tumour = arrays.tumour
        if not (boxes := ndimage.find_objects(tumour)):
            return []
        labels, _ = ndimage.label(tumour[boxes[0]])
        corner = np.array([part.start for part in boxes[0]], np.int32)
        voxel_mm3 = entry.tumour_ml * 1000 / np.count_nonzero(labels)
        lesions = []
        for number, region in enumerate(ndimage.find_objects(labels), start=1):
            inside = labels[region] == number
            if (size := np.count_nonzero(inside)) < MIN_LESION_VOXELS:
                continue
            size_bin = lesion_size(equivalent_diameter_mm(size * voxel_mm3))
            start = corner + np.array([part.start for part in region], np.int32)
            voxels = _some_voxels(inside, rng) + start
            lesions.append(Lesion(index, size_bin, voxels))
        return lesions

    def _centres(self, modality: Modality, lesions: Sequence[Sequence[Lesion]]) -> Centres:
        members = tuple(index for index, entry in enumerate(self.entries) if entry.modality == modality)
        return Centres(
            entries=members,
            group_sizes=Counter(self.entries[index].group for index in members),
            with_liver=tuple(index for index in members if index in self._liver_voxels),
            lesions=tuple(lesion for index in members for lesion in lesions[index]),
        )

    def batch(self, step: int, size: int, rank: int = 0, processes: int = 1) -> list[Patch]:
        """The patches of a batch that fall to one of some processes, a function of (seed, step) and their places in it.

        Modalities take turns, so that each has its equal share.
        """
        return [self._patch(number) for number in batch_numbers(step, size, rank, processes)]

    def _patch(self, number: int) -> Patch:
        centres, rng = self.centres[number % len(self.centres)], np.random.default_rng([self.seed, number])
        kind = rng.random()
        if kind < self.params.tumour_share and centres.lesions:
            index, centre = self._tumour_centre(centres, rng)
        elif kind < self.params.tumour_share + self.params.liver_share and centres.with_liver:
            index = self._draw(centres, centres.with_liver, rng)
            voxels = self._liver_voxels[index]
            centre = voxels[rng.integers(len(voxels))]
        else:
            index = self._draw(centres, centres.entries, rng)
            shape = self.arrays(index).image.shape
            centre = np.array([rng.integers(n) for n in shape], np.int32)
        shift = [rng.integers(-(n // 4), n // 4 + 1) for n in self.patch_zyx]
        modality = self.entries[index].modality
        return cut(self.arrays(index), centre + np.array(shift, np.int32), self.patch_zyx, modality)

    def _draw(self, centres: Centres, among: Sequence[int], rng: np.random.Generator) -> int:
        """One of some entries: groups weigh by the root of their cases, and share that evenly among their own here.

        So neither many cases nor many that show what is asked for let a group drown another.
        """
        groups = [self.entries[index].group for index in among]
        here = Counter(groups)
        weights = np.array([centres.group_sizes[group] ** 0.5 / here[group] for group in groups])
        return int(rng.choice(np.array(among), p=weights / weights.sum()))

    def _tumour_centre(self, centres: Centres, rng: np.random.Generator) -> tuple[int, Voxels]:
        """A voxel of a lesion: first a size bin, so that small ones are seen as often as large ones, then a lesion."""
        there = {lesion.size_bin for lesion in centres.lesions}
        size_bin = rng.choice([name for name in LESION_SIZES if name in there])
        lesions = [lesion for lesion in centres.lesions if lesion.size_bin == size_bin]
        entry = self._draw(centres, sorted({lesion.entry for lesion in lesions}), rng)
        own = [lesion for lesion in lesions if lesion.entry == entry]
        lesion = own[rng.integers(len(own))]
        return entry, lesion.voxels_zyx[rng.integers(len(lesion.voxels_zyx))]


def batch_numbers(step: int, size: int, rank: int, processes: int) -> range:
    """The numbers, among all patches of a training, of those in a batch that fall to one of some processes."""
    return range(step * size + rank, (step + 1) * size, processes)


def _some_voxels(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> Voxels:
    voxels = np.argwhere(mask).astype(np.int32)
    if len(voxels) > MAX_CENTRES:
        voxels = voxels[np.sort(rng.choice(len(voxels), MAX_CENTRES, replace=False))]
    return voxels


def cut(arrays: PreprocessedArrays, centre_zyx: Voxels, patch_zyx: SizeZYX, modality: Modality) -> Patch:
    """A patch around a voxel, moved inwards where it would leave the volume.

    Where the volume is smaller than the patch, the image is padded with its darkest value and nothing is known.
    """
    shape = arrays.image.shape
    starts = [
        int(np.clip(c - p // 2, min(0, n - p), max(0, n - p)))
        for c, p, n in zip(centre_zyx, patch_zyx, shape, strict=True)
    ]
    inside = tuple(slice(max(s, 0), min(s + p, n)) for s, p, n in zip(starts, patch_zyx, shape, strict=True))
    pad = [(part.start - s, s + p - part.stop) for part, s, p in zip(inside, starts, patch_zyx, strict=True)]

    image = np.asarray(arrays.image[inside], np.float32)
    code = np.asarray(arrays.code[inside], np.intp)
    columns = np.asarray(arrays.palette.T, np.float32) * np.array([[1], [1], [1 / FULL], [1 / FULL]], np.float32)
    labels = np.empty((len(columns), *code.shape), np.float32)
    for column, label in zip(columns, labels, strict=True):
        np.take(column, code, out=label, mode="clip")  # without clip numpy checks every index first
    if any(map(any, pad)):
        image = np.pad(image, pad, constant_values=arrays.darkest)
        labels = np.pad(labels, [(0, 0), *pad])
    return Patch(image, labels[:2], labels[2:], modality)

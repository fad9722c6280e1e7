"""Perceptual hash: a scan in 3072 bytes that survives resampling, mirroring and rescaled intensities.

The body is cropped, reduced to 12 x 16 x 16 block means, and the means are replaced by their ranks. Two hashes are
compared by their highest correlation over all mirror images.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from hepar.cases import Modality
from hepar.imaging.masks import Mask, body_mask
from hepar.imaging.volumes import Array

SIZE_ZYX = (12, 16, 16)
PerceptualHash = npt.NDArray[np.int8]
_FLIPS = tuple(product((1, -1), repeat=3))


def perceptual_hash(image_zyx: Array, modality: Modality) -> PerceptualHash:
    """The perceptual hash of a canonical volume, int8 of `SIZE_ZYX`; a volume without body is taken whole."""
    body_zyx = body_mask(image_zyx, modality)
    cropped_zyx = image_zyx[_bounding_box(body_zyx)] if body_zyx.any() else image_zyx
    means_zyx = _block_means(cropped_zyx.astype(np.float64), SIZE_ZYX)
    _, at, counts = np.unique(np.round(means_zyx, 6), return_inverse=True, return_counts=True)
    ranks_zyx = (counts.cumsum() - (counts + 1) / 2)[at].reshape(SIZE_ZYX)  # from 0; ties share their mean rank
    return np.round(ranks_zyx / (ranks_zyx.size - 1) * 254 - 127).astype(np.int8)


def _bounding_box(mask_zyx: Mask) -> tuple[slice, ...]:
    """The box around the planes that hold at least a tenth as many voxels as the fullest plane of their axis."""
    box = []
    for axis in range(3):
        counts = mask_zyx.sum(axis=tuple(other for other in range(3) if other != axis))
        full = np.flatnonzero(counts >= 0.1 * counts.max())
        box.append(slice(int(full[0]), int(full[-1]) + 1))
    return tuple(box)


def _block_means(array_zyx: npt.NDArray[np.float64], size_zyx: Sequence[int]) -> npt.NDArray[np.float64]:
    """Means over equal boxes whose borders may cut voxels: integrate along each axis, then take differences."""
    for axis, blocks in enumerate(size_zyx):
        sums = np.concatenate([np.zeros_like(array_zyx.take([0], axis)), array_zyx.cumsum(axis)], axis)
        borders = np.linspace(0, array_zyx.shape[axis], blocks + 1)
        low = np.floor(borders).astype(int)
        high = np.minimum(low + 1, array_zyx.shape[axis])
        share = (borders - low).reshape([-1 if other == axis else 1 for other in range(3)])
        edges = sums.take(low, axis) * (1 - share) + sums.take(high, axis) * share
        array_zyx = np.diff(edges, axis=axis) / (array_zyx.shape[axis] / blocks)
    return array_zyx


def correlation(one: PerceptualHash, other: PerceptualHash) -> float:
    """The highest correlation of two hashes over all mirror images, 1 for the same scan."""
    return float(best_correlations(unit_vector(one)[None], other)[0])


def unit_vector(scan_hash: PerceptualHash) -> npt.NDArray[np.float32]:
    """A hash as a vector of mean 0 and length 1, float32 of 3072; a constant hash gives zeros."""
    centred = scan_hash.astype(np.float32).ravel() - scan_hash.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), np.float32)


def best_correlations(units_nk: npt.NDArray[np.float32], scan_hash: PerceptualHash) -> npt.NDArray[np.float32]:
    """The highest correlation of each of n unit vectors with the mirror images of a hash, float32 of n."""
    grid_zyx = unit_vector(scan_hash).reshape(SIZE_ZYX)
    flipped = np.stack([grid_zyx[tuple(slice(None, None, sign) for sign in signs)].ravel() for signs in _FLIPS])
    return np.asarray((units_nk @ flipped.T).max(axis=1))

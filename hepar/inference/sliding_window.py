"""Prediction of a preprocessed image of any size, by overlapping windows.

Legend: b windows of a batch, r the two structures liver and tumour, d h w and z y x the axes of space. A window is
named by its first voxel, which lies before the image where the image is smaller than a window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hepar.cases import STRUCTURES
from hepar.imaging.masks import Mask, bounding_box
from hepar.imaging.parallel_grids import Box, inner_box, shared_slices, whole_box
from hepar.params import SizeZYX
from hepar.runtime.device import autocast, memory_format

WINDOWS_AT_ONCE = 4
VOXELS_AT_ONCE = 2**19  # on a CPU, where larger batches are not faster and take more memory
SIGMA = 0.25  # of the Gaussian weights of a window, relative to its side
LEAST_SHARE = 0.05  # of a voxel's weights, below which a window does not matter to it
Probabilities = npt.NDArray[np.float32]
Corner = tuple[int, int, int]


@dataclass(frozen=True)
class WindowGrid:
    """The windows over an image of `size_zyx` voxels, by their first voxels along each axis.

    They are a step apart from the first voxel on, the last one moved back to the border, as those of MONAI's
    `sliding_window_inference`. Of all steps with as few windows the shortest is taken, so that all overlap nearly
    alike. An axis on which the image is smaller has one window, which the image lies in the middle of.
    """

    size_zyx: SizeZYX
    patch_zyx: SizeZYX
    starts_zyx: tuple[tuple[int, ...], ...]

    @classmethod
    def over(cls, size_zyx: Sequence[int], patch_zyx: SizeZYX, overlap: float) -> WindowGrid:
        """The windows of an image of a size."""
        starts = tuple(_starts(n, p, overlap) for n, p in zip(size_zyx, patch_zyx, strict=True))
        z, y, x = size_zyx
        return cls((z, y, x), patch_zyx, starts)

    @property
    def overlap_zyx(self) -> tuple[float, ...]:
        """The overlap along each axis with which MONAI's `sliding_window_inference` has the same windows."""
        steps = (
            own[1] - own[0] if len(own) > 1 else patch
            for own, patch in zip(self.starts_zyx, self.patch_zyx, strict=True)
        )
        return tuple(max(0.0, 1 - (step + 0.5) / p) for step, p in zip(steps, self.patch_zyx, strict=True))

    def mirrored(self, axes: Iterable[int]) -> WindowGrid:
        """Where the windows of the image mirrored along some axes lie in the image itself."""
        starts = list(self.starts_zyx)
        for axis in axes:
            last = self.size_zyx[axis] - self.patch_zyx[axis]
            starts[axis] = tuple(last - start for start in starts[axis])
        return WindowGrid(self.size_zyx, self.patch_zyx, tuple(starts))

    def covering(self) -> WindowGrid:
        """As few of these windows as hold every voxel of the image."""
        starts = tuple(_covering(own, patch) for own, patch in zip(self.starts_zyx, self.patch_zyx, strict=True))
        return replace(self, starts_zyx=starts)

    @property
    def corners(self) -> list[Corner]:
        """All windows, those with the same first slice one after the other."""
        return [(z, y, x) for z, y, x in itertools.product(*self.starts_zyx)]

    def that_matter(self, mask_zyx: Mask, box: Box) -> list[Corner]:
        """The windows with at least `LEAST_SHARE` of the weights of some voxel of a mask, which covers `box`.

        None for an empty mask. Without the other windows the probabilities in the mask change by less than their share.
        """
        inner = bounding_box(mask_zyx)
        if inner is None:
            return []
        part = inner_box(box, inner)
        mask_zyx, weight_zyx = mask_zyx[inner], _gaussian(self.patch_zyx)
        near = [
            (corner, *shared)
            for corner in self.corners
            if (shared := shared_slices(window_box(corner, self.patch_zyx), part)) is not None
        ]
        least_zyx = np.zeros(mask_zyx.shape, np.float32)
        for _, inside, place in near:
            least_zyx[place] += weight_zyx[inside]
        least_zyx *= LEAST_SHARE
        least_zyx[~mask_zyx] = np.inf
        return [corner for corner, inside, place in near if (weight_zyx[inside] >= least_zyx[place]).any()]


class WindowSink(Protocol):
    """What receives predicted windows, on a device."""

    patch_zyx: SizeZYX
    device: torch.device

    def add(self, corner: Corner, probability_rdhw: Tensor | None) -> None:
        """Take a window; None are probabilities of 0."""


class WindowSum:
    """Predicted windows added up in a box of an image, with Gaussian weights, on a device."""

    def __init__(self, box: Box, patch_zyx: SizeZYX, device: torch.device) -> None:
        self.box, self.patch_zyx, self.device = box, patch_zyx, device
        size_zyx = [part.stop - part.start for part in box]
        self.weight_zyx = torch.from_numpy(_gaussian(patch_zyx)).to(device)
        self.total_rzyx = torch.zeros((len(STRUCTURES), *size_zyx), device=device)
        self.weight_sum_zyx = torch.zeros(size_zyx, device=device)

    def add(self, corner: Corner, probability_rdhw: Tensor | None) -> None:
        """Add the part of a window in the box; None are probabilities of 0."""
        if (shared := shared_slices(window_box(corner, self.patch_zyx), self.box)) is None:
            return
        inside, place = shared
        weight_zyx = self.weight_zyx[inside]
        self.weight_sum_zyx[place] += weight_zyx
        if probability_rdhw is not None:
            for total_zyx, probability_dhw in zip(self.total_rzyx, probability_rdhw, strict=True):
                total_zyx[place] += probability_dhw[inside] * weight_zyx

    def mean(self, box: Box | None = None) -> Probabilities:
        """The weighted mean of the windows, float32 rzyx, in a part of the box or all of it; 0 where no window lies."""
        part = tuple(
            slice(wanted.start - own.start, wanted.stop - own.start)
            for wanted, own in zip(box or self.box, self.box, strict=True)
        )
        weight_zyx = self.weight_sum_zyx[part].clamp(min=torch.finfo(torch.float32).tiny)
        return np.asarray((self.total_rzyx[:, *part] / weight_zyx).cpu().numpy())


def windows_at_once(patch_zyx: SizeZYX, device: torch.device) -> int:
    """How many windows one forward pass takes: on a CPU at most `VOXELS_AT_ONCE` voxels, or a single window."""
    fitting = VOXELS_AT_ONCE // math.prod(patch_zyx) if device.type == "cpu" else WINDOWS_AT_ONCE
    return min(WINDOWS_AT_ONCE, max(1, fitting))


@torch.inference_mode()
def add_windows(
    network: nn.Module,
    corners: Sequence[Corner],
    read: Callable[[Corner], npt.NDArray[np.float32]],
    total: WindowSink,
    mirrored_axes: Sequence[int] = (),
    precision: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Predict windows and give them to `total`; `read` returns the voxels of one, `advance` is called after each.

    With `mirrored_axes` each is mirrored before the network and back after it. Windows without contrast, such as air,
    are not predicted and get probability 0. Without a precision that of the caller holds.
    """
    device, axes = total.device, [axis - 3 for axis in mirrored_axes]
    at_once = windows_at_once(total.patch_zyx, device)
    waiting: list[tuple[Corner, Tensor]] = []

    def predict() -> None:
        # a single window goes in twice: torch runs a batch of one through its own, slower convolution
        twice = 2 if len(waiting) == 1 and at_once > 1 else 1
        patches_bdhw = torch.stack([patch_dhw for _, patch_dhw in waiting] * twice).to(device).flip(axes)
        with nullcontext() if precision is None else autocast(device, precision):
            output = network(patches_bdhw[:, None].contiguous(memory_format=memory_format(device)))
        logits_brdhw: Tensor = output[0] if isinstance(output, list) else output
        for (corner, _), logits_rdhw in zip(waiting, logits_brdhw, strict=False):
            total.add(corner, logits_rdhw.float().sigmoid().flip(axes))
            advance()
        waiting.clear()

    for corner in corners:
        patch_zyx = read(corner)
        if patch_zyx.min() == patch_zyx.max():
            total.add(corner, None)
            advance()
            continue
        waiting.append((corner, torch.from_numpy(patch_zyx)))
        if len(waiting) == at_once:
            predict()
    if waiting:
        predict()


def sliding_window(
    network: nn.Module, image_zyx: npt.NDArray[np.float32], patch_zyx: SizeZYX, overlap: float, device: torch.device
) -> Probabilities:
    """Predict probabilities, float32 rzyx, by windows of `patch_zyx` voxels averaged with Gaussian weights.

    An image smaller than a window is padded with its border values. Windows without contrast, such as air, are
    skipped and get probability 0; an image without any contrast gives zeros.
    """
    whole = whole_box(image_zyx.shape)
    grid = WindowGrid.over(image_zyx.shape, patch_zyx, overlap)
    total = WindowSum(whole, patch_zyx, device)
    add_windows(network, grid.corners, lambda corner: cut_window(image_zyx, whole, corner, patch_zyx), total)
    return total.mean()


def window_box(corner: Corner, patch_zyx: SizeZYX) -> Box:
    """The voxels of a window; its starts may be negative."""
    return tuple(slice(first, first + side) for first, side in zip(corner, patch_zyx, strict=True))


def cut_window(
    image_zyx: npt.NDArray[np.float32], box: Box, corner: Corner, patch_zyx: SizeZYX
) -> npt.NDArray[np.float32]:
    """The voxels of a window of an image, of which `image_zyx` covers `box`; beyond that its border values."""
    own, pad = [], []
    for first, side, part in zip(corner, patch_zyx, box, strict=True):
        start, stop = max(first, part.start), min(first + side, part.stop)
        own.append(slice(start - part.start, stop - part.start))
        pad.append((start - first, first + side - stop))
    window_zyx = image_zyx[tuple(own)]
    return np.pad(window_zyx, pad, mode="edge") if any(map(any, pad)) else np.ascontiguousarray(window_zyx)


def _starts(size: int, patch: int, overlap: float) -> tuple[int, ...]:
    """First voxels of the windows along an axis."""
    if size <= patch:
        return (-((patch - size) // 2),)
    longest = max(1, int(patch * (1 - overlap)))
    step = math.ceil((size - patch) / math.ceil((size - patch) / longest))
    return (*range(0, size - patch, step), size - patch)


def _covering(starts: Sequence[int], patch: int) -> tuple[int, ...]:
    """As few of the windows along an axis as hold all voxels that all of them hold."""
    chosen = [starts[0]]
    while chosen[-1] != starts[-1]:
        chosen.append(max(start for start in starts if start <= chosen[-1] + patch))
    return tuple(chosen)


def _profile(side: int) -> npt.NDArray[np.float64]:
    """Weights along one axis of a window: a Gaussian, 1 at the centre."""
    return np.asarray(np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side * SIGMA)) ** 2))


def _gaussian(patch_zyx: SizeZYX) -> npt.NDArray[np.float32]:
    """Weights of a window's voxels: the product of those along its axes, at least 0.001."""
    return np.asarray(np.maximum(np.einsum("i,j,k->ijk", *map(_profile, patch_zyx)), 1e-3), np.float32)

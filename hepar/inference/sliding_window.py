"""Prediction of a preprocessed image of any size, by overlapping windows.

Legend: b windows of a batch, r the two structures liver and tumour, d h w and z y x the axes of space.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hepar.cases import STRUCTURES
from hepar.params import SizeZYX
from hepar.runtime.device import memory_format

WINDOWS_AT_ONCE = 4
Probabilities = npt.NDArray[np.float32]


@torch.inference_mode()
def sliding_window(
    network: nn.Module, image_zyx: npt.NDArray[np.float32], patch_zyx: SizeZYX, overlap: float, device: torch.device
) -> Probabilities:
    """Predict probabilities, float32 rzyx, by windows of `patch_zyx` voxels averaged with Gaussian weights.

    An image smaller than a window is padded with its border values. Windows without contrast, such as air, are
    skipped and get probability 0; an image without any contrast gives zeros.
    """
    padded_zyx, inner = _pad_to(image_zyx, patch_zyx)
    weight_zyx = torch.from_numpy(_gaussian(patch_zyx)).to(device)
    tensor_zyx = torch.from_numpy(padded_zyx).to(device)
    weight_sum_zyx = torch.zeros(padded_zyx.shape, device=device)
    total_rzyx: Tensor | None = None
    waiting: list[tuple[slice, ...]] = []
    starts = (_starts(n, p, overlap) for n, p in zip(padded_zyx.shape, patch_zyx, strict=True))
    for corner in itertools.product(*starts):
        window = tuple(slice(start, start + p) for start, p in zip(corner, patch_zyx, strict=True))
        weight_sum_zyx[window] += weight_zyx
        if tensor_zyx[window].min() < tensor_zyx[window].max():
            waiting.append(window)
    for windows in (waiting[i : i + WINDOWS_AT_ONCE] for i in range(0, len(waiting), WINDOWS_AT_ONCE)):
        # a single window goes in twice: torch runs a batch of one through its own, slower convolution
        patches_bdhw = torch.stack([tensor_zyx[window] for window in (windows * 2 if len(windows) == 1 else windows)])
        output = network(patches_bdhw[:, None].contiguous(memory_format=memory_format(device)))
        logits_brdhw: Tensor = output[0] if isinstance(output, list) else output
        if total_rzyx is None:
            total_rzyx = torch.zeros((logits_brdhw.shape[1], *padded_zyx.shape), device=device)
        for window, logits_rdhw in zip(windows, logits_brdhw, strict=False):
            total_rzyx[(slice(None), *window)] += logits_rdhw.float().sigmoid() * weight_zyx
    if total_rzyx is None:
        return np.zeros((len(STRUCTURES), *image_zyx.shape), np.float32)
    return np.asarray((total_rzyx / weight_sum_zyx)[(slice(None), *inner)].cpu().numpy())


def _pad_to(
    image_zyx: npt.NDArray[np.float32], patch_zyx: SizeZYX
) -> tuple[npt.NDArray[np.float32], tuple[slice, ...]]:
    """The image padded to at least one patch, and the slices of the original in it."""
    missing = [max(0, p - n) for n, p in zip(image_zyx.shape, patch_zyx, strict=True)]
    pad = [(m // 2, m - m // 2) for m in missing]
    inner = tuple(slice(before, before + n) for (before, _), n in zip(pad, image_zyx.shape, strict=True))
    return np.pad(image_zyx, pad, mode="edge"), inner


def _starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis: evenly spaced, from the first voxel to the last."""
    count = 1 + math.ceil((size - patch) / (patch * (1 - overlap)))
    return [round(i * (size - patch) / max(count - 1, 1)) for i in range(count)]


def _gaussian(patch_zyx: SizeZYX) -> npt.NDArray[np.float32]:
    """Weights of a window's voxels: a Gaussian with sigma an eighth of each side, 1 at the centre, at least 0.001."""
    axes = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch_zyx]
    return np.asarray(np.maximum(np.einsum("i,j,k->ijk", *axes), 1e-3), np.float32)

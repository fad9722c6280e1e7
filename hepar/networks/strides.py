"""Strides and kernels of each level, chosen from the sides of a patch and the voxel spacing.

The rules are nnU-Net's (Isensee et al., Nature Methods 2021). An axis is halved while its map keeps `MIN_SIDE` voxels
and no other axis that can be halved is `ANISOTROPY` times finer. A kernel is flat along an axis until no other axis is
`ANISOTROPY` times finer.
"""

from __future__ import annotations

from collections.abc import Sequence

MIN_SIDE = 4  # voxels, of the map on the lowest level
ANISOTROPY = 2.0
ISOTROPIC = (1.0, 1.0, 1.0)


def choose_strides(
    sides_zyx: Sequence[int], levels: int, spacing_zyx_mm: Sequence[float] = ISOTROPIC
) -> list[list[int]]:
    """The stride z, y, x of each level, for at most `levels` of them; [] if no axis can be halved."""
    strides: list[list[int]] = []
    left, spacing = [_halvings(side) for side in sides_zyx], list(spacing_zyx_mm)
    while len(strides) < levels and any(left):
        finest = min(mm for mm, n in zip(spacing, left, strict=True) if n)
        stride = [2 if n and mm < ANISOTROPY * finest else 1 for mm, n in zip(spacing, left, strict=True)]
        left = [n - (by == 2) for n, by in zip(left, stride, strict=True)]
        spacing = [mm * by for mm, by in zip(spacing, stride, strict=True)]
        strides.append(stride)
    return strides


def choose_kernels(strides: Sequence[Sequence[int]], spacing_zyx_mm: Sequence[float]) -> list[list[int]]:
    """The kernel z, y, x of the full resolution and of the level after each stride, with sides of 1 or 3."""
    kernels: list[list[int]] = []
    kernel, spacing = [1, 1, 1], list(spacing_zyx_mm)
    for stride in ((1, 1, 1), *strides):
        spacing = [mm * by for mm, by in zip(spacing, stride, strict=True)]
        kernel = [3 if mm < ANISOTROPY * min(spacing) else k for mm, k in zip(spacing, kernel, strict=True)]
        kernels.append(kernel)
    return kernels


def _halvings(side: int) -> int:
    """How many times a side can be halved without a remainder."""
    return 1 + _halvings(side // 2) if side % 2 == 0 and side // 2 >= MIN_SIDE else 0

"""How often each axis of a patch is halved, and which kernels suit: by its voxels and, where known, their size.

As nnU-Net does it (Isensee et al., Nature Methods 2021): an axis is halved while its map keeps `MIN_SIDE` voxels and no
other that can be halved is far finer, and kernels are flat along an axis until no other is far finer.
"""

from __future__ import annotations

from collections.abc import Sequence

MIN_SIDE = 4  # of the map on the lowest level
EVEN = 2.0  # times finer is far finer
EQUAL = (1.0, 1.0, 1.0)


def halvings(side: int) -> int:
    """How often a side can be halved, which has to be even each time."""
    return 1 + halvings(side // 2) if side % 2 == 0 and side // 2 >= MIN_SIDE else 0


def strides(sides_zyx: Sequence[int], levels: int, spacing_zyx_mm: Sequence[float] = EQUAL) -> list[list[int]]:
    """The stride of each level, at most `levels` of them; none where no axis can be halved."""
    found: list[list[int]] = []
    left, now = [halvings(side) for side in sides_zyx], list(spacing_zyx_mm)
    while len(found) < levels and any(left):
        finest = min(mm for mm, n in zip(now, left, strict=True) if n)
        stride = [2 if n and mm < EVEN * finest else 1 for mm, n in zip(now, left, strict=True)]
        left = [n - (by == 2) for n, by in zip(left, stride, strict=True)]
        now = [mm * by for mm, by in zip(now, stride, strict=True)]
        found.append(stride)
    return found


def kernels(strides: Sequence[Sequence[int]], spacing_zyx_mm: Sequence[float]) -> list[list[int]]:
    """The kernel before the first level, and that of each level."""
    found: list[list[int]] = []
    kernel, now = [1, 1, 1], list(spacing_zyx_mm)
    for stride in ((1, 1, 1), *strides):
        now = [mm * by for mm, by in zip(now, stride, strict=True)]
        kernel = [3 if mm < EVEN * min(now) else before for mm, before in zip(now, kernel, strict=True)]
        found.append(kernel)
    return found

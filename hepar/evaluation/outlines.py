"""Outlines of masks as SVG path data, and the part of a slice that is worth showing.

An outline follows the pixel edges, one unit a pixel, so that it is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hepar.imaging.masks import Mask, bounding_box

_MARGIN_MM = 20.0
_RIGHT, _DOWN, _LEFT, _UP = range(4)  # clockwise, so that the next one is a right turn
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # y, x


def outline_path(mask_yx: Mask, step: int = 1) -> str:
    """SVG path data of the outline of a mask, bool yx: a closed loop for each border; "" for an empty mask.

    Loops run clockwise around pixels and counterclockwise around holes; pixels that touch only at a corner have loops
    of their own. With a `step` above 1 the outline is that of blocks of step × step pixels that hold a pixel of the
    mask.
    """
    edges = _edges(_blocks(mask_yx, step))
    unused = dict.fromkeys(sorted(start for start, directions in edges.items() if _RIGHT in directions))
    loops = []
    while unused:
        loops.append(_loop(edges, next(iter(unused)), unused, step))
    return "".join(loops)


def outline_paths(masks_yx: Sequence[Mask], max_corners: int) -> list[str]:
    """The outlines of masks, all in the smallest step, 1, 2, 4…, with at most `max_corners` corners together.

    A corner takes at most eight characters, and some three on average.
    """
    step = 1
    while sum(_corners(_blocks(mask_yx, step)) for mask_yx in masks_yx) > max_corners:
        if all(max(mask_yx.shape) <= step for mask_yx in masks_yx):
            break
        step *= 2
    return [outline_path(mask_yx, step) for mask_yx in masks_yx]


def crop_box(occupied_yx: Mask, spacing_yx_mm: tuple[float, float]) -> tuple[slice, slice]:
    """Rows and columns around a mask, with a margin; the whole slice if it is empty."""
    if (box := bounding_box(occupied_yx)) is None:
        return slice(0, occupied_yx.shape[0]), slice(0, occupied_yx.shape[1])
    margins = (round(_MARGIN_MM / spacing_mm) for spacing_mm in spacing_yx_mm)
    rows, columns = (
        slice(max(0, part.start - margin), min(part.stop + margin, size))
        for part, margin, size in zip(box, margins, occupied_yx.shape, strict=True)
    )
    return rows, columns


def _blocks(mask_yx: Mask, step: int) -> Mask:
    """A mask of blocks of step × step pixels, True where any pixel is."""
    if step == 1:
        return mask_yx
    rows, columns = (-(-size // step) for size in mask_yx.shape)
    padded_yx = np.zeros((rows * step, columns * step), dtype=np.bool_)
    padded_yx[: mask_yx.shape[0], : mask_yx.shape[1]] = mask_yx
    return np.asarray(padded_yx.reshape(rows, step, columns, step).any(axis=(1, 3)))


def _corners(mask_yx: Mask) -> int:
    """The number of corners of the outline: points around which one, three, or two diagonal pixels are set."""
    quads_yx = np.pad(mask_yx, 1).astype(np.uint8)
    quads_yx = quads_yx[:-1, :-1] + quads_yx[1:, :-1] * 2 + quads_yx[:-1, 1:] * 4 + quads_yx[1:, 1:] * 8
    corners = np.array([0, 1, 1, 0, 1, 0, 2, 1, 1, 2, 0, 1, 0, 1, 1, 0])
    return int(corners[quads_yx].sum())


def _edges(mask_yx: Mask) -> dict[tuple[int, int], list[int]]:
    """The directions of the pixel edges of the outline, the mask on their right, by the (y, x) where they start."""
    padded_yx = np.pad(mask_yx, 1)
    beyond = (  # the neighbour across the edge, the direction of the edge, and where it starts in its pixel
        (padded_yx[:-2, 1:-1], _RIGHT, (0, 0)),
        (padded_yx[1:-1, 2:], _DOWN, (0, 1)),
        (padded_yx[2:, 1:-1], _LEFT, (1, 1)),
        (padded_yx[1:-1, :-2], _UP, (1, 0)),
    )
    edges: dict[tuple[int, int], list[int]] = {}
    for neighbour_yx, direction, (dy, dx) in beyond:
        for y, x in np.argwhere(mask_yx & ~neighbour_yx).tolist():
            edges.setdefault((y + dy, x + dx), []).append(direction)
    return edges


def _loop(
    edges: dict[tuple[int, int], list[int]], start: tuple[int, int], unused: dict[tuple[int, int], None], step: int
) -> str:
    """The loop that leaves `start`, a corner, to the right; takes the edges to the right out of `unused`."""
    parts = [f"M{start[1] * step} {start[0] * step}"]
    (y, x), direction, length = start, _RIGHT, 0
    while True:
        if direction == _RIGHT:
            del unused[y, x]
        y, x, length = y + _STEPS[direction][0], x + _STEPS[direction][1], length + step
        directions = edges[y, x]
        following = directions[0] if len(directions) == 1 else (direction + 1) % 4  # keep to the same pixel
        if (y, x) == start and following == _RIGHT:
            return "".join([*parts, "z"])  # which draws the last line
        if following != direction:
            sign = 1 if direction in (_RIGHT, _DOWN) else -1
            parts.append(f"{'v' if direction % 2 else 'h'}{sign * length}")
            direction, length = following, 0

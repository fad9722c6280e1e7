"""Pictures for the report: a slice with mask outlines, as one SVG that embeds the image.

The image keeps its resolution as a greyscale PNG. The outlines are vectors along the pixel edges, so they are exact and
can be switched off by style.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hepar.cases import STRUCTURES
from hepar.evaluation.slices import CaseSlice
from hepar.imaging.masks import Mask, bounding_box

MAX_PNG_BYTES = 60_000
_MARGIN_MM = 20.0
_GREY_LEVELS = 64  # finer steps are invisible beside an outline, and their noise doubles the file size


def slice_svg(case_slice: CaseSlice, distances_known: bool) -> str:
    """An SVG of the slice, cropped to the masks plus a margin, with outlines and, if distances are known, a scale bar.

    Outlines are paths with the classes `liver` or `tumour` and `reference` or `prediction`. Empty and unknown masks
    have no outline; if there is no outline at all, the whole slice is shown.
    """
    box = _crop(case_slice)
    height_mm, width_mm = (
        (part.stop - part.start) * spacing for part, spacing in zip(box, case_slice.spacing_yx_mm, strict=True)
    )
    spacing_y_mm, spacing_x_mm = case_slice.spacing_yx_mm
    image = base64.b64encode(encode_png(case_slice.image_yx[box])).decode("ascii")
    parts = [
        f'<svg viewBox="0 0 {width_mm:.6g} {height_mm:.6g}" role="img" aria-label="Slice {case_slice.index_z}">',
        f'<image width="{width_mm:.6g}" height="{height_mm:.6g}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{image}"/>',
        f'<g transform="scale({spacing_x_mm:.6g} {spacing_y_mm:.6g})">',
    ]
    for structure, pair in zip(STRUCTURES, (case_slice.liver, case_slice.tumour), strict=True):
        # the prediction is drawn over a wider reference, so that both are visible where they agree
        for role, mask_yx in (("reference", pair.reference_yx), ("prediction", pair.prediction_yx)):
            if mask_yx is not None and mask_yx.any():
                path = outline_path(mask_yx[box])
                parts.append(f'<path class="{structure} {role}" vector-effect="non-scaling-stroke" d="{path}"/>')
    parts.append("</g>")
    if distances_known:
        parts.append(_scale_bar(width_mm, height_mm))
    return "".join([*parts, "</svg>"])


def outline_path(mask_yx: Mask) -> str:
    """SVG path data of the outline of a mask, bool yx, along pixel edges, one unit per pixel; "" for an empty mask."""
    rows, columns = mask_yx.shape
    padded_yx = np.zeros((rows + 2, columns + 2), dtype=np.bool_)
    padded_yx[1:-1, 1:-1] = mask_yx
    across_yx = padded_yx[1:, 1:-1] != padded_yx[:-1, 1:-1]
    down_xy = (padded_yx[1:-1, 1:] != padded_yx[1:-1, :-1]).T
    horizontal = [f"M{start} {y}h{stop - start}" for y, start, stop in _runs(across_yx)]
    vertical = [f"M{x} {start}v{stop - start}" for x, start, stop in _runs(down_xy)]
    return "".join(horizontal + vertical)


def encode_png(image_yx: NDArray[np.float32]) -> bytes:
    """A greyscale PNG of at most `MAX_PNG_BYTES` from an image in 0…1, downsampled until it fits."""
    quantised_yx = np.round(np.clip(image_yx, 0, 1) * (_GREY_LEVELS - 1)) / (_GREY_LEVELS - 1)
    full = Image.fromarray(np.round(quantised_yx * 255).astype(np.uint8))
    shrink = 1.0
    while True:
        size = (max(1, round(full.width * shrink)), max(1, round(full.height * shrink)))
        buffer = io.BytesIO()
        (full if shrink == 1 else full.resize(size, Image.Resampling.BOX)).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MAX_PNG_BYTES or size == (1, 1):
            return buffer.getvalue()
        shrink *= 0.85


def _crop(case_slice: CaseSlice) -> tuple[slice, slice]:
    """Rows and columns around all masks, with a margin; the whole slice if all masks are empty."""
    occupied_yx = np.logical_or.reduce([*case_slice.liver.masks_yx, *case_slice.tumour.masks_yx])
    if (box := bounding_box(occupied_yx)) is None:
        return slice(0, occupied_yx.shape[0]), slice(0, occupied_yx.shape[1])
    margins = (round(_MARGIN_MM / spacing_mm) for spacing_mm in case_slice.spacing_yx_mm)
    rows, columns = (
        slice(max(0, part.start - margin), min(part.stop + margin, size))
        for part, margin, size in zip(box, margins, occupied_yx.shape, strict=True)
    )
    return rows, columns


def _runs(edges_yx: Mask) -> Iterator[tuple[int, int, int]]:
    """(row, start, stop) of each run of True along the rows."""
    padded_yx = np.zeros((edges_yx.shape[0], edges_yx.shape[1] + 2), dtype=np.int8)
    padded_yx[:, 1:-1] = edges_yx
    steps_yx = np.diff(padded_yx, axis=1)
    rows, starts = np.nonzero(steps_yx == 1)
    _, stops = np.nonzero(steps_yx == -1)
    yield from zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)


def _scale_bar(width_mm: float, height_mm: float) -> str:
    length_mm = 50 if width_mm > 150 else 20
    size = 0.045 * height_mm
    left, bottom = width_mm - length_mm - size, height_mm - size
    return (
        '<g class="scale"><path vector-effect="non-scaling-stroke" '
        f'd="M{left:.6g} {bottom:.6g}h{length_mm}"/>'
        f'<text x="{left + length_mm / 2:.6g}" y="{bottom - 0.4 * size:.6g}" font-size="{size:.6g}" '
        f'text-anchor="middle">{length_mm} mm</text></g>'
    )

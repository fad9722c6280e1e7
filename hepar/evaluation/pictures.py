"""Pictures for the report: slices with mask outlines, as one SVG that embeds the images.

A single slice keeps its resolution as a greyscale PNG; those that are scrolled through are JPEGs. The outlines are
vectors along the pixel edges, so they are exact and can be switched off by style.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray
from PIL import Image

from hepar.evaluation.outlines import crop_box, outline_paths
from hepar.evaluation.slices import CaseSlice
from hepar.evaluation.stacks import ROLES, SliceStack

MAX_PNG_BYTES = 60_000
MAX_CORNERS = 6_000  # of the outlines of a single slice
MAX_STACK_CORNERS = 40_000  # of all slices of a case
_GREY_LEVELS = 64  # finer steps are invisible beside an outline, and their noise doubles the file size


def slice_svg(case_slice: CaseSlice, distances_known: bool) -> str:
    """An SVG of the slice, cropped to the masks plus a margin, with outlines and, if distances are known, a scale bar.

    Outlines are paths with the classes `liver` or `tumour` and `reference` or `prediction`. Empty and unknown masks
    have no outline; if there is no outline at all, the whole slice is shown. Outlines of more than `MAX_CORNERS`
    corners are coarser than the pixels.
    """
    occupied_yx = np.logical_or.reduce([*case_slice.liver.masks_yx, *case_slice.tumour.masks_yx])
    box = crop_box(occupied_yx, case_slice.spacing_yx_mm)
    image_yx = case_slice.image_yx[box]
    masks_kyx = [
        np.zeros(image_yx.shape, np.bool_) if mask_yx is None else mask_yx[box]
        for pair in (case_slice.liver, case_slice.tumour)
        for mask_yx in (pair.reference_yx, pair.prediction_yx)
    ]
    paths = outline_paths(masks_kyx, MAX_CORNERS)
    size_mm = _size_mm(image_yx.shape, case_slice.spacing_yx_mm)
    content = [
        _image(encode_png(image_yx), "png", size_mm),
        _outlines(paths, case_slice.spacing_yx_mm),
    ]
    return _svg(f"Slice {case_slice.index_z} of {case_slice.case_id}", size_mm, content, distances_known)


def stack_svg(case_id: str, stack: SliceStack, distances_known: bool) -> str:
    """An SVG of all slices of a stack, as groups of the class `slice` with their index in `data-z`.

    The key slice has the class `current`; style hides the others. Outlines are those of `slice_svg`, with at most
    `MAX_STACK_CORNERS` corners in all slices together.
    """
    size_mm = _size_mm(stack.size_yx, stack.spacing_yx_mm)
    paths = outline_paths(list(stack.masks().reshape(-1, *stack.size_yx)), MAX_STACK_CORNERS)
    groups = []
    for position, (index_z, jpeg) in enumerate(zip(stack.indices_z, stack.jpegs, strict=True)):
        own = paths[position * len(ROLES) : (position + 1) * len(ROLES)]
        name = "slice current" if position == stack.key else "slice"
        groups.append(
            f'<g class="{name}" data-z="{index_z}">{_image(jpeg, "jpeg", size_mm)}'
            f"{_outlines(own, stack.spacing_yx_mm)}</g>"
        )
    return _svg(f"Slices of {case_id}", size_mm, groups, distances_known)


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


def _size_mm(size_yx: Sequence[int], spacing_yx_mm: tuple[float, float]) -> tuple[float, float]:
    """Height and width."""
    return size_yx[0] * spacing_yx_mm[0], size_yx[1] * spacing_yx_mm[1]


def _svg(label: str, size_mm: tuple[float, float], content: Iterable[str], distances_known: bool) -> str:
    height_mm, width_mm = size_mm
    scale_bar = _scale_bar(width_mm, height_mm) if distances_known else ""
    head = f'<svg viewBox="0 0 {width_mm:.6g} {height_mm:.6g}" role="img" aria-label="{escape(label)}">'
    return "".join([head, *content, scale_bar, "</svg>"])


def _image(encoded: bytes, kind: str, size_mm: tuple[float, float]) -> str:
    height_mm, width_mm = size_mm
    return (
        f'<image width="{width_mm:.6g}" height="{height_mm:.6g}" preserveAspectRatio="none" '
        f'href="data:image/{kind};base64,{base64.b64encode(encoded).decode("ascii")}"/>'
    )


def _outlines(paths: Sequence[str], spacing_yx_mm: tuple[float, float]) -> str:
    """The outlines of one slice, in the order of `ROLES`: a prediction is drawn over its reference, whose line is
    wider, so that both are visible where they agree."""
    spacing_y_mm, spacing_x_mm = spacing_yx_mm
    drawn = [
        f'<path class="{structure} {role}" vector-effect="non-scaling-stroke" d="{path}"/>'
        for (structure, role), path in zip(ROLES, paths, strict=True)
        if path
    ]
    return f'<g transform="scale({spacing_x_mm:.6g} {spacing_y_mm:.6g})">{"".join(drawn)}</g>' if drawn else ""


def scale_bar_mm(width_mm: float) -> int:
    """The length of the scale bar of a picture."""
    return 50 if width_mm > 150 else 20


def _scale_bar(width_mm: float, height_mm: float) -> str:
    length_mm = scale_bar_mm(width_mm)
    size = 0.045 * height_mm
    left, bottom = width_mm - length_mm - size, height_mm - size
    return (
        '<g class="scale"><path vector-effect="non-scaling-stroke" '
        f'd="M{left:.6g} {bottom:.6g}h{length_mm}"/>'
        f'<text x="{left + length_mm / 2:.6g}" y="{bottom - 0.4 * size:.6g}" font-size="{size:.6g}" '
        f'text-anchor="middle">{length_mm} mm</text></g>'
    )

"""The slices of a case that a reader scrolls through: downsampled images and exact masks, compressed.

Legend: n slices, k masks in the order of `ROLES`.
"""

from __future__ import annotations

import io
import itertools
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hepar.cases import STRUCTURES
from hepar.evaluation.label_pairs import SegmentedCase
from hepar.evaluation.outlines import crop_box
from hepar.imaging.display import scale_to_window
from hepar.imaging.masks import Mask

MAX_SLICES = 40
MAX_STACK_BYTES = 240_000  # of the images
_MAX_SIDE = 256
_QUALITY = 60
_MARGIN_SLICES = 1
ROLES = tuple(itertools.product(STRUCTURES, ("reference", "prediction")))


@dataclass(frozen=True)
class SliceStack:
    """At most `MAX_SLICES` slices of a case, cropped to its masks and ordered from the feet to the head.

    `key` is the position of the slice that is shown first. `jpegs` are greyscale, at most `MAX_STACK_BYTES` together.
    """

    indices_z: tuple[int, ...]
    key: int
    size_yx: tuple[int, int]
    spacing_yx_mm: tuple[float, float]
    jpegs: tuple[bytes, ...]
    packed: bytes

    def masks(self) -> Mask:
        """The masks, bool nkyx with k in the order of `ROLES`, empty where a reference is unknown."""
        shape = (len(self.indices_z), len(ROLES), *self.size_yx)
        bits = np.frombuffer(zlib.decompress(self.packed), dtype=np.uint8)
        return np.unpackbits(bits, count=int(np.prod(shape))).astype(np.bool_).reshape(shape)


def stack_slices(
    case: SegmentedCase,
    image_zyx: NDArray[np.floating] | NDArray[np.integer],
    window: tuple[float, float],
    index_z: int,
) -> SliceStack:
    """The slices through the masks of a case, evenly spaced if there are more than `MAX_SLICES`, `index_z` among them.

    Without any mask they are those of the whole scan. `window` is scaled to black and white. Shapes must agree.
    """
    volumes = [
        (pair.prediction_zyx if role == "prediction" else pair.reference_zyx)
        for pair, role in itertools.product((case.liver, case.tumour), ("reference", "prediction"))
    ]
    known = [mask_zyx for mask_zyx in volumes if mask_zyx is not None]
    indices_z = _choose([bool(occupied) for occupied in _any(known, axes=(1, 2))], index_z)
    box = crop_box(_any(known, axes=(0,)), case.spacing_zyx_mm[1:])
    size_yx = (box[0].stop - box[0].start, box[1].stop - box[1].start)
    masks_nkyx = np.zeros((len(indices_z), len(ROLES), *size_yx), dtype=np.bool_)
    for k, mask_zyx in enumerate(volumes):
        if mask_zyx is not None:
            masks_nkyx[:, k] = mask_zyx[(list(indices_z), *box)]
    return SliceStack(
        indices_z=indices_z,
        key=indices_z.index(index_z),
        size_yx=size_yx,
        spacing_yx_mm=case.spacing_zyx_mm[1:],
        jpegs=_encode([scale_to_window(image_zyx[(z, *box)], window) for z in indices_z]),
        packed=zlib.compress(np.packbits(masks_nkyx).tobytes(), level=1),
    )


def _any(masks_zyx: list[Mask], axes: tuple[int, ...]) -> Mask:
    """Where any of the masks is set along the axes; there is at least one mask."""
    return np.asarray(np.logical_or.reduce([mask_zyx.any(axis=axes) for mask_zyx in masks_zyx]))


def _choose(occupied_z: list[bool], index_z: int) -> tuple[int, ...]:
    """The indices of the slices to show."""
    found = [z for z, occupied in enumerate(occupied_z) if occupied] or list(range(len(occupied_z)))
    low = max(0, min(*found, index_z) - _MARGIN_SLICES)
    high = min(len(occupied_z) - 1, max(*found, index_z) + _MARGIN_SLICES)
    if high - low < MAX_SLICES:
        return tuple(range(low, high + 1))
    spread = np.linspace(low, high, MAX_SLICES - 1).round().astype(int).tolist()
    return tuple(sorted({*spread, index_z}))


def _encode(images_nyx: list[NDArray[np.float32]]) -> tuple[bytes, ...]:
    """JPEGs of images in 0…1, downsampled until they fit."""
    greys = [Image.fromarray(np.round(image_yx * 255).astype(np.uint8)) for image_yx in images_nyx]
    shrink = min(1.0, _MAX_SIDE / max(greys[0].size))
    while True:
        size = tuple(max(1, round(side * shrink)) for side in greys[0].size)
        jpegs = tuple(_jpeg(grey, (size[0], size[1])) for grey in greys)
        if sum(map(len, jpegs)) <= MAX_STACK_BYTES or size == (1, 1):
            return jpegs
        shrink *= 0.85


def _jpeg(grey: Image.Image, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    shown = grey if grey.size == size else grey.resize(size, Image.Resampling.BOX)
    shown.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()

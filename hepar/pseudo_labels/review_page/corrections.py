"""Corrected masks that a reviewer uploads: checked against the case's image, and stored by their hash."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import numpy as np

from hepar.errors import DataError
from hepar.imaging import headers
from hepar.imaging.grid_rules import size_text
from hepar.imaging.masks import values_beside_0_and_1
from hepar.imaging.volumes import Geometry, canonical, grid_difference, read_image, to_array, write_image
from hepar.pseudo_labels.review_page.queue import QueueItem


def store_mask(item: QueueItem, uploaded: Path, folder: Path) -> str:
    """Check a corrected mask and write it, compressed, to `folder`; returns its SHA-256, which is its name there.

    The mask's axes may be permuted or flipped against the image's, as some tools leave them. Raises DataError if the
    mask cannot be read, is not on the image's grid, holds values other than 0 and 1, or is empty.
    """
    case_id, grid = item.case.case_id, Geometry.of(read_image(item.files["image"]))
    size_xyz = headers.read_header(uploaded).size_xyz
    if sorted(size_xyz) != sorted(grid.size_zyx):  # before the voxels take memory
        raise DataError(
            f"case {case_id}: the mask is {size_text(size_xyz[::-1])} but the image is {size_text(grid.size_zyx)}"
        )
    mask = canonical(read_image(uploaded))
    own = Geometry.of(mask)
    if not np.allclose(own.direction, grid.direction, atol=1e-3):
        raise DataError(f"case {case_id}: the mask is rotated: its axes do not follow those of the image")
    if difference := grid_difference(own, grid):
        raise DataError(f"case {case_id}: {difference}")
    mask_zyx = to_array(mask)
    if other := values_beside_0_and_1(mask_zyx):
        raise DataError(f"case {case_id}: the mask has the value {other[0]:g} but must have only 0 and 1")
    if not mask_zyx.any():
        raise DataError(f"case {case_id}: the mask is empty; reject the pseudo-liver instead")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{os.getpid()}-{secrets.token_hex(4)}.nii.gz"
    write_image(mask, partial)
    with partial.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    partial.replace(folder / f"{digest}.nii.gz")
    return digest

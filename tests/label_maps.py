"""Folders of small label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHAPE = (6, 12, 14)
SPACING_ZYX_MM = (4.0, 2.0, 2.0)
VOXEL_ML = 0.016


def label_map(liver: tuple[int, int] = (2, 12), tumour: tuple[int, int] | None = (4, 6)) -> np.ndarray:
    """Boxes of 4 × 8 voxels zy, 1 in the columns of the liver and 2 in those of the tumour, from first to last."""
    labels_zyx = np.zeros(SHAPE, np.uint8)
    labels_zyx[1:5, 2:10, slice(*liver)] = 1
    if tumour is not None:
        labels_zyx[1:5, 2:10, slice(*tumour)] = 2
    return labels_zyx


def write_labels(path: Path, labels_zyx: np.ndarray, spacing_zyx_mm: tuple[float, ...] = SPACING_ZYX_MM) -> None:
    """Write a label map, and its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels_zyx)
    image.SetSpacing(spacing_zyx_mm[::-1])
    sitk.WriteImage(image, str(path))

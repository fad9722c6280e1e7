"""One case on disk made of boxes: a manual liver with a manual tumour in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from hepar.cases import Case, LabelState, Modality, Split
from hepar.imaging.volumes import write_image
from hepar.runtime.artifacts import sha256_file


def volume(array_zyx: npt.NDArray[Any]) -> sitk.Image:
    """An array as an image with 2 mm voxels."""
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing((2.0, 2.0, 2.0))
    return image


def box(start: int, stop: int) -> npt.NDArray[np.uint8]:
    """A mask of 16³ voxels, 1 from `start` to `stop` along each axis."""
    mask_zyx = np.zeros((16, 16, 16), np.uint8)
    mask_zyx[start:stop, start:stop, start:stop] = 1
    return mask_zyx


def write_noise(path: Path, seed: int = 0) -> None:
    """Writes a scan of 16³ voxels that shows contrast in every window, so that a network sees all of it."""
    write_image(volume(np.random.default_rng(seed).integers(0, 200, (16, 16, 16)).astype(np.int16)), path)


def write_case(folder: Path) -> Case:
    """Writes a case with a manual liver of 8³ voxels and a manual tumour of 2³ in it into `folder/cohort`."""
    arrays = {"image": (box(3, 13) * 60).astype(np.int16), "liver": box(4, 12), "tumour": box(6, 8)}
    for name, array_zyx in arrays.items():
        write_image(volume(array_zyx), folder / "cohort" / f"{name}.nii.gz")
    return Case(
        case_id="a",
        patient_id="p",
        source="s",
        modality=Modality.CT,
        sequence="",
        image="image.nii.gz",
        liver="liver.nii.gz",
        tumour="tumour.nii.gz",
        liver_state=LabelState.MANUAL,
        tumour_state=LabelState.MANUAL,
        split=Split.TRAIN,
        spacing_mm=(2.0, 2.0, 2.0),
        size=(16, 16, 16),
        **{f"{name}_sha256": sha256_file(folder / "cohort" / f"{name}.nii.gz") for name in arrays},
    )

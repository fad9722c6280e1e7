"""One case in files, of boxes: a manual liver with a manual tumour in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hepar.cases import Case, LabelState, Modality, Split
from hepar.imaging.volumes import write_image
from hepar.runtime.artifacts import sha256_file


def volume(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.0))
    return image


def box(start: int, stop: int) -> np.ndarray:
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[start:stop, start:stop, start:stop] = 1
    return mask


def write_case(folder: Path) -> Case:
    """A case with a manual liver of 8³ voxels and a manual tumour of 2³ in it; its files lie in `folder/cohort`."""
    files = {"image": (box(3, 13) * 60).astype(np.int16), "liver": box(4, 12), "tumour": box(6, 8)}
    for name, array in files.items():
        write_image(volume(array), folder / "cohort" / f"{name}.nii.gz")
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
        **{f"{name}_sha256": sha256_file(folder / "cohort" / f"{name}.nii.gz") for name in files},
    )

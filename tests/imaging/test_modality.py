"""The modality by voxel values: what is unmistakable, what is asked for, and what contradicts a declaration.

Small synthetic scans have the shape of real histograms; real scans, and what others make of them, are tested where the
data lie.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.imaging.modality import find_contradiction, guess_evidence, guess_modality, is_mask
from hepar.imaging.volumes import to_array
from hepar.ingest.sources.table import read_table

Voxels = npt.NDArray[np.generic]
SCAN = Path("scan.nii.gz")
WINDOW_HU = (-160, 240)


def ct() -> Voxels:
    """Air, fat, soft tissue and bone, each with noise: 40, 20, 35 and 5 % of the voxels; int16."""
    rng = np.random.default_rng(1)
    tissue_hu = rng.choice([-1000, -100, 60, 450], p=[0.4, 0.2, 0.35, 0.05], size=(16, 24, 24))
    return np.asarray(np.clip(np.rint(tissue_hu + rng.normal(0, 20, tissue_hu.shape)), -1024, None), np.int16)


def mr() -> Voxels:
    """Noise in air, and tissues whose intensities differ by multiples; int16."""
    rng = np.random.default_rng(1)
    tissue = rng.choice([0, 90, 200, 350, 600, 900], p=[0.4, 0.15, 0.15, 0.15, 0.1, 0.05], size=(16, 24, 24))
    real, imaginary = tissue + rng.normal(0, 12, tissue.shape), rng.normal(0, 12, tissue.shape)
    return np.asarray(np.rint(np.hypot(real, imaginary)), np.int16)


def scaled_to_bytes(voxels: Voxels) -> Voxels:
    low, high = WINDOW_HU
    return np.asarray(np.rint((np.clip(voxels, low, high) - low) * (255.0 / (high - low))), np.uint8)


def z_scored(voxels: Voxels) -> Voxels:
    return np.asarray((voxels - np.mean(voxels)) / np.std(voxels), np.float32)


def padded(voxels: Voxels) -> Voxels:
    """Voxels outside the round field of view at -2000."""
    return np.where(np.indices(voxels.shape)[2] < 3, -2000, voxels)


CLEAR_CT: dict[str, Callable[[Voxels], Voxels]] = {"as stored": lambda a: a, "with padding": padded}
OBSCURED_CT: dict[str, Callable[[Voxels], Voxels]] = {
    "bytes": scaled_to_bytes,
    "with an offset of 1024": lambda a: a + 1024,
    "with an offset of 1000": lambda a: a + 1000,
    "clipped": lambda a: np.clip(a, *WINDOW_HU),
    "clipped, from 0": lambda a: np.clip(a, *WINDOW_HU) - WINDOW_HU[0],
    "clipped wider, from 0": lambda a: np.clip(a, -500, 500) + 500,
    "soft tissue alone": lambda a: np.clip(a, 0, 200),
    "window in 16 bits": lambda a: scaled_to_bytes(a).astype(np.uint16) * 257,
    "from 0 to 1": lambda a: ((a + 1024) / 4095).astype(np.float32),
    "z-scored": z_scored,
}
CLEAR_MR: dict[str, Callable[[Voxels], Voxels]] = {
    "as stored": lambda a: a,
    "from 0 to 1": lambda a: (a / np.max(a)).astype(np.float32),
    "times 20": lambda a: a * 20.0,
}
OBSCURED_MR: dict[str, Callable[[Voxels], Voxels]] = {
    "bytes": lambda a: np.clip(a / 4, 0, 255).astype(np.uint8),
    "z-scored": z_scored,
    "minus its mean": lambda a: np.rint(a - np.mean(a)),
    "minus 1000": lambda a: a - 1000,
    "minus 1024": lambda a: a - 1024,
    "masked": lambda a: np.where(a < 60, 0, a),
}


def image_of(voxels: Voxels) -> sitk.Image:
    return sitk.GetImageFromArray(voxels)


def asks(voxels: Voxels) -> bool:
    """Whether the modality is asked for; False if it is guessed."""
    try:
        guess_modality(image_of(voxels), SCAN)
    except DataError as error:
        return "pass --modality CT or MR" in str(error)
    return False


@pytest.mark.parametrize("edit", CLEAR_CT.values(), ids=CLEAR_CT)
def test_hu_with_air_and_soft_tissue_are_ct(edit: Callable[[Voxels], Voxels]) -> None:
    assert guess_modality(image_of(edit(ct())), SCAN) == Modality.CT


@pytest.mark.parametrize("edit", CLEAR_MR.values(), ids=CLEAR_MR)
def test_magnitudes_of_many_values_are_mr(edit: Callable[[Voxels], Voxels]) -> None:
    assert guess_modality(image_of(edit(mr())), SCAN) == Modality.MR


def test_a_guess_says_what_it_rests_on() -> None:
    air, bone = np.mean(ct() < -900), np.mean(ct() > 300)  # the rest, fat and soft tissue, is what a CT's body is of
    alike = f"{1 - bone / (1 - air):.0%} of the body as dense as soft tissue"
    shown = guess_evidence(image_of(ct()), Modality.CT)
    assert shown == f"{air:.0%} of the voxels are as dark as air in HU, and {alike}"
    found = guess_evidence(image_of(mr()), Modality.MR)
    assert found == f"values from {mr().min()} to {mr().max()} that are no HU, and tissues that differ by multiples"


def test_air_and_fat_without_soft_tissue_are_not_taken_for_a_ct() -> None:
    voxels = ct()
    assert asks(np.where(voxels > -500, -100 + voxels % 40, voxels))


@pytest.mark.parametrize("edit", OBSCURED_CT.values(), ids=OBSCURED_CT)
def test_the_modality_of_a_changed_ct_is_asked_for(edit: Callable[[Voxels], Voxels]) -> None:
    assert asks(edit(ct()))


@pytest.mark.parametrize("edit", OBSCURED_MR.values(), ids=OBSCURED_MR)
def test_the_modality_of_a_changed_mr_is_asked_for(edit: Callable[[Voxels], Voxels]) -> None:
    assert asks(edit(mr()))


def test_the_question_names_the_scan_and_its_values() -> None:
    voxels = np.arange(512).reshape(8, 8, 8) % 200
    with pytest.raises(
        DataError, match=r"^scan\.nii\.gz may be CT or MR by its values, 0 to 199: pass --modality "
    ) as asked:
        guess_modality(image_of(voxels.astype(np.uint8)), SCAN)
    assert str(pickle.loads(pickle.dumps(asked.value))) == str(asked.value)


def test_the_modality_of_an_image_without_values_cannot_be_guessed() -> None:
    assert to_array(sitk.Image()).size == 0
    for image in (sitk.Image(), image_of(np.full((4, 4, 4), np.nan, np.float32))):
        with pytest.raises(DataError, match=r"^scan\.nii\.gz has no voxels with a value$"):
            guess_modality(image, SCAN)


def test_a_declared_ct_has_values_below_zero() -> None:
    for edit in (CLEAR_CT["as stored"], CLEAR_CT["with padding"], OBSCURED_CT["clipped"]):
        assert find_contradiction(image_of(edit(ct())), Modality.CT) == ""
    for name in ("bytes", "with an offset of 1024", "clipped, from 0", "soft tissue alone", "from 0 to 1"):
        assert "are not HU" in find_contradiction(image_of(OBSCURED_CT[name](ct())), Modality.CT)
    assert "values from 0 to " in find_contradiction(image_of(np.clip(mr(), 0, None)), Modality.CT)


def test_a_declared_mr_may_be_signed_but_neither_hu_nor_a_window_of_hu() -> None:
    for edit in (CLEAR_MR["as stored"], OBSCURED_MR["z-scored"], OBSCURED_MR["minus its mean"]):
        assert find_contradiction(image_of(edit(mr())), Modality.MR) == ""
    bone_kept = np.clip(ct(), WINDOW_HU[0], None)
    for voxels in (ct(), padded(ct()), OBSCURED_CT["clipped"](ct()), bone_kept):
        assert find_contradiction(image_of(voxels), Modality.MR).endswith(" look like CT")


def test_no_real_scan_is_taken_for_the_other_modality_and_whole_ones_are_not_asked_for(real_data: Path) -> None:
    edits = {Modality.CT: {**CLEAR_CT, **OBSCURED_CT}, Modality.MR: {**CLEAR_MR, **OBSCURED_MR}}
    listed = read_table(real_data / "cohort.csv")
    assert {case.modality for case in listed} == set(Modality)
    for case in listed[::3]:
        image = case.image.read()
        voxels = to_array(image)
        assert find_contradiction(image, case.modality) == ""
        for name, edit in edits[case.modality].items():
            changed = edit(voxels)
            right = asks(changed) or guess_modality(image_of(changed), SCAN) == case.modality
            assert right, f"{case.case_id} {name}"
        whole = case.modality == Modality.MR or voxels.min() < -900  # the CT of LiTS are clipped to a window
        assert asks(voxels) != whole, case.case_id


def test_a_mask_has_the_values_0_and_one_above() -> None:
    inside = np.zeros((4, 5, 6), np.uint8)
    assert not is_mask(sitk.GetImageFromArray(inside))
    inside[1, 2, 3] = 255
    assert is_mask(sitk.GetImageFromArray(inside))
    assert is_mask(sitk.GetImageFromArray(np.ones((4, 5, 6), np.float32)))
    inside[1, 2, 4] = 1
    assert not is_mask(sitk.GetImageFromArray(inside))
    assert not is_mask(sitk.GetImageFromArray(-inside.astype(np.int16)))
    assert not is_mask(sitk.GetImageFromArray(ct()))

"""Look-alikes: they change the image of known livers alone, and each has the shape that tells it from a tumour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.training import look_alikes
from hepar.training.canvas import Canvas, canvas_of_liver
from hepar.training.look_alikes import LOOK_ALIKES, add_look_alikes
from hepar.training.sampling import Patch

PLAN = PreprocessingPlan(spacing_zyx_mm=(3.0, 3.0, 3.0), window_hu=(-45.0, 160.0), mr_percentiles=(2.0, 98.0))
LEVEL, NOISE = 0.3, 0.05
SEEDS = range(25)
Kind = Callable[[Canvas, np.random.Generator], None]


def patch(modality: Modality = Modality.CT, noise: float = NOISE) -> Patch:
    """A block of liver under air, its weight 0 on one side; a bright vessel runs through it along x."""
    rng = np.random.default_rng(0)
    shape = (32, 48, 48)
    image_zyx = rng.normal(LEVEL, noise, shape).astype(np.float32)
    target_rzyx, weight_rzyx = np.zeros((2, *shape), np.float32), np.ones((2, *shape), np.float32)
    target_rzyx[LIVER, 4:26, 6:42, 6:42] = 1
    weight_rzyx[LIVER, :, :, 36:] = 0
    image_zyx[target_rzyx[LIVER] == 0] = -1
    image_zyx[14:16, 23:25, 6:42] += 0.4
    return Patch(image_zyx, target_rzyx, weight_rzyx, modality)


def change(kind: Kind, before: Patch, seed: int) -> npt.NDArray[np.float32]:
    """What one finding adds to the image."""
    canvas = canvas_of_liver(before, PLAN)
    assert canvas is not None
    kind(canvas, np.random.default_rng(seed))
    return np.asarray(canvas.patch.image_zyx - before.image_zyx)


def extent_mm(mask_zyx: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Standard deviations of the voxels of a mask along its principal axes, ascending."""
    return np.sqrt(np.linalg.eigvalsh(np.cov(np.argwhere(mask_zyx).T * 3.0)))


def inside(mask_zyx: npt.NDArray[np.bool_]) -> bool:
    """Whether a mask is clear of the border of the known liver, so that nothing was cut off."""
    liver_zyx = np.zeros_like(mask_zyx)
    liver_zyx[5:25, 7:41, 7:35] = True
    return bool(mask_zyx.sum() > 30 and not (mask_zyx & ~liver_zyx).any())


@pytest.mark.parametrize("modality", [Modality.CT, Modality.MR])
def test_only_the_image_of_the_known_liver_changes(modality: Modality) -> None:
    before = patch(modality)
    known_zyx = (before.target_rzyx[LIVER] > 0) & (before.weight_rzyx[LIVER] > 0)
    changed = 0
    for seed in SEEDS:
        after = add_look_alikes(before, PLAN, np.random.default_rng(seed))
        changed_zyx = after.image_zyx != before.image_zyx
        changed += bool(changed_zyx.any())
        assert known_zyx[changed_zyx].all()
        assert np.array_equal(after.target_rzyx, before.target_rzyx)
        assert np.array_equal(after.weight_rzyx, before.weight_rzyx)
        if modality == Modality.CT:
            assert np.abs(after.image_zyx[changed_zyx]).max(initial=0) <= 1
    assert changed > 0.8 * len(SEEDS)


@pytest.mark.parametrize("kind", [look_alikes.add_cyst, look_alikes.add_vessel, look_alikes.add_dome])
def test_what_replaces_the_liver_spares_tumours(kind: Kind) -> None:
    before = patch()
    before.target_rzyx[TUMOUR, 10:26, 10:38, 10:34] = 1
    for seed in SEEDS:
        assert not change(kind, before, seed)[before.target_rzyx[TUMOUR] > 0].any()


@pytest.mark.parametrize("modality", [Modality.CT, Modality.MR])
def test_a_cyst_is_an_even_ball_unlike_the_liver(modality: Modality) -> None:
    before, balls = patch(modality, noise=0.01), 0
    before.image_zyx[14:16, 23:25, 6:42] -= 0.4
    for seed in SEEDS:
        change_zyx = change(look_alikes.add_cyst, before, seed)
        cyst_zyx = np.abs(change_zyx) > 0.5 * np.abs(change_zyx).max()
        if not inside(cyst_zyx):
            continue
        balls += 1
        shortest, _, longest = extent_mm(cyst_zyx)
        core_zyx = ndimage.binary_erosion(cyst_zyx)
        assert longest < 1.3 * shortest
        assert not core_zyx.any() or change_zyx[core_zyx].std() < 0.03
        assert np.abs(change_zyx).max() > 0.35
        assert modality == Modality.MR or change_zyx.min() < -0.35
    assert balls > 5


def test_a_vessel_is_a_tube() -> None:
    before, tubes = patch(noise=0.02), []
    before.image_zyx[14:16, 23:25, 6:42] -= 0.4
    for seed in range(60):
        change_zyx = ndimage.uniform_filter(change(look_alikes.add_vessel, before, seed), 3)
        vessel_zyx = np.abs(change_zyx) > 0.4 * np.abs(change_zyx).max()
        if inside(vessel_zyx):
            shortest, _, longest = extent_mm(vessel_zyx)
            tubes.append(longest / shortest)
    assert len(tubes) > 5
    assert np.median(tubes) > 3


def test_focal_fat_touches_the_capsule_and_leaves_vessels_and_noise_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(look_alikes, "FAT_LENGTH_MM", (12.0, 12.0))  # shorter than the liver is deep
    before = patch()
    known_zyx = (before.target_rzyx[LIVER] > 0) & (before.weight_rzyx[LIVER] > 0)
    capsule_zyx = known_zyx & ~ndimage.binary_erosion(before.target_rzyx[LIVER] > 0)
    for seed in SEEDS:
        change_zyx = change(look_alikes.add_focal_fat, before, seed)
        whole_zyx = np.abs(change_zyx) > 0.99 * np.abs(change_zyx).max()
        assert np.abs(change_zyx[capsule_zyx]).max() > 0.5 * np.abs(change_zyx).max()
        assert change_zyx[whole_zyx].std() < 0.01
        assert 0.05 < np.abs(change_zyx).max() < 0.35


def test_the_dome_darkens_the_two_top_slices_alone() -> None:
    changed_z = np.zeros(32, bool)
    for seed in SEEDS:
        change_zyx = change(look_alikes.add_dome, patch(), seed)
        changed_z |= (change_zyx != 0).any((1, 2))
        assert change_zyx.max() <= 0
    assert np.flatnonzero(changed_z).tolist() == [24, 25]


def test_without_anything_darker_above_there_is_no_dome() -> None:
    before = patch()
    before.image_zyx[before.target_rzyx[LIVER] == 0] = LEVEL
    assert not any(change(look_alikes.add_dome, before, seed).any() for seed in SEEDS)
    whole = patch()
    whole.target_rzyx[LIVER] = 1
    assert not any(change(look_alikes.add_dome, whole, seed).any() for seed in SEEDS)


def test_streaks_are_dark_bands_that_cross_the_liver_in_ct_only() -> None:
    assert look_alikes.add_streaks in LOOK_ALIKES[Modality.CT]
    assert look_alikes.add_streaks not in LOOK_ALIKES[Modality.MR]
    lengths_mm = []
    for seed in SEEDS:
        change_zyx = change(look_alikes.add_streaks, patch(), seed)
        assert change_zyx.max() <= 0
        darkest = np.unravel_index(change_zyx.argmin(), change_zyx.shape)[0]
        streak_yx = change_zyx[darkest] < 0.5 * change_zyx.min()
        lengths_mm.append(3.0 * np.ptp(np.argwhere(streak_yx), axis=0).max())
    assert np.median(lengths_mm) > 60


def test_equal_seeds_give_equal_findings_and_the_input_stays_as_it_is() -> None:
    given = patch()
    image_zyx = given.image_zyx.copy()
    first, second = (add_look_alikes(given, PLAN, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.image_zyx, second.image_zyx)
    assert np.array_equal(given.image_zyx, image_zyx)
    assert not np.array_equal(first.image_zyx, image_zyx)


def test_without_known_liver_the_patch_stays_as_it_is() -> None:
    given = patch()
    unknown = replace(given, weight_rzyx=np.zeros_like(given.weight_rzyx))
    assert add_look_alikes(unknown, PLAN, np.random.default_rng(0)) is unknown


@pytest.mark.parametrize("window_hu", [(-45.0, 160.0), (-160.0, 240.0), (-17.0, 201.0)])
def test_a_cyst_in_ct_is_water_whatever_the_window(window_hu: tuple[float, float]) -> None:
    low, high = window_hu
    for seed in SEEDS:
        canvas = canvas_of_liver(patch(noise=0.0), PLAN.model_copy(update={"window_hu": window_hu}))
        assert canvas is not None
        look_alikes.add_cyst(canvas, np.random.default_rng(seed))
        darkest = canvas.patch.image_zyx[canvas.paintable_zyx].min()
        hu = (darkest + 1) * (high - low) / 2 + low
        assert -1 <= hu <= 15 + 1

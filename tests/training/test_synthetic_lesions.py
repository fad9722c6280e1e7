"""Synthetic lesions: where they lie, what they teach, and that a reader could see them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.training import synthetic_lesions
from hepar.training.canvas import MIN_VOXELS
from hepar.training.look_alikes import add_look_alikes
from hepar.training.sampling import Patch
from hepar.training.synthetic_lesions import add_synthetic_lesions

PLAN = PreprocessingPlan(spacing_zyx_mm=(4.0, 3.0, 3.0), window_hu=(-45.0, 160.0), mr_percentiles=(2.0, 98.0))
LEVEL = 0.2  # of the liver
SEEDS = range(30)


def patch(modality: Modality = Modality.CT, noise: float = 0.05) -> Patch:
    """A noisy liver with a tumour in a darker body, all labels known."""
    rng = np.random.default_rng(0)
    shape = (32, 48, 48)
    image_zyx = rng.normal(LEVEL, noise, shape).astype(np.float32)
    target_rzyx, weight_rzyx = np.zeros((2, *shape), np.float32), np.ones((2, *shape), np.float32)
    target_rzyx[LIVER, 6:26, 8:40, 8:40] = 1
    target_rzyx[TUMOUR, 10:14, 12:16, 12:16] = 1
    image_zyx[target_rzyx[TUMOUR] > 0] -= 0.3
    image_zyx[target_rzyx[LIVER] == 0] -= 1.1 if modality == Modality.CT else 3
    return Patch(image_zyx, target_rzyx, weight_rzyx, modality)


def partly_known() -> Patch:
    """A third of the liver is unknown, and so are tumours in all of it but the one that is there."""
    known = patch()
    known.weight_rzyx[LIVER, :, :, 30:40] = 0
    known.weight_rzyx[LIVER, :, :, 20:30] = 0.5
    known.weight_rzyx[TUMOUR][(known.target_rzyx[LIVER] > 0) & (known.target_rzyx[TUMOUR] == 0)] = 0
    return known


def copied(given: Patch) -> Patch:
    return replace(
        given,
        image_zyx=given.image_zyx.copy(),
        target_rzyx=given.target_rzyx.copy(),
        weight_rzyx=given.weight_rzyx.copy(),
    )


def same(a: Patch, b: Patch) -> bool:
    return (
        np.array_equal(a.image_zyx, b.image_zyx)
        and np.array_equal(a.target_rzyx, b.target_rzyx)
        and np.array_equal(a.weight_rzyx, b.weight_rzyx)
    )


def painted(given: Patch, seed: int) -> Patch:
    return add_synthetic_lesions(given, PLAN, np.random.default_rng(seed))


def new_tumour(before: Patch, after: Patch) -> npt.NDArray[np.bool_]:
    return (after.target_rzyx[TUMOUR] > 0) & (before.target_rzyx[TUMOUR] == 0)


@pytest.mark.parametrize("modality", [Modality.CT, Modality.MR])
def test_lesions_lie_in_known_liver_and_nest_in_it(modality: Modality) -> None:
    before = replace(partly_known(), modality=modality)
    known_zyx = before.weight_rzyx[LIVER] > 0
    painted_once = False
    for seed in SEEDS:
        after = painted(before, seed)
        new_zyx = new_tumour(before, after)
        painted_once |= bool(new_zyx.any())
        grown_zyx = (after.target_rzyx[LIVER] > 0) & (before.target_rzyx[LIVER] == 0)
        assert known_zyx[new_zyx].all()
        assert (after.target_rzyx[LIVER][new_zyx] > 0).all()
        assert new_zyx[grown_zyx].all()
        assert (after.target_rzyx >= before.target_rzyx).all()
        changed_zyx = after.image_zyx != before.image_zyx
        assert known_zyx[changed_zyx].all()
        assert not (changed_zyx & (before.target_rzyx[TUMOUR] > 0)).any()
    assert painted_once


@pytest.mark.parametrize("exophytic_share", [0.0, 1.0])
def test_weights_never_change(exophytic_share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_lesions, "EXOPHYTIC_SHARE", exophytic_share)
    for before in (patch(), partly_known()):
        given_rzyx = before.weight_rzyx.copy()
        for seed in SEEDS:
            after = painted(before, seed)
            assert np.array_equal(after.weight_rzyx, given_rzyx)
            after = add_look_alikes(after, PLAN, np.random.default_rng(seed))
            assert np.array_equal(after.weight_rzyx, given_rzyx)


@pytest.mark.parametrize("exophytic_share", [0.0, 1.0])
@pytest.mark.parametrize("teacher", [False, True])
def test_where_tumours_are_unknown_a_lesion_teaches_the_liver_alone(
    exophytic_share: float, teacher: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher's pool knows no tumour anywhere; a liver of unknown state is known to be free of it beyond a margin."""
    monkeypatch.setattr(synthetic_lesions, "EXOPHYTIC_SHARE", exophytic_share)
    before = patch()
    before.target_rzyx[TUMOUR] = 0
    near_zyx = ndimage.binary_dilation(before.target_rzyx[LIVER] > 0, iterations=2)
    before.weight_rzyx[TUMOUR][np.ones_like(near_zyx) if teacher else near_zyx] = 0
    for seed in SEEDS:
        after = painted(before, seed)
        assert (after.target_rzyx[TUMOUR] > 0).any()
        assert not (after.target_rzyx[TUMOUR] * after.weight_rzyx[TUMOUR]).any()
        new_zyx = after.target_rzyx[TUMOUR] > 0
        assert (after.target_rzyx[LIVER] * after.weight_rzyx[LIVER])[new_zyx].all()


def test_where_tumours_are_known_a_lesion_is_a_positive_among_negatives() -> None:
    before = patch()
    for seed in SEEDS:
        after = painted(before, seed)
        new_zyx = new_tumour(before, after)
        around_zyx = ndimage.binary_dilation(new_zyx, iterations=2) & (after.target_rzyx[TUMOUR] == 0)
        assert after.weight_rzyx[TUMOUR][new_zyx].all()
        assert after.weight_rzyx[TUMOUR][around_zyx].all()
        assert around_zyx.any()


@pytest.mark.parametrize(("modality", "noise"), [(Modality.CT, 0.12), (Modality.MR, 0.3)])
def test_no_lesion_is_fainter_than_the_texture_of_the_liver(
    modality: Modality, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise is white, so its standard deviation is the local spread; the lesion's own noise is left to it."""
    monkeypatch.setattr(synthetic_lesions, "ISODENSE_SHARE", 0.0)
    before = patch(modality, noise)
    before.image_zyx[before.target_rzyx[LIVER] == 0] = -1 if modality == Modality.CT else -3
    contrasts = []
    for seed in range(60):
        after = painted(before, seed)
        lesions_zyx, count = ndimage.label(new_tumour(before, after))
        for number in range(1, count + 1):
            core_zyx = ndimage.binary_erosion(lesions_zyx == number)
            if core_zyx.sum() >= 30:
                square = np.mean((after.image_zyx[core_zyx] - LEVEL) ** 2) - noise**2 * 26 / 27
                contrasts.append(np.sqrt(max(square, 0)) / noise)
    assert len(contrasts) > 30
    assert np.quantile(contrasts, 0.05) > 1.7
    assert np.median(contrasts) > 2.0


def test_most_ct_lesions_are_darker_and_mr_lesions_are_both() -> None:
    for modality, low, high in ((Modality.CT, 0.6, 1.0), (Modality.MR, 0.25, 0.75)):
        before, darker = patch(modality), []
        for seed in range(60):
            after = painted(before, seed)
            if (new_zyx := new_tumour(before, after)).sum() >= 30:
                darker.append(float(np.median(after.image_zyx[new_zyx])) < LEVEL)
        assert len(darker) > 30
        assert low < np.mean(darker) < high


def test_in_a_liver_as_dark_as_water_lesions_are_brighter() -> None:
    before = patch()
    before.image_zyx[before.target_rzyx[LIVER] > 0] -= 0.75
    for seed in SEEDS:
        after = painted(before, seed)
        new_zyx = new_tumour(before, after) & (before.target_rzyx[LIVER] > 0)
        assert new_zyx.sum() < 30 or np.median(after.image_zyx[new_zyx]) > LEVEL - 0.75


def test_ct_stays_in_its_window() -> None:
    bright = patch()
    np.clip(bright.image_zyx + 0.75, -1, 1, out=bright.image_zyx)
    for seed in SEEDS:
        assert np.abs(painted(bright, seed).image_zyx).max() <= 1


def test_a_faint_lesion_has_a_rim_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_lesions, "ISODENSE_SHARE", 1.0)
    monkeypatch.setattr(synthetic_lesions, "EXOPHYTIC_SHARE", 0.0)
    monkeypatch.setattr(synthetic_lesions, "CALCIFIED_SHARE", 0.0)
    before, rims, cores = patch(), [], []
    for seed in range(80):
        after = painted(before, seed)
        lesions_zyx, count = ndimage.label(new_tumour(before, after))
        if count != 1 or (lesions_zyx > 0).sum() < 400:
            continue
        depth_zyx_mm = ndimage.distance_transform_edt(lesions_zyx > 0, sampling=PLAN.spacing_zyx_mm)
        change_zyx = np.abs(ndimage.uniform_filter(after.image_zyx, 3) - LEVEL)
        rims.append(change_zyx[(depth_zyx_mm > 2) & (depth_zyx_mm < 6)].mean())
        cores.append(change_zyx[depth_zyx_mm > 9].mean())
    assert len(rims) > 3
    assert np.median(rims) > 1.5 * np.median(cores)
    assert np.median(rims) > 2 * 0.05  # twice the noise


def test_an_exophytic_lesion_bulges_the_capsule_where_labels_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_lesions, "EXOPHYTIC_SHARE", 1.0)
    before, unknown_outside = patch(), patch()
    unknown_outside.weight_rzyx[LIVER][unknown_outside.target_rzyx[LIVER] == 0] = 0
    bulges = 0
    for seed in range(60):
        after = painted(before, seed)
        grown_zyx = (after.target_rzyx[LIVER] > 0) & (before.target_rzyx[LIVER] == 0)
        bulges += bool(grown_zyx.sum() > 30)
        assert (after.image_zyx != before.image_zyx)[grown_zyx].all()
        assert np.array_equal(painted(unknown_outside, seed).target_rzyx[LIVER], before.target_rzyx[LIVER])
    assert bulges > 10


def test_without_a_known_liver_lesions_lie_around_the_known_tumours() -> None:
    before = patch()
    before.target_rzyx[TUMOUR] = 0
    before.target_rzyx[TUMOUR, 12:16, 9:14, 20:25] = 1  # a voxel from the capsule
    liver_zyx = before.target_rzyx[LIVER] > 0
    before.target_rzyx[LIVER] = before.target_rzyx[TUMOUR]
    before.weight_rzyx[LIVER] = 0
    distance_zyx_mm = ndimage.distance_transform_edt(before.target_rzyx[TUMOUR] == 0, sampling=PLAN.spacing_zyx_mm)
    voxels = []
    for seed in SEEDS:
        after = painted(before, seed)
        new_zyx = new_tumour(before, after)
        voxels.append(int(new_zyx.sum()))
        assert not new_zyx.any() or distance_zyx_mm[new_zyx].max() <= 15
        assert liver_zyx[new_zyx].all()
        assert np.array_equal(after.target_rzyx[LIVER], before.target_rzyx[LIVER])
        assert np.array_equal(after.weight_rzyx, before.weight_rzyx)
    assert np.count_nonzero(voxels) > len(SEEDS) / 2


def test_the_input_stays_unchanged_and_equal_seeds_give_equal_lesions() -> None:
    given = patch()
    copy = copied(given)
    first, second = (painted(given, 3) for _ in range(2))
    assert same(given, copy)
    assert same(first, second)
    assert not same(first, given)


def test_without_enough_known_liver_the_patch_stays_as_it_is() -> None:
    given = patch()
    given.target_rzyx[TUMOUR] = 0
    given.weight_rzyx[LIVER] = 0
    assert painted(given, 0) is given
    given.weight_rzyx[LIVER].flat[np.flatnonzero(given.target_rzyx[LIVER])[: MIN_VOXELS - 1]] = 1
    assert painted(given, 0) is given
    given.weight_rzyx[LIVER].flat[np.flatnonzero(given.target_rzyx[LIVER])[:MIN_VOXELS]] = 1
    assert painted(given, 0) is not given

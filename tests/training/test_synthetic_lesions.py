"""Synthetic lesions: only inside known livers, known themselves, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.training.sampling import Patch
from hepar.training.synthetic_lesions import CONTRAST, MIN_LIVER_VOXELS, add_synthetic_lesions

SPACING_ZYX_MM = (4.0, 3.0, 3.0)


def patch(modality: Modality = Modality.CT) -> Patch:
    """A noisy liver in a darker body. A third of it is unknown, and so is the tumour in all of it but one lesion."""
    rng = np.random.default_rng(0)
    shape = (32, 48, 48)
    image_zyx = rng.normal(0.2, 0.05, shape).astype(np.float32)
    target_rzyx, weight_rzyx = np.zeros((2, *shape), np.float32), np.ones((2, *shape), np.float32)
    target_rzyx[LIVER, 6:26, 8:40, 8:40] = 1
    weight_rzyx[LIVER, :, :, 30:40] = 0
    weight_rzyx[LIVER, :, :, 20:30] = 0.5
    weight_rzyx[TUMOUR][target_rzyx[LIVER] > 0] = 0
    target_rzyx[TUMOUR, 10:14, 12:16, 12:16] = weight_rzyx[TUMOUR, 10:14, 12:16, 12:16] = 1
    image_zyx[target_rzyx[LIVER] == 0] -= 0.6
    return Patch(image_zyx, target_rzyx, weight_rzyx, modality)


def same(a: Patch, b: Patch) -> bool:
    return (
        np.array_equal(a.image_zyx, b.image_zyx)
        and np.array_equal(a.target_rzyx, b.target_rzyx)
        and np.array_equal(a.weight_rzyx, b.weight_rzyx)
    )


@pytest.mark.parametrize("modality", [Modality.CT, Modality.MR])
@pytest.mark.parametrize("seed", range(8))
def test_lesions_lie_in_known_liver_without_tumour(modality: Modality, seed: int) -> None:
    before = patch(modality)
    after = add_synthetic_lesions(before, SPACING_ZYX_MM, np.random.default_rng(seed))
    new = (after.target_rzyx[TUMOUR] > 0) & (before.target_rzyx[TUMOUR] == 0)
    allowed = (before.target_rzyx[LIVER] > 0) & (before.weight_rzyx[LIVER] > 0) & (before.target_rzyx[TUMOUR] == 0)
    assert new.any()
    assert not (new & ~allowed).any()
    assert np.array_equal(after.weight_rzyx[TUMOUR][new], before.weight_rzyx[LIVER][new])
    assert np.array_equal(after.weight_rzyx[TUMOUR][~new], before.weight_rzyx[TUMOUR][~new])
    assert np.array_equal(after.target_rzyx[TUMOUR][~new], before.target_rzyx[TUMOUR][~new])
    assert np.array_equal(after.target_rzyx[LIVER], before.target_rzyx[LIVER])
    assert np.array_equal(after.weight_rzyx[LIVER], before.weight_rzyx[LIVER])
    assert np.array_equal(after.image_zyx[~allowed], before.image_zyx[~allowed])


def test_a_lesion_differs_in_intensity_and_keeps_the_noise_of_the_liver() -> None:
    contrasts = []
    for seed in range(40):
        before = patch()
        after = add_synthetic_lesions(before, SPACING_ZYX_MM, np.random.default_rng(seed))
        new = (after.target_rzyx[TUMOUR] > 0) & (before.target_rzyx[TUMOUR] == 0)
        if new.sum() < 30:
            continue
        contrasts.append(float(np.median(after.image_zyx[new])) - 0.2)
        assert after.image_zyx[new].std() > 0.02
    darker = np.mean(np.array(contrasts) < 0)
    assert len(contrasts) > 20
    assert max(map(abs, contrasts)) < CONTRAST[1] + 0.1
    assert 0.6 < darker < 1


def test_ct_stays_in_its_window_and_mr_lesions_have_more_contrast() -> None:
    bright = patch()
    np.clip(bright.image_zyx + 0.75, -1, 1, out=bright.image_zyx)
    changes = {Modality.CT: 0.0, Modality.MR: 0.0}
    for seed in range(30):
        assert np.abs(add_synthetic_lesions(bright, SPACING_ZYX_MM, np.random.default_rng(seed)).image_zyx).max() <= 1
        for modality in changes:
            before = patch(modality)
            after = add_synthetic_lesions(before, SPACING_ZYX_MM, np.random.default_rng(seed))
            changes[modality] = max(changes[modality], float(np.abs(after.image_zyx - before.image_zyx).max()))
    assert changes[Modality.MR] > 1.2 * changes[Modality.CT]


def test_the_input_stays_unchanged_and_equal_seeds_give_equal_lesions() -> None:
    given = patch()
    copy = replace(
        given,
        image_zyx=given.image_zyx.copy(),
        target_rzyx=given.target_rzyx.copy(),
        weight_rzyx=given.weight_rzyx.copy(),
    )
    first, second = (add_synthetic_lesions(given, SPACING_ZYX_MM, np.random.default_rng(3)) for _ in range(2))
    assert same(given, copy)
    assert same(first, second)
    assert not same(first, given)


def test_without_enough_known_liver_the_patch_stays_as_it_is() -> None:
    given = patch()
    given.weight_rzyx[LIVER] = 0
    assert add_synthetic_lesions(given, SPACING_ZYX_MM, np.random.default_rng(0)) is given
    given.weight_rzyx[LIVER].flat[np.flatnonzero(given.target_rzyx[LIVER])[: MIN_LIVER_VOXELS - 1]] = 1
    assert add_synthetic_lesions(given, SPACING_ZYX_MM, np.random.default_rng(0)) is given

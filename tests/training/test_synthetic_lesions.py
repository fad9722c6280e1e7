"""Made-up lesions: inside known livers only, known themselves, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from hepar.cases import LIVER, TUMOUR, Modality
from hepar.training.sampling import Patch
from hepar.training.synthetic_lesions import FEWEST_LIVER_VOXELS, STRONGEST, with_lesions

SPACING = (4.0, 3.0, 3.0)


def patch(modality: Modality = Modality.CT) -> Patch:
    """A grainy liver in a darker body. A third of it is not known, nor is tumour in any of it but a marked lesion."""
    rng = np.random.default_rng(0)
    shape = (32, 48, 48)
    image = rng.normal(0.2, 0.05, shape).astype(np.float32)
    y, m = np.zeros((2, *shape), np.float32), np.ones((2, *shape), np.float32)
    y[LIVER, 6:26, 8:40, 8:40] = 1
    m[LIVER, :, :, 30:40] = 0
    m[LIVER, :, :, 20:30] = 0.5
    m[TUMOUR][y[LIVER] > 0] = 0
    y[TUMOUR, 10:14, 12:16, 12:16] = m[TUMOUR, 10:14, 12:16, 12:16] = 1
    image[y[LIVER] == 0] -= 0.6
    return Patch(image, y, m, modality)


@pytest.mark.parametrize("modality", [Modality.CT, Modality.MR])
@pytest.mark.parametrize("seed", range(8))
def test_lesions_lie_where_the_liver_is_known_and_no_tumour_is(modality: Modality, seed: int) -> None:
    before = patch(modality)
    after = with_lesions(before, SPACING, np.random.default_rng(seed))
    new = (after.y[TUMOUR] > 0) & (before.y[TUMOUR] == 0)
    allowed = (before.y[LIVER] > 0) & (before.m[LIVER] > 0) & (before.y[TUMOUR] == 0)
    assert new.any()
    assert not (new & ~allowed).any()
    assert np.array_equal(after.m[TUMOUR][new], before.m[LIVER][new])
    assert np.array_equal(after.m[TUMOUR][~new], before.m[TUMOUR][~new])
    assert np.array_equal(after.y[TUMOUR][~new], before.y[TUMOUR][~new])
    assert np.array_equal(after.y[LIVER], before.y[LIVER])
    assert np.array_equal(after.m[LIVER], before.m[LIVER])
    assert np.array_equal(after.image[~allowed], before.image[~allowed])


def test_a_lesion_has_another_brightness_and_the_grain_of_the_liver() -> None:
    contrasts = []
    for seed in range(40):
        before = patch()
        after = with_lesions(before, SPACING, np.random.default_rng(seed))
        new = (after.y[TUMOUR] > 0) & (before.y[TUMOUR] == 0)
        if new.sum() < 30:
            continue
        contrasts.append(float(np.median(after.image[new])) - 0.2)
        assert after.image[new].std() > 0.02
    darker = np.mean(np.array(contrasts) < 0)
    assert len(contrasts) > 20
    assert max(map(abs, contrasts)) < STRONGEST + 0.1
    assert 0.6 < darker < 1


def test_no_ct_leaves_its_window_and_mr_lesions_stand_out_more() -> None:
    bright = patch()
    np.clip(bright.image + 0.75, -1, 1, out=bright.image)
    changes = {Modality.CT: 0.0, Modality.MR: 0.0}
    for seed in range(30):
        assert np.abs(with_lesions(bright, SPACING, np.random.default_rng(seed)).image).max() <= 1
        for modality in changes:
            before = patch(modality)
            after = with_lesions(before, SPACING, np.random.default_rng(seed))
            changes[modality] = max(changes[modality], float(np.abs(after.image - before.image).max()))
    assert changes[Modality.MR] > 1.2 * changes[Modality.CT]


def test_the_given_patch_stays_as_it_was_and_a_seed_gives_the_same_again() -> None:
    given = patch()
    image, y, m = given.image.copy(), given.y.copy(), given.m.copy()
    first, second = (with_lesions(given, SPACING, np.random.default_rng(3)) for _ in range(2))
    for before, now in ((image, given.image), (y, given.y), (m, given.m)):
        assert np.array_equal(before, now)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.y, second.y)


def test_without_enough_known_liver_nothing_is_made_up() -> None:
    given = patch()
    given.m[LIVER] = 0
    assert with_lesions(given, SPACING, np.random.default_rng(0)) is given
    given.m[LIVER].flat[np.flatnonzero(given.y[LIVER])[: FEWEST_LIVER_VOXELS - 1]] = 1
    assert with_lesions(given, SPACING, np.random.default_rng(0)) is given

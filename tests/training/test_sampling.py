"""Patches: repeatable, balanced over modalities, sources and lesion sizes, and honest about what is not known."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_pool import Toy, toy_pool

from hepar.cases import LabelState, Modality
from hepar.errors import ArtifactError, DataError
from hepar.params import SamplingParams
from hepar.pool.table import FULL, Pool, PreprocessedArrays, Targets
from hepar.training.sampling import Patch, PatchSampler, cut

PATCH = (8, 8, 8)
ON_TUMOURS = SamplingParams(tumour_share=1.0, liver_share=0.0)
ON_LIVERS = SamplingParams(tumour_share=0.0, liver_share=1.0)
ANYWHERE = SamplingParams(tumour_share=0.0, liver_share=0.0)
MIXED = SamplingParams(tumour_share=0.34, liver_share=0.33)
CT, MR = Toy("ct"), Toy("mr", Modality.MR, level=10.0)


def sampler(pool: Pool, params: SamplingParams, seed: int = 1, memory_bytes: int = 2**24) -> PatchSampler:
    return PatchSampler(pool, pool.entries, PATCH, params, seed, memory_bytes)


def drawn(pool: Pool, params: SamplingParams, steps: int = 50) -> list[Patch]:
    """The patches of some steps, four each."""
    own = sampler(pool, params)
    return [patch for step in range(steps) for patch in own.batch(step, 4)]


def same(a: list[Patch], b: list[Patch]) -> bool:
    return all(
        np.array_equal(p.image, q.image) and np.array_equal(p.y, q.y) and np.array_equal(p.m, q.m)
        for p, q in zip(a, b, strict=True)
    )


def arrays(shape: tuple[int, int, int]) -> PreprocessedArrays:
    """A volume of distinct voxels 1, 2, … of which everything is known and everything is liver."""
    image = np.arange(1, 1 + np.prod(shape), dtype=np.float16).reshape(shape)
    return PreprocessedArrays(image, np.zeros(shape, np.uint8), np.array([[1, 0, FULL, FULL]], np.uint8), darkest=1.0)


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [CT, MR])
    forwards, backwards = sampler(pool, MIXED), sampler(pool, MIXED)
    first = [forwards.batch(step, 2) for step in range(6)]
    later = [backwards.batch(step, 2) for step in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(first, later, strict=True))
    assert not same(first[0], first[1])
    assert not same(first[0], sampler(pool, MIXED, seed=2).batch(0, 2))


def test_modalities_take_turns_also_across_batches_of_odd_size(tmp_path: Path) -> None:
    toys = [CT, Toy("ct-2"), Toy("ct-3"), MR]  # the one MR case has as many patches as the three CT cases
    own = sampler(toy_pool(tmp_path, toys), MIXED)
    order = ["MR" if patch.image.max() > 5 else "CT" for step in range(2) for patch in own.batch(step, 3)]
    assert order == ["CT", "MR", "CT", "MR", "CT", "MR"]


def test_patches_have_float_arrays_and_both_structures(tmp_path: Path) -> None:
    patch = sampler(toy_pool(tmp_path, [CT]), MIXED).batch(0, 1)[0]
    assert (patch.image.shape, patch.y.shape, patch.m.shape) == (PATCH, (2, *PATCH), (2, *PATCH))
    assert patch.image.dtype == patch.y.dtype == patch.m.dtype == np.float32
    assert patch.m.max() == 1


def test_every_patch_around_a_tumour_holds_tumour(tmp_path: Path) -> None:
    toy = Toy("ct", shape=(40, 40, 40), liver=((20, 20, 20), 18), lesions=(((30, 20, 20), 3),))
    assert all(patch.y[1].any() for patch in drawn(toy_pool(tmp_path, [toy]), ON_TUMOURS))


@pytest.mark.parametrize("state", [LabelState.UNKNOWN, LabelState.ABSENT])
def test_a_patch_is_never_centred_on_a_tumour_that_nobody_drew(tmp_path: Path, state: LabelState) -> None:
    drawn_by_hand, other = Toy("ct"), Toy("ct-2", level=10.0)
    pool = toy_pool(tmp_path, [drawn_by_hand, other])  # the arrays of both hold tumour
    entries = (pool.entries[0], replace(pool.entries[1], tumour_state=state))
    patches = drawn(replace(pool, entries=entries), ON_TUMOURS)
    assert all(patch.image.max() < 5 for patch in patches)


def test_without_any_drawn_tumour_the_share_of_tumours_goes_elsewhere(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("ct", tumour_state=LabelState.UNKNOWN)])
    assert len(drawn(pool, ON_TUMOURS, steps=2)) == 8


def test_a_small_lesion_is_seen_as_often_as_several_large_ones(tmp_path: Path) -> None:
    # a ball with a radius of 6 voxels of 2 mm is 24 mm wide, one with a radius of 2 is 8 mm
    large = [Toy(f"large-{n}", lesions=(((12, 12, 12), 6.0),)) for n in range(3)]
    pool = toy_pool(tmp_path, [*large, Toy("small", lesions=(((12, 12, 12), 2.0),), level=10.0)])
    share = np.mean([patch.image.max() > 5 for patch in drawn(pool, ON_TUMOURS)])
    assert share == pytest.approx(0.5, abs=0.12)  # by lesions it would be 0.25, by voxels 0.01


def test_a_lesion_of_a_few_voxels_is_not_centred_on(tmp_path: Path) -> None:
    speck, clear = ((6, 12, 12), 1.0), ((16, 12, 12), 2.0)  # 7 and 33 voxels
    pool = toy_pool(tmp_path, [Toy("ct", lesions=(speck, clear))])
    assert [len(lesion.voxels_zyx) for lesion in sampler(pool, ON_TUMOURS).centres[0].lesions] == [33]


def test_a_source_weighs_as_the_root_of_its_number_of_cases(tmp_path: Path) -> None:
    toys = [Toy(f"many-{n}", source="many") for n in range(9)] + [Toy("one", source="one", level=10.0)]
    patches = drawn(toy_pool(tmp_path, toys), ANYWHERE, steps=150)
    share = np.mean([patch.image.max() > 5 for patch in patches])
    assert share == pytest.approx(1 / (3 + 1), abs=0.06)  # by cases it would be 0.1, by sources 0.5


def test_every_patch_around_a_liver_holds_liver_and_none_comes_from_a_case_without(tmp_path: Path) -> None:
    far = ((4, 4, 30), 3.0)
    with_liver = Toy("ct", shape=(40, 40, 40), liver=far, lesions=())
    without = Toy("ct-2", shape=(40, 40, 40), liver=far, lesions=(), liver_state=LabelState.UNKNOWN, level=10.0)
    patches = drawn(toy_pool(tmp_path, [with_liver, without]), ON_LIVERS)
    assert all(patch.y[0].any() and patch.image.max() < 5 for patch in patches)


def test_a_pool_without_training_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training case"):
        sampler(toy_pool(tmp_path, []), MIXED)


def test_a_patch_is_cut_around_its_centre() -> None:
    volume = arrays((6, 6, 6))
    patch = cut(volume, np.array([3, 2, 4], np.int32), (2, 2, 2), Modality.CT)
    assert np.array_equal(patch.image, volume.image[2:4, 1:3, 3:5])


@pytest.mark.parametrize(("centre", "start"), [((0, 0, 0), 0), ((5, 5, 5), 2), ((-9, -9, -9), 0), ((99, 99, 99), 2)])
def test_a_patch_that_would_leave_the_volume_is_moved_inwards(centre: tuple[int, int, int], start: int) -> None:
    volume = arrays((6, 6, 6))
    patch = cut(volume, np.array(centre, np.int32), (4, 4, 4), Modality.CT)
    inside = (slice(start, start + 4),) * 3
    assert np.array_equal(patch.image, volume.image[inside])
    assert (patch.m == 1).all()


@pytest.mark.parametrize("centre", [(0, 0, 0), (2, 3, 1), (3, 3, 3), (9, 9, 9)])
def test_what_pads_a_small_volume_is_dark_and_unknown(centre: tuple[int, int, int]) -> None:
    volume = arrays((4, 4, 4))
    patch = cut(volume, np.array(centre, np.int32), (6, 5, 4), Modality.CT)
    assert patch.image.shape == (6, 5, 4)
    known = patch.m[0] > 0
    assert known.sum() == 4 * 4 * 4
    assert np.array_equal(patch.image[known], np.ravel(volume.image))  # all of it, in its order
    assert (patch.image[~known] == 1).all()  # the darkest voxel
    assert not patch.y[:, ~known].any()
    assert not patch.m[:, ~known].any()


def test_patches_from_disk_are_those_from_memory(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [CT, MR])
    in_memory, on_disk = sampler(pool, MIXED), sampler(pool, MIXED, memory_bytes=1)
    for step in range(20):
        assert same(in_memory.batch(step, 2), on_disk.batch(step, 2))
    shutil.rmtree(tmp_path / pool.entries[0].file)
    in_memory.batch(0, 2)
    with pytest.raises(ArtifactError, match="is no chunked array"):
        [on_disk.batch(step, 2) for step in range(4)]


def test_stored_arrays_keep_labels_and_weights_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shape = (9, 10, 11)
    weights = rng.choice(np.array([0, 3, 128, 255], np.uint8), (2, *shape))
    targets = Targets(rng.random(shape) > 0.5, rng.random(shape) > 0.9, weights[0], weights[1])
    image = rng.normal(size=shape).astype(np.float32)
    PreprocessedArrays.of(image, targets).save(tmp_path)
    stored = PreprocessedArrays.open(tmp_path)
    patch = cut(stored, np.array([4, 5, 5], np.int32), shape, Modality.CT)
    assert np.array_equal(patch.image, image.astype(np.float16))
    assert np.array_equal(patch.y, np.stack([targets.liver, targets.tumour]))
    assert np.array_equal(np.round(patch.m * FULL), weights)
    assert np.array_equal(stored.loaded().liver, targets.liver)
    assert np.array_equal(stored.tumour, targets.tumour)
    many = np.arange(np.prod(shape)).reshape(shape)
    with pytest.raises(ValueError, match="at most 256"):
        PreprocessedArrays.of(image, Targets(many > 400, many > 900, many.astype(np.uint8), weights[1]))


def test_a_source_with_few_tumours_still_has_its_share_of_patches_around_tumours(tmp_path: Path) -> None:
    none = LabelState.UNKNOWN
    toys = [Toy(f"many-{n}", source="many") for n in range(9)]
    toys += [Toy(f"few-{n}", source="few", level=10.0, tumour_state=none if n else LabelState.MANUAL) for n in range(4)]
    patches = drawn(toy_pool(tmp_path, toys), ON_TUMOURS, steps=150)
    share = np.mean([patch.image.max() > 5 for patch in patches])
    assert share == pytest.approx(2 / (3 + 2), abs=0.06)  # by cases that have a tumour it would be 0.1

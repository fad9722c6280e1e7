"""Patches: reproducible, balanced over modalities, sources and lesion sizes, and unknown where they are padded."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_pool import Toy, toy_pool

from hepar.cases import LIVER, TUMOUR, LabelState, Modality
from hepar.errors import ArtifactError, DataError
from hepar.inference.sliding_window import sliding_window
from hepar.params import SamplingParams
from hepar.pool.arrays import PreprocessedArrays
from hepar.pool.table import Pool
from hepar.pool.targets import FULL, Targets
from hepar.training.sampling import Centres, Patch, PatchSampler, _capped, cut

PATCH = (8, 8, 8)
ON_TUMOURS = SamplingParams(tumour_share=1.0, tumour_free_share=0.0, liver_share=0.0)
ON_TUMOUR_FREE = SamplingParams(tumour_share=0.0, tumour_free_share=1.0, liver_share=0.0)
ON_LIVERS = SamplingParams(tumour_share=0.0, tumour_free_share=0.0, liver_share=1.0)
ANYWHERE = SamplingParams(tumour_share=0.0, tumour_free_share=0.0, liver_share=0.0)
MIXED = SamplingParams(tumour_share=0.34, tumour_free_share=0.0, liver_share=0.33)
CT, MR = Toy("ct"), Toy("mr", Modality.MR, level=10.0)


def make_sampler(pool: Pool, params: SamplingParams, seed: int = 1, memory_bytes: int = 2**24) -> PatchSampler:
    return PatchSampler(pool, pool.entries, PATCH, params, seed, memory_bytes)


def sample(pool: Pool, params: SamplingParams, steps: int = 50) -> list[Patch]:
    """The patches of some steps, four per step."""
    sampler = make_sampler(pool, params)
    return [patch for step in range(steps) for patch in sampler.batch(step, 4)]


def share_of_bright(patches: list[Patch]) -> float:
    """Share of patches from cases with `level` 10."""
    return float(np.mean([patch.image_zyx.max() > 5 for patch in patches]))


def same(a: list[Patch], b: list[Patch]) -> bool:
    return all(
        np.array_equal(p.image_zyx, q.image_zyx)
        and np.array_equal(p.target_rzyx, q.target_rzyx)
        and np.array_equal(p.weight_rzyx, q.weight_rzyx)
        for p, q in zip(a, b, strict=True)
    )


def numbered_arrays(shape: tuple[int, int, int]) -> PreprocessedArrays:
    """A volume of distinct values 1, 2, …, all of it known to be liver without tumour."""
    image_zyx = np.arange(1, 1 + np.prod(shape), dtype=np.float16).reshape(shape)
    palette_n4 = np.array([[1, 0, FULL, FULL]], np.uint8)
    return PreprocessedArrays(image_zyx, np.zeros(shape, np.uint8), palette_n4)


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [CT, MR])
    forwards, backwards = make_sampler(pool, MIXED), make_sampler(pool, MIXED)
    first = [forwards.batch(step, 2) for step in range(6)]
    later = [backwards.batch(step, 2) for step in reversed(range(6))][::-1]
    assert all(same(a, b) for a, b in zip(first, later, strict=True))
    assert not same(first[0], first[1])
    assert not same(first[0], make_sampler(pool, MIXED, seed=2).batch(0, 2))


def test_modalities_alternate_across_batches_of_odd_size(tmp_path: Path) -> None:
    toys = [CT, Toy("ct-2"), Toy("ct-3"), MR]  # the only MR case gets as many patches as the three CT cases
    sampler = make_sampler(toy_pool(tmp_path, toys), MIXED)
    order = ["MR" if patch.image_zyx.max() > 5 else "CT" for step in range(2) for patch in sampler.batch(step, 3)]
    assert order == ["CT", "MR", "CT", "MR", "CT", "MR"]


def test_a_patch_has_float_arrays_of_both_structures(tmp_path: Path) -> None:
    patch = make_sampler(toy_pool(tmp_path, [CT]), MIXED).batch(0, 1)[0]
    assert patch.image_zyx.shape == PATCH
    assert patch.target_rzyx.shape == patch.weight_rzyx.shape == (2, *PATCH)
    assert patch.image_zyx.dtype == patch.target_rzyx.dtype == patch.weight_rzyx.dtype == np.float32
    assert patch.weight_rzyx.max() == 1


def test_every_patch_centred_on_a_tumour_shows_it(tmp_path: Path) -> None:
    toy = Toy("ct", shape=(40, 40, 40), liver=((20, 20, 20), 18), lesions=(((30, 20, 20), 3),))
    assert all(patch.target_rzyx[TUMOUR].any() for patch in sample(toy_pool(tmp_path, [toy]), ON_TUMOURS))


@pytest.mark.parametrize("state", [LabelState.UNKNOWN, LabelState.ABSENT])
def test_patches_are_centred_on_manual_tumours_only(tmp_path: Path, state: LabelState) -> None:
    manual, other = Toy("ct"), Toy("ct-2", level=10.0)
    pool = toy_pool(tmp_path, [manual, other])  # the arrays of both hold a tumour
    entries = (pool.entries[0], replace(pool.entries[1], tumour=replace(pool.entries[1].tumour, state=state)))
    assert share_of_bright(sample(replace(pool, entries=entries), ON_TUMOURS)) == 0


def test_without_a_manual_tumour_patches_are_centred_elsewhere(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("ct", tumour_state=LabelState.UNKNOWN)])
    assert len(sample(pool, ON_TUMOURS, steps=2)) == 8


def test_a_small_lesion_is_sampled_as_often_as_several_large_ones(tmp_path: Path) -> None:
    # at 2 mm per voxel a ball of radius 6 voxels is 24 mm wide, one of radius 2 is 8 mm
    large = [Toy(f"large-{n}", lesions=(((12, 12, 12), 6.0),)) for n in range(3)]
    pool = toy_pool(tmp_path, [*large, Toy("small", lesions=(((12, 12, 12), 2.0),), level=10.0)])
    share = share_of_bright(sample(pool, ON_TUMOURS))
    assert share == pytest.approx(0.5, abs=0.12)  # by number of lesions it would be 0.25, by voxels 0.01


def test_no_patch_is_centred_on_a_lesion_of_a_few_voxels(tmp_path: Path) -> None:
    tiny, visible = ((6, 12, 12), 1.0), ((16, 12, 12), 2.0)  # 7 and 33 voxels
    pool = toy_pool(tmp_path, [Toy("ct", lesions=(tiny, visible))])
    assert [len(lesion.voxels_n3) for lesion in make_sampler(pool, ON_TUMOURS).centres[0].lesions] == [33]


def test_a_source_weighs_the_square_root_of_its_number_of_cases(tmp_path: Path) -> None:
    toys = [Toy(f"many-{n}", source="many") for n in range(9)]
    toys += [Toy(f"few-{n}", source="few", level=10.0) for n in range(4)]
    share = share_of_bright(sample(toy_pool(tmp_path, toys), ANYWHERE, steps=150))
    assert share == pytest.approx(2 / (3 + 2), abs=0.04)  # by cases it would be 0.31, by sources 0.5


def test_a_source_of_one_case_is_repeated_twice_as_often_as_an_even_draw_at_most(tmp_path: Path) -> None:
    toys = [Toy(f"many-{n}", source="many") for n in range(16)] + [Toy("one", source="one", level=10.0)]
    for params in (ANYWHERE, ON_LIVERS, ON_TUMOURS):
        share = share_of_bright(sample(toy_pool(tmp_path, toys), params, steps=200))
        assert share == pytest.approx(2 / 17, abs=0.035)  # by the square root it would be 1 / (4 + 1)


def test_what_capped_shares_lose_goes_to_the_others_in_proportion() -> None:
    assert _capped(np.array([0.5, 0.3, 0.2]), 0.5).tolist() == [0.5, 0.3, 0.2]
    assert _capped(np.array([0.6, 0.3, 0.1]), 0.5).tolist() == pytest.approx([0.5, 0.375, 0.125])
    # in the second round 0.3 · 0.6/0.4 = 0.45 is above the bound too
    assert _capped(np.array([0.6, 0.3, 0.07, 0.03]), 0.4).tolist() == pytest.approx([0.4, 0.4, 0.14, 0.06])
    assert _capped(np.array([1.0]), 2.0).tolist() == [1.0]
    assert _capped(np.array([0.9, 0.1]), 0.5).tolist() == [0.5, 0.5]


TUMOUR_FREE = [
    Toy("healthy", tumour_state=LabelState.ABSENT, level=10.0),
    Toy("healthy-unknown-liver", tumour_state=LabelState.ABSENT, liver_state=LabelState.UNKNOWN),
    Toy("lesion"),
    Toy("unknown-tumour", tumour_state=LabelState.UNKNOWN),
]


def test_tumour_free_patches_come_from_known_livers_that_are_known_to_be_free(tmp_path: Path) -> None:
    patches = sample(toy_pool(tmp_path, TUMOUR_FREE), ON_TUMOUR_FREE, steps=20)
    assert share_of_bright(patches) == 1
    assert all(patch.target_rzyx[LIVER].any() and patch.weight_rzyx[TUMOUR].all() for patch in patches)


def test_without_a_tumour_free_liver_in_its_modality_half_is_centred_on_livers_and_half_lies_anywhere_in_their_scans(
    tmp_path: Path,
) -> None:
    corner = ((4, 4, 30), 3.0)
    mr = [
        Toy("mr", Modality.MR, shape=(40, 40, 40), liver=corner, lesions=(), level=10.0),
        Toy("mr-free", Modality.MR, shape=(40, 40, 40), tumour_state=LabelState.ABSENT, liver_state=LabelState.UNKNOWN),
    ]
    patches = sample(toy_pool(tmp_path, [*TUMOUR_FREE, *mr]), ON_TUMOUR_FREE, steps=50)
    of_ct, of_mr = ([p for p in patches if p.modality == modality] for modality in (Modality.CT, Modality.MR))
    assert len(of_ct) == len(of_mr) == 100
    assert share_of_bright(of_ct) == share_of_bright(of_mr) == 1  # none comes from the scan whose liver is unknown
    showing = np.mean([patch.target_rzyx[LIVER].any() for patch in of_mr])
    assert showing == pytest.approx(0.5, abs=0.12)  # the liver lies in a corner, where few others reach it


def test_each_kind_of_centre_has_its_share_of_the_patches(tmp_path: Path) -> None:
    params = SamplingParams(tumour_share=0.2, tumour_free_share=0.3, liver_share=0.4)
    sampler = make_sampler(toy_pool(tmp_path, TUMOUR_FREE), params)
    drawn: Counter[str] = Counter()
    kinds = {id(sampler.centres[0].tumour_free): "free", id(sampler.centres[0].with_liver): "liver"}
    draw_entry = sampler._draw_entry

    def count(centres: Centres, candidates: Sequence[int], rng: np.random.Generator) -> int:
        drawn["anywhere" if candidates is centres.entries else kinds.get(id(candidates), "tumour")] += 1
        return draw_entry(centres, candidates, rng)

    sampler._draw_entry = count  # type: ignore[method-assign]
    for step in range(250):
        sampler.batch(step, 4)
    shares = {kind: number / drawn.total() for kind, number in drawn.items()}
    assert shares == pytest.approx({"tumour": 0.2, "free": 0.3, "liver": 0.4, "anywhere": 0.1}, abs=0.045)


def test_a_source_with_few_tumours_keeps_its_share_of_the_patches_on_tumours(tmp_path: Path) -> None:
    toys = [Toy(f"many-{n}", source="many") for n in range(4)]
    toys += [Toy(f"few-{n}", source="few", level=10.0) for n in range(2)]
    toys += [Toy(f"few-{n}", source="few", level=10.0, tumour_state=LabelState.UNKNOWN) for n in range(2, 4)]
    share = share_of_bright(sample(toy_pool(tmp_path, toys), ON_TUMOURS, steps=150))
    assert share == pytest.approx(2 / (2 + 2), abs=0.06)  # by cases with a tumour it would be 0.33


def test_every_patch_centred_on_a_liver_shows_it_and_comes_from_a_case_with_one(tmp_path: Path) -> None:
    corner = ((4, 4, 30), 3.0)
    with_liver = Toy("ct", shape=(40, 40, 40), liver=corner, lesions=())
    without = Toy("ct-2", shape=(40, 40, 40), liver=corner, lesions=(), liver_state=LabelState.UNKNOWN, level=10.0)
    patches = sample(toy_pool(tmp_path, [with_liver, without]), ON_LIVERS)
    assert all(patch.target_rzyx[LIVER].any() for patch in patches)
    assert share_of_bright(patches) == 0


def test_a_pool_without_training_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training case"):
        make_sampler(toy_pool(tmp_path, []), MIXED)


def test_a_patch_is_cut_around_its_centre() -> None:
    volume = numbered_arrays((6, 6, 6))
    patch = cut(volume, np.array([3, 2, 4], np.int32), (2, 2, 2), Modality.CT)
    assert np.array_equal(patch.image_zyx, volume.image_zyx[2:4, 1:3, 3:5])


@pytest.mark.parametrize(("centre", "start"), [((0, 0, 0), 0), ((5, 5, 5), 2), ((-9, -9, -9), 0), ((99, 99, 99), 2)])
def test_a_patch_that_would_leave_the_volume_is_shifted_inwards(centre: tuple[int, int, int], start: int) -> None:
    volume = numbered_arrays((6, 6, 6))
    patch = cut(volume, np.array(centre, np.int32), (4, 4, 4), Modality.CT)
    inside = (slice(start, start + 4),) * 3
    assert np.array_equal(patch.image_zyx, volume.image_zyx[inside])
    assert (patch.weight_rzyx == 1).all()


@pytest.mark.parametrize("centre", [(0, 0, 0), (2, 3, 1), (3, 3, 3), (9, 9, 9)])
def test_padding_around_a_small_volume_repeats_its_border_and_is_unknown(centre: tuple[int, int, int]) -> None:
    volume = numbered_arrays((4, 4, 4))
    patch = cut(volume, np.array(centre, np.int32), (6, 5, 4), Modality.CT)
    assert patch.image_zyx.shape == (6, 5, 4)
    known_zyx = patch.weight_rzyx[LIVER] > 0
    assert known_zyx.sum() == 4 * 4 * 4
    assert np.array_equal(patch.image_zyx[known_zyx], np.ravel(volume.image_zyx[:]))  # all voxels, in their order
    place_zyx = np.indices(known_zyx.shape)  # of the nearest voxel of the volume
    first_3, last_3 = (known_at(np.argwhere(known_zyx), 0) for known_at in (np.min, np.max))
    nearest_zyx = [np.clip(axis, low, high) - low for axis, low, high in zip(place_zyx, first_3, last_3, strict=True)]
    assert np.array_equal(patch.image_zyx, volume.image_zyx[tuple(nearest_zyx)])
    assert not patch.target_rzyx[:, ~known_zyx].any()
    assert not patch.weight_rzyx[:, ~known_zyx].any()


def test_a_small_volume_is_padded_as_in_prediction() -> None:
    volume, patch_zyx = numbered_arrays((4, 5, 6)), (8, 9, 8)
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, image_bcdhw: torch.Tensor) -> torch.Tensor:
            seen.append(image_bcdhw[0, 0].numpy())
            return torch.cat([image_bcdhw, image_bcdhw], dim=1)

    image_zyx = np.asarray(volume.image_zyx[:], np.float32)
    sliding_window(Recorder(), image_zyx, patch_zyx, 0.0, torch.device("cpu"))
    middle_zyx = np.array([2, 2, 3], np.int32)  # prediction centres the volume
    assert np.array_equal(cut(volume, middle_zyx, patch_zyx, Modality.CT).image_zyx, seen[0])


def test_patches_from_disk_equal_those_from_memory(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [CT, MR])
    in_memory, on_disk = make_sampler(pool, MIXED), make_sampler(pool, MIXED, memory_bytes=1)
    for step in range(20):
        assert same(in_memory.batch(step, 2), on_disk.batch(step, 2))
    shutil.rmtree(pool.folder / pool.entries[0].arrays.folder)
    in_memory.batch(0, 2)
    with pytest.raises(ArtifactError, match="is not a chunked array"):
        [on_disk.batch(step, 2) for step in range(4)]


def test_stored_arrays_return_the_same_labels_and_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shape = (9, 10, 11)
    weight_rzyx = rng.choice(np.array([0, 3, 128, 255], np.uint8), (2, *shape))
    targets = Targets(rng.random(shape) > 0.5, rng.random(shape) > 0.9, weight_rzyx[0], weight_rzyx[1])
    image_zyx = rng.normal(size=shape).astype(np.float32)
    PreprocessedArrays.encode(image_zyx, targets).save(tmp_path)
    stored = PreprocessedArrays.open(tmp_path)
    patch = cut(stored, np.array([4, 5, 5], np.int32), shape, Modality.CT)
    assert np.array_equal(patch.image_zyx, image_zyx.astype(np.float16))
    assert np.array_equal(patch.target_rzyx, np.stack([targets.liver_zyx, targets.tumour_zyx]))
    assert np.array_equal(np.round(patch.weight_rzyx * FULL), weight_rzyx)
    assert np.array_equal(stored.loaded().liver_zyx, targets.liver_zyx)
    assert np.array_equal(stored.tumour_zyx, targets.tumour_zyx)
    many = np.arange(np.prod(shape)).reshape(shape)
    with pytest.raises(ValueError, match="at most 256"):
        PreprocessedArrays.encode(image_zyx, Targets(many > 400, many > 900, many.astype(np.uint8), weight_rzyx[1]))

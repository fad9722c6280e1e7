"""Pool building: which of several livers is used, what a key depends on, and what is linked instead of preprocessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_case import box, volume

from hepar.cases import Case, LabelState, Split
from hepar.errors import DataError
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.imaging.volumes import write_image
from hepar.pool.arrays import PreprocessedArrays, hash_arrays, hash_files
from hepar.pool.building import LiverLabel, PoolBuilder, PoolSettings, PreviousPool
from hepar.pool.table import Pool, PoolEntry
from hepar.runtime.artifacts import sha256_file, write_artifact

PLAN = PreprocessingPlan(spacing_zyx_mm=(2.0, 2.0, 2.0), window_hu=(-150.0, 250.0), mr_percentiles=(2.0, 98.0))
SETTINGS = PoolSettings(PLAN, "masked", 5.0)


def pseudo_liver(folder: Path, start: int = 5, stop: int = 11, weight: float = 0.5) -> LiverLabel:
    write_image(volume(box(start, stop)), folder / f"pseudo-{start}.nii.gz")
    path = folder / f"pseudo-{start}.nii.gz"
    return LiverLabel(LabelState.PSEUDO, path, sha256_file(path), weight, teacher="t0", gate="review", reasons="why")


def build(folder: Path, case: Case, liver: LiverLabel | None = None, **options: object) -> PoolEntry:
    builder = PoolBuilder(folder / "pool", folder / "cohort", SETTINGS)
    return builder.add(case, liver, **options)  # type: ignore[arg-type]


def build_pool(folder: Path, case: Case) -> Pool:
    """A finished pool of one entry."""
    hashes: dict[str, str] = {}
    with write_artifact(folder / "pool", Pool.KIND, {}, hashes) as partial:
        entry = PoolBuilder(partial, folder / "cohort", SETTINGS, hashes=hashes).add(case)
        pool = Pool(partial, PLAN, (entry,))
        pool.save()
    return Pool.load(folder / "pool")


def builder_of_next_pool(folder: Path, settings: PoolSettings = SETTINGS) -> PoolBuilder:
    """A builder of the pool `next`, which may reuse the arrays of the pool `pool`."""
    return PoolBuilder(folder / "next", folder / "cohort", settings, PreviousPool.load(folder / "pool"))


def is_linked(folder: Path, entry: PoolEntry, name: str) -> bool:
    return (folder / "next" / entry.arrays.folder / name).samefile(folder / "pool" / entry.arrays.folder / name)


def test_a_manual_liver_takes_precedence_over_a_pseudo_liver_and_names_its_file(case: Case, tmp_path: Path) -> None:
    entry = build(tmp_path, case, pseudo_liver(tmp_path))
    assert (entry.liver.state, entry.liver.weight, entry.tumour.weight) == (LabelState.MANUAL, 1.0, 1.0)
    assert (entry.liver.mask_sha256, entry.tumour.mask_sha256) == (case.liver_sha256, case.tumour_sha256)
    assert entry.liver.teacher == ""
    assert entry.liver.volume_ml == pytest.approx(8**3 * 0.008, rel=0.05)
    assert entry.group == "CT/s"


def test_a_pseudo_liver_keeps_its_weight_teacher_and_reasons(case: Case, tmp_path: Path) -> None:
    unlabelled = replace(case, liver_state=LabelState.UNKNOWN, liver="", tumour_state=LabelState.UNKNOWN, tumour="")
    entry = build(tmp_path, unlabelled, pseudo_liver(tmp_path))
    assert (entry.liver.state, entry.liver.weight, entry.liver.teacher) == (LabelState.PSEUDO, 0.5, "t0")
    assert (entry.liver.gate, entry.liver.reasons) == ("review", "why")
    assert entry.tumour.weight == 0.5  # outside the liver it is trusted as far as the liver


def test_a_case_whose_arrays_are_missing_is_preprocessed_again(case: Case, tmp_path: Path) -> None:
    (first,) = build_pool(tmp_path, case).entries
    (tmp_path / "pool" / first.arrays.folder / "labels.b2nd").unlink()
    again = builder_of_next_pool(tmp_path).add(case)
    assert (tmp_path / "next" / first.arrays.folder / "labels.b2nd").is_file()
    assert again == first


@pytest.mark.parametrize("name", PreprocessedArrays.FILES)
def test_a_case_whose_arrays_are_damaged_is_preprocessed_again(
    case: Case, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = build_pool(tmp_path, case).entries
    array = tmp_path / "pool" / first.arrays.folder / name
    content = bytearray(array.read_bytes())
    content[len(content) // 2] ^= 0xFF
    array.write_bytes(content)
    again = builder_of_next_pool(tmp_path).add(case)
    assert again == first
    assert not is_linked(tmp_path, again, name)
    assert hash_arrays(hash_files(tmp_path / "next" / again.arrays.folder)) == first.arrays.sha256
    said = " ".join(capsys.readouterr().err.split())
    assert f"case a is preprocessed again: in the earlier pool {first.arrays.folder}/{name} " in said


def test_nothing_is_linked_from_a_pool_with_a_damaged_table(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_pool(tmp_path, case)
    plan = tmp_path / "pool" / Pool.PLAN
    plan.write_text(plan.read_text().replace("250.0", "251.0"))
    assert PreviousPool.load(tmp_path / "pool").pool is None
    assert "plan.json has changed since it was sealed" in " ".join(capsys.readouterr().err.split())


def test_a_rejected_liver_is_unknown_but_keeps_its_reasons(case: Case, tmp_path: Path) -> None:
    unlabelled = replace(case, liver_state=LabelState.UNKNOWN, liver="")
    entry = build(tmp_path, unlabelled, pseudo_liver(tmp_path, weight=0.0))
    assert (entry.liver.state, entry.liver.weight, entry.liver.mask_sha256) == (LabelState.UNKNOWN, 0.0, "")
    assert entry.liver.reasons == "why"


def test_a_corrected_liver_takes_precedence_over_all_others(case: Case, tmp_path: Path) -> None:
    corrected = replace(pseudo_liver(tmp_path), state=LabelState.MANUAL, weight=1.0, review="corrected by me")
    entry = build(tmp_path, case, corrected)
    assert (entry.liver.state, entry.liver.mask_sha256) == (LabelState.MANUAL, corrected.mask_sha256)
    assert entry.liver.review == "corrected by me"


def test_a_corrected_mask_on_another_grid_is_refused(case: Case, tmp_path: Path) -> None:
    corrected = replace(pseudo_liver(tmp_path), state=LabelState.MANUAL)
    image = tmp_path / "cohort" / case.image
    corrected.check_grid(case, image)
    write_image(volume(box(5, 11)[1:]), corrected.mask)
    sizes = "the mask has 16×16×15 voxels, .* but the image has 16×16×16 voxels, "
    with pytest.raises(DataError, match=f"^case a: the corrected mask is not on the grid of the image: {sizes}"):
        corrected.check_grid(case, image)


def test_an_unchanged_case_is_linked_and_has_the_same_entry(case: Case, tmp_path: Path) -> None:
    pool = build_pool(tmp_path, case)
    builder = builder_of_next_pool(tmp_path)
    again = builder.add(case)
    assert again == pool.entries[0]
    for name in PreprocessedArrays.FILES:
        assert is_linked(tmp_path, again, name)
    assert set(builder.hashes) == {f"{again.arrays.folder}/image.b2nd", f"{again.arrays.folder}/labels.b2nd"}


def test_a_case_with_only_other_metadata_is_linked(case: Case, tmp_path: Path) -> None:
    pool = build_pool(tmp_path, case)
    moved = replace(case, split=Split.VAL, licence="CC0-1.0")
    again = builder_of_next_pool(tmp_path).add(moved)
    assert (again.split, again.provenance.licence) == (Split.VAL, "CC0-1.0")
    assert again.arrays.key == pool.entries[0].arrays.key
    assert is_linked(tmp_path, again, "image.b2nd")


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ({"image_sha256": "x"}, SETTINGS),
        ({"liver_sha256": "x"}, SETTINGS),
        ({"tumour_sha256": "x"}, SETTINGS),
        ({"tumour_state": LabelState.UNKNOWN}, SETTINGS),
        ({}, replace(SETTINGS, margin_mm=6.0)),
        ({}, replace(SETTINGS, unknown_tumour="ignored")),
        ({}, replace(SETTINGS, plan=PLAN.model_copy(update={"window_hu": (-100.0, 200.0)}))),
    ],
    ids=["image", "liver", "tumour", "state", "margin", "strategy", "plan"],
)
def test_a_case_is_preprocessed_again_if_anything_its_arrays_depend_on_changes(
    change: dict[str, object], settings: PoolSettings, case: Case, tmp_path: Path
) -> None:
    pool = build_pool(tmp_path, case)
    changed = replace(case, **change)  # type: ignore[arg-type]
    again = builder_of_next_pool(tmp_path, settings).add(changed)
    assert again.arrays.key != pool.entries[0].arrays.key
    assert not is_linked(tmp_path, again, "image.b2nd")


def test_another_mask_weight_or_uncertain_boundary_gives_another_key(case: Case, tmp_path: Path) -> None:
    unlabelled = replace(case, liver_state=LabelState.UNKNOWN, liver="")
    label = pseudo_liver(tmp_path)
    labels = [label, pseudo_liver(tmp_path, start=6), replace(label, weight=0.6), replace(label, uncertain_sha256="u")]
    assert len({build(tmp_path, unlabelled, one).arrays.key for one in labels}) == 4
    other_reasons = build(tmp_path, unlabelled, replace(label, reasons="other"))
    assert other_reasons.arrays.key == build(tmp_path, unlabelled, label).arrays.key


def test_a_missing_or_incomplete_pool_is_not_reused(tmp_path: Path) -> None:
    assert PreviousPool.load(tmp_path / "none").pool is None
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pool.parquet").write_text("truncated")
    (tmp_path / "pool" / "plan.json").write_text("{}")
    assert PreviousPool.load(tmp_path / "pool").pool is None

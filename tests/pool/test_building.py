"""Cases become entries: what counts of several livers, what a key depends on, and what is linked instead of written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_case import box, volume

from hepar.runtime.artifacts import sha256_file, writing
from hepar.cases import Case, LabelState, Split
from hepar.pool.building import Earlier, LiverLabel, Rules, write_entry
from hepar.pool.table import Pool, PoolEntry
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.imaging.volumes import write_image

PLAN = PreprocessingPlan(spacing_zyx_mm=(2.0, 2.0, 2.0), window_hu=(-150.0, 250.0), mr_percentiles=(2.0, 98.0))
RULES = Rules(PLAN, "masked", 5.0)


def pseudo(folder: Path, start: int = 5, stop: int = 11, weight: float = 0.5) -> LiverLabel:
    write_image(volume(box(start, stop)), folder / f"pseudo-{start}.nii.gz")
    path = folder / f"pseudo-{start}.nii.gz"
    return LiverLabel(LabelState.PSEUDO, path, sha256_file(path), weight, teacher="t0", gate="review", reasons="why")


def written(folder: Path, case: Case, liver: LiverLabel | None = None, **options: object) -> PoolEntry:
    cohort = folder / "cohort"
    return write_entry(folder / "pool", case, cohort, RULES, liver, **options)  # type: ignore[arg-type]


def test_a_manual_liver_counts_before_a_pseudo_liver_and_says_where_it_comes_from(case: Case, tmp_path: Path) -> None:
    entry = written(tmp_path, case, pseudo(tmp_path))
    assert (entry.liver_state, entry.liver_weight, entry.tumour_weight) == (LabelState.MANUAL, 1.0, 1.0)
    assert (entry.liver_origin, entry.tumour_origin, entry.teacher) == (case.liver_sha256, case.tumour_sha256, "")
    assert entry.liver_ml == pytest.approx(8**3 * 0.008, rel=0.05)
    assert entry.group == "CT/s"


def test_a_pseudo_liver_keeps_its_weight_teacher_and_reasons(case: Case, tmp_path: Path) -> None:
    lacking = replace(case, liver_state=LabelState.UNKNOWN, liver="", tumour_state=LabelState.UNKNOWN, tumour="")
    entry = written(tmp_path, lacking, pseudo(tmp_path))
    assert (entry.liver_state, entry.liver_weight, entry.teacher) == (LabelState.PSEUDO, 0.5, "t0")
    assert (entry.gate, entry.reasons) == ("review", "why")
    assert entry.tumour_weight == 0.5  # outside the liver it is as sure as the liver


def test_a_case_whose_arrays_are_gone_is_written_anew(case: Case, tmp_path: Path) -> None:
    with writing(tmp_path / "pool", "pool", {}) as folder:
        first = write_entry(folder, case, tmp_path / "cohort", RULES)
        Pool(folder, PLAN, (first,)).save()
    gone = tmp_path / "pool" / first.file / "labels.b2nd"
    gone.unlink()
    again = write_entry(tmp_path / "second", case, tmp_path / "cohort", RULES, earlier=Earlier.at(tmp_path / "pool"))
    assert (tmp_path / "second" / first.file / "labels.b2nd").is_file()
    assert again == first


def test_a_rejected_liver_is_unknown_but_its_reasons_stay(case: Case, tmp_path: Path) -> None:
    lacking = replace(case, liver_state=LabelState.UNKNOWN, liver="")
    entry = written(tmp_path, lacking, pseudo(tmp_path, weight=0.0))
    assert (entry.liver_state, entry.liver_weight, entry.liver_origin) == (LabelState.UNKNOWN, 0.0, "")
    assert entry.reasons == "why"


def test_a_corrected_liver_counts_before_all_others(case: Case, tmp_path: Path) -> None:
    corrected = replace(pseudo(tmp_path), state=LabelState.MANUAL, weight=1.0, review="corrected by me")
    entry = written(tmp_path, case, corrected)
    assert (entry.liver_state, entry.liver_origin) == (LabelState.MANUAL, corrected.sha256)
    assert entry.review == "corrected by me"


def as_pool(folder: Path, case: Case) -> Pool:
    """A sealed pool of one entry."""
    known: dict[str, str] = {}
    with writing(folder / "pool", "pool", {}, known) as partial:
        entry = write_entry(partial, case, folder / "cohort", RULES, known=known)
        pool = Pool(partial, PLAN, (entry,))
        pool.save()
    return Pool.load(folder / "pool")


def test_an_unchanged_case_is_linked_and_comes_to_the_same_entry(case: Case, tmp_path: Path) -> None:
    pool = as_pool(tmp_path, case)
    known: dict[str, str] = {}
    again = write_entry(
        tmp_path / "next", case, tmp_path / "cohort", RULES, earlier=Earlier.at(tmp_path / "pool"), known=known
    )
    assert again == pool.entries[0]
    for name in ("image.b2nd", "labels.b2nd"):
        assert (tmp_path / "next" / again.file / name).samefile(tmp_path / "pool" / again.file / name)
    assert set(known) == {f"{again.file}/image.b2nd", f"{again.file}/labels.b2nd"}


def test_what_only_names_a_case_anew_keeps_its_arrays(case: Case, tmp_path: Path) -> None:
    pool = as_pool(tmp_path, case)
    moved = replace(case, split=Split.VAL, licence="CC0-1.0")
    again = write_entry(tmp_path / "next", moved, tmp_path / "cohort", RULES, earlier=Earlier.at(tmp_path / "pool"))
    assert (again.split, again.licence, again.key) == (Split.VAL, "CC0-1.0", pool.entries[0].key)
    assert (tmp_path / "next" / again.file / "image.b2nd").samefile(tmp_path / "pool" / again.file / "image.b2nd")


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"image_sha256": "x"}, RULES),
        ({"liver_sha256": "x"}, RULES),
        ({"tumour_sha256": "x"}, RULES),
        ({"tumour_state": LabelState.UNKNOWN}, RULES),
        ({}, replace(RULES, margin_mm=6.0)),
        ({}, replace(RULES, unknown_tumour="ignored")),
        ({}, replace(RULES, plan=PLAN.model_copy(update={"window_hu": (-100.0, 200.0)}))),
    ],
    ids=["image", "liver", "tumour", "state", "margin", "strategy", "plan"],
)
def test_whatever_its_arrays_are_made_from_has_a_case_written_anew(
    change: dict[str, object], rules: Rules, case: Case, tmp_path: Path
) -> None:
    pool = as_pool(tmp_path, case)
    changed = replace(case, **change)  # type: ignore[arg-type]
    again = write_entry(tmp_path / "next", changed, tmp_path / "cohort", rules, earlier=Earlier.at(tmp_path / "pool"))
    assert again.key != pool.entries[0].key
    assert not (tmp_path / "next" / again.file / "image.b2nd").samefile(tmp_path / "pool" / again.file / "image.b2nd")


def test_a_pseudo_liver_of_another_mask_weight_or_boundary_has_another_key(case: Case, tmp_path: Path) -> None:
    lacking = replace(case, liver_state=LabelState.UNKNOWN, liver="")
    label = pseudo(tmp_path)
    labels = [label, pseudo(tmp_path, start=6), replace(label, weight=0.6), replace(label, uncertain_sha256="u")]
    assert len({written(tmp_path, lacking, one).key for one in labels}) == 4
    assert written(tmp_path, lacking, replace(label, reasons="other")).key == written(tmp_path, lacking, label).key


def test_without_a_whole_pool_there_is_nothing_earlier(tmp_path: Path) -> None:
    assert Earlier.at(tmp_path / "none").pool is None
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pool.parquet").write_text("half of it")
    (tmp_path / "pool" / "plan.json").write_text("{}")
    assert Earlier.at(tmp_path / "pool").pool is None

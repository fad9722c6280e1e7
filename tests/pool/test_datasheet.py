"""The datasheet of a pool: its counts and its example slices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from toy_pool import Toy, toy_pool, with_columns

from hepar.cases import LabelState
from hepar.params import Params
from hepar.pool.datasheet import LIVER_COLOUR, TUMOUR_COLOUR, draw_slice, write_datasheet
from hepar.pool.table import Pool


def datasheet(pool: Pool, params: Params) -> str:
    write_datasheet(pool, {"cohort": "0" * 64}, params.assemble_pool)
    return (pool.folder / Pool.DATASHEET).read_text()


def test_a_lesion_of_exactly_20_mm_is_counted_in_the_middle_bin(tiny: Params, tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a")])
    entry = with_columns(pool.entries[0], lesion_diameters_mm=[9.99, 10.0, 20.0, 20.01])
    lines = datasheet(replace(pool, entries=(entry,)), tiny).splitlines()
    assert "| split | modality | <10 mm | 10–20 mm | >20 mm |" in lines
    assert "| train | CT | 1 | 2 | 1 |" in lines
    assert "| val | CT | 0 | 0 | 0 |" in lines


def test_outcomes_of_pseudo_livers_are_listed_with_their_reasons(tiny: Params, tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a", liver_state=LabelState.PSEUDO), Toy("b", liver_state=LabelState.PSEUDO)])
    rejected = with_columns(pool.entries[0], gate="reject", reasons="entropy | 2 > 1", liver_weight=0.0)
    accepted = with_columns(pool.entries[1], gate="accept", review="accepted by an expert, today")
    lines = datasheet(replace(pool, entries=(rejected, accepted)), tiny).splitlines()
    assert "| reject | gates | 1 |" in lines
    assert "| accept | reviewer | 1 |" in lines
    assert r"| a | reject | 0.00 | entropy \| 2 > 1 |" in lines
    assert "| b | accept | 1.00 | accepted by an expert, today |" in lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script>alert(1)&lt;/script>"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>"),
        ("![x](http://host/x.png)", r"!\[x](http://host/x.png)"),
        ("a | b\n# c & `d`", r"a \| b # c &amp; \`d\`"),
    ],
)
def test_texts_from_elsewhere_are_shown_as_they_are(text: str, shown: str, tiny: Params, tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a", liver_state=LabelState.PSEUDO)])
    given = {"source": text, "licence": text, "sequence": text, "gate": "accept", "review": text}
    written = datasheet(replace(pool, entries=(with_columns(pool.entries[0], **given),)), tiny)
    assert text not in written
    assert f"| {shown} | {shown} | 1 |" in written
    assert f"| a | accept | 1.00 | {shown} |" in written
    assert f"| CT | {shown} | {shown} |" in written


def test_an_example_slice_outlines_targets_and_shades_where_the_tumour_is_unknown(tmp_path: Path) -> None:
    pool = toy_pool(tmp_path, [Toy("a"), Toy("b", tumour_state=LabelState.UNKNOWN)])
    known, unknown = (draw_slice(pool.arrays(entry), entry, (1.0, 1.0)).astype(int) for entry in pool.entries)
    assert (known == TUMOUR_COLOUR).all(axis=2).any()
    assert not (unknown == TUMOUR_COLOUR).all(axis=2).any()
    assert (unknown == LIVER_COLOUR).all(axis=2).any()
    middle, corner = (unknown.shape[0] // 2 + 40, unknown.shape[1] // 2), (5, 5)
    assert unknown[middle][2] > unknown[middle][0] + 20  # blue: in the liver the tumour is unknown
    assert unknown[corner][2] == unknown[corner][0]  # outside the liver it is known to be absent
    assert known[middle][2] == known[middle][0]


@pytest.mark.slow
def test_the_datasheet_of_a_run_has_every_section_and_an_example_of_every_kind(by_kfp: Path) -> None:
    pool = Pool.load(by_kfp / "pool")
    text = (by_kfp / "pool" / Pool.DATASHEET).read_text()
    assert f"{len(pool.entries)} cases of {len({e.patient_id for e in pool.entries})} patients" in text
    for entry in pool.entries:
        assert f"| {entry.liver.state} | {entry.tumour.state} |" in text
    for heading in ("Provenance", "Labels", "Pseudo-livers", "Lesions", "Sources and licences", "Example slices"):
        assert f"## {heading}" in text
    examples = sorted((by_kfp / "pool" / Pool.PICTURES).iterdir())
    kinds = {(e.modality, e.liver.state, e.tumour.state) for e in pool.entries if e.arrays.known_share > 0}
    assert len(examples) == len(kinds)
    for path in examples:
        with Image.open(path) as image:
            assert min(image.size) >= 240

"""The quarantine list: the same wherever the files lie, and inert in a spreadsheet."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from phantom_folder import SCAN, PhantomFolder, ingest, quarantine

from hepar.cases import Cohort
from hepar.ingest.quarantine import MAX_CHARACTERS, Refused, read_quarantine, reproducible, write_quarantine
from hepar.params import Params
from hepar.runtime.artifacts import read_manifest


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("/data/A B/x.nii cannot be read", "x.nii cannot be read"),
        ("near /data/A B/other.nii", "near other.nii"),
        ("itk::ERROR: NiftiImageIO(0x55d0c8a9f3b0): no", "itk::ERROR: NiftiImageIO: no"),
        ("NrrdImageIO (0x7F00aa12): no", "NrrdImageIO: no"),
        ("at 0x7f2b3c4d5e6f it broke", "at it broke"),
        ("in /tmp/hepar-0/case-8f_x2/scan: no", "in a file: no"),
        ("'/tmp/tmpab12/x.nrrd' is short", "'a file' is short"),
        ("two\n  lines\tand \x00 more", "two lines and more"),
        ("s3://bucket/key/x.nii is missing", "s3://bucket/key/x.nii is missing"),
        ("10/20 mm, km/h, value 0x55", "10/20 mm, km/h, value 0x55"),
        ("x" * 600, "x" * MAX_CHARACTERS + "…"),
    ],
)
def test_a_message_reads_the_same_everywhere(message: str, expected: str) -> None:
    assert reproducible(message, {"/data/A B/x.nii": "x.nii"}) == expected


def test_a_path_within_another_is_named_by_its_own_name() -> None:
    names = {"/a/x.nii": "x.nii", "/a/x.nii.gz": "x.nii.gz"}
    assert reproducible("/a/x.nii.gz and /a/x.nii", names) == "x.nii.gz and x.nii"


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_cohort_with_a_broken_file_has_the_same_hash_in_every_place(
    suffix: str, source: PhantomFolder, tiny: Params, tmp_path: Path
) -> None:
    rows = source.rows()
    for row in rows:
        if row["case_id"] == SCAN:
            row["image"] = f"{SCAN}/image{suffix}"
    source.rewrite(rows)
    (source.folder / SCAN / f"image{suffix}").write_bytes(b"NRRD0004\nno header at all, in any format\n" * 20)
    hashes, lists = set(), []
    for place in ("here", "quite/another place"):
        shutil.copytree(source.folder, tmp_path / place / "source")
        cohort = ingest(PhantomFolder(tmp_path / place / "source"), tiny.ingest)
        hashes.add(read_manifest(cohort, Cohort.KIND).hash)
        lists += quarantine(cohort)
    assert len(hashes) == 1
    assert [line["case_id"] for line in lists] == [SCAN, SCAN]
    for line in lists:
        assert "0x" not in line["value"]
        assert str(tmp_path) not in line["value"]
        assert "/" not in line["value"]


@pytest.mark.parametrize(
    "text", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "'=1", "plain", "'quoted'", ""]
)
def test_no_cell_of_the_list_is_a_formula_and_every_text_comes_back(text: str, tmp_path: Path) -> None:
    written = [Refused("a", "rule", text), Refused("b", text, "value")]
    write_quarantine(tmp_path / "quarantine.csv", written)
    assert read_quarantine(tmp_path / "quarantine.csv") == written
    with (tmp_path / "quarantine.csv").open(newline="") as stream:
        for row in csv.reader(stream):
            assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row)

"""Building a cohort: unchanged cases are linked, processes do not matter, no scan occurs twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
from phantom_folder import SCAN, PhantomFolder, ingest, quarantine

from hepar.cases import Cohort
from hepar.params import Params
from hepar.runtime.artifacts import read_manifest
from hepar.runtime.device import available_cores


def test_the_second_of_two_equal_scans_is_refused_even_if_stored_in_another_orientation(
    source: PhantomFolder, tiny: Params
) -> None:
    rows = source.rows()
    (original,) = (row for row in rows if row["case_id"] == SCAN)
    shutil.copytree(source.folder / SCAN, source.folder / "twin")
    for name in ("image", "tumour"):
        source.change(f"twin/{name}.nii.gz", lambda image: sitk.DICOMOrient(image, "PIR"))
    twin = {"case_id": "twin", "image": "twin/image.nii.gz", "tumour": "twin/tumour.nii.gz"}
    source.rewrite([*rows, {**original, **twin}])
    (line,) = quarantine(ingest(source, tiny.ingest))
    assert line == {"case_id": "twin", "rule": "no scan occurs twice", "value": f"same voxels as case {SCAN}"}


def identity(path: Path) -> int:
    return path.stat().st_ino


def test_a_second_ingest_links_unchanged_cases_and_writes_changed_ones(source: PhantomFolder, tiny: Params) -> None:
    folder = ingest(source, tiny.ingest)
    before = {case.case_id: (case, identity(folder / case.image)) for case in Cohort.load(folder)}
    tumour = next(row["tumour"] for row in source.rows() if row["case_id"] == SCAN)
    source.change(tumour, lambda mask: sitk.BinaryDilate(mask, (1, 1, 1)))
    after = {case.case_id: (case, identity(folder / case.image)) for case in Cohort.load(ingest(source, tiny.ingest))}
    assert after.keys() == before.keys()
    for case_id, (case, inode) in after.items():
        assert (case == before[case_id][0]) == (case_id != SCAN)
        assert (inode == before[case_id][1]) == (case_id != SCAN)


def test_linked_and_new_cohorts_have_the_same_content(source: PhantomFolder, tiny: Params) -> None:
    rows = source.rows()
    source.rewrite(rows[:-2])
    ingest(source, tiny.ingest.model_copy(update={"max_refused_share": 1.0}))
    source.rewrite(rows)
    grown = read_manifest(ingest(source, tiny.ingest), Cohort.KIND).hash
    shutil.rmtree(source.folder.parent / "cohort")
    assert read_manifest(ingest(source, tiny.ingest), Cohort.KIND).hash == grown


def test_one_process_builds_the_cases_of_several(
    source: PhantomFolder, tiny: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = read_manifest(ingest(source, tiny.ingest), Cohort.KIND).hash
    shutil.rmtree(source.folder.parent / "cohort")
    monkeypatch.setattr("hepar.ingest.parallel.available_cores", lambda: 3 if available_cores() == 1 else 1)
    assert read_manifest(ingest(source, tiny.ingest), Cohort.KIND).hash == one

"""The stage: the same source gives the same bytes; faulty sources, too many refusals and kills leave no cohort."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from phantom_folder import SCAN, PhantomFolder, Row, ingest, quarantine, refusal

import hepar.stages.ingest
from hepar.cases import Cohort, LabelState, Modality, Split
from hepar.errors import DataError
from hepar.imaging.volumes import read_image, to_array
from hepar.params import AddedPhantoms, Params
from hepar.runtime.artifacts import read_manifest


def test_a_valid_source_is_ingested_whole_in_one_orientation(source: PhantomFolder, tiny: Params) -> None:
    folder = ingest(source, tiny.ingest)
    cohort = Cohort.load(folder)
    assert [case.case_id for case in cohort] == sorted(row["case_id"] for row in source.rows())
    assert quarantine(folder) == []
    for case in cohort:
        image = read_image(cohort.file(case.image))
        assert np.allclose(np.reshape(image.GetDirection(), (3, 3)), np.eye(3), atol=0.2)  # but for the table's tilt
        assert case.size == to_array(image).shape == (24, 40, 40)
        assert bool(case.liver) == (case.liver_state == LabelState.MANUAL)
        assert bool(case.tumour) == (case.tumour_state == LabelState.MANUAL)


def test_the_same_source_gives_the_same_cohort_byte_by_byte(source: PhantomFolder, tiny: Params) -> None:
    first = read_manifest(ingest(source, tiny.ingest), Cohort.KIND).hash
    assert read_manifest(ingest(source, tiny.ingest), Cohort.KIND).hash == first


def test_too_many_refused_cases_fail_the_stage(source: PhantomFolder, tiny: Params) -> None:
    for case_id in (SCAN, "phantom-mr-0007"):
        source.spoil_with_nan(case_id)
    message = refusal(source, tiny.ingest)
    assert message.startswith("2 of 8 cases are refused, more than ingest.max_refused_share (0.2) allows")
    assert f"case {SCAN}: all voxels of the image are finite: 2 voxels are NaN or infinite" in message
    enough = tiny.ingest.model_copy(update={"max_refused_share": 0.25})
    assert len(Cohort.load(ingest(source, enough))) == 6


def test_an_empty_or_missing_source_is_refused(source: PhantomFolder, tiny: Params, tmp_path: Path) -> None:
    source.rewrite([])
    assert refusal(source, tiny.ingest) == f"{source.folder / 'cohort.csv'} lists no cases"
    with pytest.raises(DataError, match="no such file or folder"):
        hepar.stages.ingest.run(str(tmp_path / "none"), tmp_path / "cohort", tiny.ingest, tiny.modalities)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality": "PET"}, "modality is 'PET' but must be one of CT, MR"),
        ({"liver_state": "manual"}, "liver_state is manual but column liver is empty"),
        ({"tumour_state": "unknown"}, "tumour_state is unknown but column tumour is '"),
        ({"liver_state": "pseudo"}, "liver_state is pseudo"),
        ({"patient_id": ""}, "patient_id is empty"),
    ],
)
def test_an_invalid_row_refuses_its_case_alone(source: PhantomFolder, tiny: Params, change: Row, message: str) -> None:
    source.rewrite([{**row, **change} if row["case_id"] == SCAN else row for row in source.rows()])
    cohort = ingest(source, tiny.ingest)
    (line,) = quarantine(cohort)
    assert (line["case_id"], line["rule"]) == (SCAN, "every row of a table is valid")
    assert line["value"].startswith(message)
    assert len(Cohort.load(cohort)) == 7


def test_a_missing_column_is_named(source: PhantomFolder, tiny: Params) -> None:
    columns = [name for name in source.rows()[0] if name != "tumour_state"]
    source.rewrite(source.rows(), columns)
    assert "column tumour_state is missing" in refusal(source, tiny.ingest)


def test_added_phantoms_train_and_are_never_held_out(source: PhantomFolder, tiny: Params) -> None:
    own = {row["case_id"] for row in source.rows()}
    added = AddedPhantoms(CT=10, MR=0)
    cohort = Cohort.load(ingest(source, tiny.ingest.model_copy(update={"added_phantoms": added})))
    others = [case for case in cohort if case.case_id not in own]
    assert len(others) == 10
    assert {case.split for case in others} == {Split.TRAIN}
    assert {case.modality for case in others} == {Modality.CT}
    assert all(case.liver_state == case.tumour_state == LabelState.MANUAL for case in others)


def test_too_few_added_phantoms_are_refused() -> None:
    with pytest.raises(ValueError, match="3 phantoms are too few: set 0 or at least 8"):
        AddedPhantoms(CT=0, MR=3)


def test_the_quarantine_list_survives_a_failed_ingest(source: PhantomFolder, tiny: Params) -> None:
    for row in source.rows():
        source.change(row["image"], lambda image: image * 0)
    assert "cohort.quarantine.csv lists them" in refusal(source, tiny.ingest)
    with (source.folder.parent / "cohort.quarantine.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 8


@pytest.mark.parametrize("written", [1, 5])
def test_a_killed_ingest_leaves_nothing_and_the_next_one_gives_the_same_bytes(
    written: int, phantom_source: Path, tmp_path: Path, tiny: Params
) -> None:
    cohort, whole = tmp_path / "cohort", tmp_path / "whole"
    hepar.stages.ingest.run(str(phantom_source), whole, tiny.ingest, tiny.modalities)
    code = "import sys; from hepar.cli.main import main; main()"
    command = [sys.executable, "-c", code, "ingest", "--source", phantom_source, "--cohort", cohort]
    victim = subprocess.Popen(
        [*command, "--params", ROOT / "params" / "tiny.yaml"], stderr=subprocess.DEVNULL, start_new_session=True
    )
    partial = tmp_path / ".cohort.partial" / Cohort.VOLUMES
    while victim.poll() is None and len(list(partial.glob("*/image.nii.gz"))) < written:
        time.sleep(0.001)
    os.killpg(victim.pid, signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert not cohort.exists()
    hepar.stages.ingest.run(str(phantom_source), cohort, tiny.ingest, tiny.modalities)
    assert read_manifest(cohort, Cohort.KIND) == read_manifest(whole, Cohort.KIND)
    for path in whole.rglob("*.*"):
        assert (cohort / path.relative_to(whole)).read_bytes() == path.read_bytes()

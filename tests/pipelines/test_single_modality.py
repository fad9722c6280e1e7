"""A project of CT alone: no MR teacher, and every stage up to the registered model."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY, call, succeed

from hepar.cases import Cohort, Modality
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import write_preset
from hepar.phantoms import write_phantoms
from hepar.pool.table import Pool
from hepar.registry.registration import Registration


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cohort_of_ct_alone_becomes_a_model_that_refuses_mr(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "scans", cases=8, seed=11, size_zyx=(24, 40, 40))
    table = tmp_path / "scans" / "cohort.csv"
    scans = pd.read_csv(table, dtype=str, keep_default_na=False)
    scans[scans.modality == "CT"].to_csv(table, index=False)
    both, run = tmp_path / "both.yaml", tmp_path / "run"
    write_preset(both, TINY, {"source": str(tmp_path / "scans")}, "CT and MR")
    refused = call("hepar", "run", "--params", str(both), "--workdir", str(run), cwd=tmp_path)
    assert refused.returncode == 2
    assert "the cohort has no MR case, but modalities is CT, MR: each needs a liver teacher" in refused.stderr

    own = tmp_path / "own.yaml"
    write_preset(own, both, {"modalities": ["CT"]}, "CT alone")
    screen = succeed("hepar", "run", "--params", str(own), "--workdir", str(run), cwd=tmp_path)
    assert "champion" in screen
    assert Cohort.load(run / "cohort").modalities == (Modality.CT,)
    assert (run / "models" / "liver-mr" / ModelFolder.NOT_TRAINED).read_text() == "the cohort has no MR scan\n"
    assert {entry.modality for entry in Pool.load(run / "pool").entries} == {Modality.CT}
    assert ModelFolder(run / "models" / "universal").load_spec().modalities == (Modality.CT,)
    assert set(Report.load(run / "report").metrics()) == {"CT"}
    assert Registration.load(run / "registration").version == "1"

    succeed("hepar", "pool", "audit", cwd=run)

    mr = tmp_path / "scans" / "phantom-mr-0001" / "image.nii.gz"
    model = str(run / "models" / "universal")
    for modality in ((), ("--modality", "MR")):
        predicted = call(
            "hepar", "predict", str(mr), "--out", "labels.nii.gz", "--model", model, *modality, cwd=tmp_path
        )
        assert predicted.returncode == 2
        assert predicted.stderr.strip() == "hepar: the scan is MR, but the model was trained on CT only"
        assert not (tmp_path / "labels.nii.gz").exists()

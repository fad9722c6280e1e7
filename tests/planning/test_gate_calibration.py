"""`hepar calibrate-gates`: hidden manual livers, the gates it writes as params, and its summary."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY, call, succeed

from hepar.cases import Cohort, Split
from hepar.errors import ParamsError
from hepar.params import Params, load_params, write_preset
from hepar.planning.gate_calibration import CalibrationFolder, observe, summary


@pytest.mark.slow
def test_the_command_hides_manual_livers_and_writes_gates_as_params(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    training = {"train_liver.training.steps": 40, "train_liver.training.learning_rate": 0.01}
    write_preset(own, TINY, {"ingest.phantoms.cases": 32, **training}, "more cases to learn from")
    options = ("--params", str(own))
    succeed("hepar", "ingest", *options, cwd=tmp_path)
    printed = succeed("hepar", "calibrate-gates", *options, "--out", "mine.yaml", cwd=tmp_path)
    assert "predicted against true Dice, out of fold: Spearman" in printed
    cohort = {case.case_id: case for case in Cohort.load(tmp_path / "cohort")}
    table = pd.read_csv(tmp_path / "calibration" / CalibrationFolder.OBSERVATIONS)
    assert set(table.modality) == {"CT", "MR"}
    assert {cohort[name].split for name in table.case_id} == {Split.TRAIN}
    assert sorted(table.trained_share.unique()) == [0.5, 1.0]
    gates = load_params(tmp_path / "mine.yaml").pseudo_label.gates
    assert gates.predictor is not None
    assert "agreement" in gates.predictor.signals
    assert load_params(tmp_path / "mine.yaml").evaluate == load_params(TINY).evaluate
    assert (tmp_path / "calibration" / CalibrationFolder.FIGURE).stat().st_size > 10_000
    assert (tmp_path / "calibration" / CalibrationFolder.RISK_FIGURE).stat().st_size > 10_000
    risk_coverage = pd.read_csv(tmp_path / "calibration" / CalibrationFolder.RISK_COVERAGE)
    assert risk_coverage.groupby("score").size().to_dict() == dict.fromkeys(
        ("predicted_dice", "pairwise_dice", "optimal"), len(table)
    )
    whole = risk_coverage[risk_coverage.coverage == 1].mean_dice
    assert whole.tolist() == pytest.approx([table.dice.mean()] * 3)
    assert "AURC (mean 1 − Dice of the labels kept, over all coverages): predictor" in printed
    again = call("hepar", "calibrate-gates", *options, "--out", "mine.yaml", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("hepar: mine.yaml already exists")


def test_calibration_refuses_ensembles(tiny: Params, tmp_path: Path) -> None:
    folds = tiny.model_copy(update={"train_liver": tiny.train_liver.model_copy(update={"folds": 2})})
    with pytest.raises(ParamsError, match=r"set train_liver\.folds to 1"):
        observe(tmp_path / "cohort", tmp_path / "calibration", folds)


def test_for_an_unreachable_target_the_summary_names_the_highest_reachable_one(tmp_path: Path) -> None:
    results = {
        "observations": 40,
        "patients": 10,
        "signals": ["agreement"],
        "spearman": 0.9,
        "mean_absolute_error": 0.05,
        "risk_coverage": {
            "aurc": {"predicted_dice": 0.05, "pairwise_dice": 0.06},
            "optimal_aurc": 0.04,
            "minus_predicted_dice": {"pairwise_dice": {"value": 0.01, "ci95": [-0.002, 0.03], "patients": 10}},
        },
        "target_dice": 0.9,
        "accepted_share": 0.0,
        "accepted_mean_dice": None,
        "accepted_min_dice": None,
        "highest_target": 0.85,
        "highest_target_share": 0.25,
    }
    path = tmp_path / CalibrationFolder.RESULTS
    path.write_text(json.dumps(results))
    aurc = summary(tmp_path).splitlines()[2]
    assert aurc.endswith(
        "predictor 0.0500, mean pairwise Dice of the predictions 0.0600 (+0.0100 [-0.0020, +0.0300]), best order 0.0400"
    )
    last = summary(tmp_path).splitlines()[-1]
    assert last.startswith(
        "accepted for a target Dice of 0.9: 0%; the highest target that any label meets is 0.85, which would accept 25%"
    )
    path.write_text(json.dumps(results | {"highest_target": None, "highest_target_share": None}))
    assert summary(tmp_path).splitlines()[-1] == "accepted for a target Dice of 0.9: 0%"

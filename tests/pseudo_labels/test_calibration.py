"""Calibration: what signals tell of the true Dice, thresholds that keep their promise, and honest errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, call, succeed
from test_gates import GATES, GOOD

from hepar.cases import Cohort, Modality, Split
from hepar.errors import DataError, ParamsError
from hepar.params import Params, load_params, write_preset
from hepar.planning import gates as calibrate_gates
from hepar.pseudo_labels.calibration import (
    BEYOND,
    Observation,
    calibrate,
    curve,
    expected_dice,
    fit,
    passing,
    threshold,
)

OPEN = GATES.model_copy(update={"min_agreement": (0.0, 0.0), "max_entropy": (9.0, 9.0)})  # let every label pass


def observations(patients: int, each: int = 3, seed: int = 0) -> list[Observation]:
    """Pseudo-livers whose Dice is a bent function of their agreement, with some noise."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(patients * each):
        agreement = float(rng.uniform(0.4, 1.0))
        dice = float(np.clip(agreement**2 + rng.normal(0, 0.02), 0, 1))
        signals = replace(GOOD, agreement=agreement, entropy=float(rng.uniform(0, 1)))
        name = f"p{number // each}"
        made.append(Observation(f"c{number}", name, Modality.CT, 1.0, signals, dice))
    return made


def test_a_predictor_learns_how_signals_tell_the_dice() -> None:
    seen, new = observations(30), observations(30, seed=1)
    predictor = fit(seen, ("agreement",))
    error = [abs(expected_dice(o, predictor) - o.dice) for o in new]
    assert float(np.mean(error)) < 0.03


def test_a_modality_whose_teachers_are_worse_is_expected_to_be() -> None:
    seen = observations(30)
    worse = [replace(o, modality=Modality.MR, patient_id=f"m{o.patient_id}", dice=o.dice - 0.1) for o in seen]
    predictor = fit([*seen, *worse], ("agreement",))
    new = observations(30, seed=1)
    as_mr = [replace(o, modality=Modality.MR) for o in new]
    lost = [expected_dice(o, predictor) - expected_dice(mr, predictor) for o, mr in zip(new, as_mr, strict=True)]
    assert float(np.mean(lost)) == pytest.approx(0.1, abs=0.02)


def test_what_is_reported_comes_from_patients_that_the_predictor_has_not_seen() -> None:
    shuffled = observations(30)
    rng = np.random.default_rng(3)
    dice = rng.permutation([o.dice for o in shuffled])  # now signals tell nothing
    noise = [replace(o, dice=float(value)) for o, value in zip(shuffled, dice, strict=True)]
    found = calibrate(noise, OPEN, 0.9, 0.95)
    assert abs(found.spearman) < 0.3  # a fit to its own cases would look better
    assert found.accept == BEYOND
    honest = calibrate(shuffled, OPEN, 0.9, 0.95)
    assert honest.spearman > 0.9
    assert honest.mean_absolute_error < 0.04


def test_accepted_labels_have_the_dice_that_was_wished_for() -> None:
    found, new = calibrate(observations(60), OPEN, 0.8, 0.95), observations(200, seed=5)
    accepted = [o.dice for o in new if expected_dice(o, found.predictor) >= found.accept]
    assert len(accepted) > 50
    assert float(np.mean([dice >= 0.8 for dice in accepted])) > 0.9
    assert found.reject < found.accept


def test_a_threshold_is_the_least_that_keeps_its_promise() -> None:
    predicted = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    dice = np.array([0.35, 0.35, 0.35, 0.35, 0.35, 0.2, 0.35])
    assert threshold(predicted, dice, 0.3, 6 / 7) == 0.5  # five of five, by the rule of succession
    assert threshold(predicted, dice, 0.3, 7 / 9) == 0.3  # six of seven
    assert threshold(predicted, dice, 0.36, 0.5) == BEYOND
    assert threshold(predicted[:4], dice[:4], 0.3, 6 / 7) == BEYOND  # four of four prove less
    assert threshold(predicted[:0], dice[:0], 0.3, 0.1) == BEYOND


def test_no_label_is_accepted_of_which_less_than_the_wished_for_dice_is_expected() -> None:
    predicted, dice = np.linspace(0.95, 0.75, 21), np.full(21, 0.95)  # all are good, more than is expected of most
    assert threshold(predicted, dice, 0.85, 0.9) == pytest.approx(0.85)
    assert threshold(predicted, dice, 0.97, 0.5) == BEYOND


def test_equal_predictions_are_accepted_together() -> None:
    predicted = np.array([0.9] * 5 + [0.8] * 2)
    dice = np.array([0.95] * 4 + [0.1] + [0.95] * 2)
    assert threshold(predicted, dice, 0.7, 0.8) == BEYOND  # four of four, but not without the fifth


def test_bounds_are_for_labels_that_pass_the_other_gates() -> None:
    some = observations(60)
    strict = OPEN.model_copy(update={"min_agreement": (0.9, 0.8)})
    found = calibrate(some, strict, 0.5, 0.9)
    assert found.passes.tolist() == [o.signals.agreement >= 0.9 for o in some]
    assert passing(some, OPEN).all()


def test_too_few_patients_or_no_difference_are_refused() -> None:
    with pytest.raises(DataError, match=r"^3 patients have a manual liver to hide, at least 4 are needed$"):
        calibrate(observations(3), OPEN, 0.9, 0.95)
    same = [replace(o, dice=0.9) for o in observations(10)]
    with pytest.raises(DataError, match=r"^every pseudo-liver has Dice 0\.900"):
        calibrate(same, OPEN, 0.9, 0.95)


def test_signals_without_bound_do_not_break_a_fit() -> None:
    some = observations(10)
    some[0] = replace(some[0], signals=replace(some[0].signals, entropy=float("inf"), agreement=0.0), dice=0.0)
    predictor = fit(some, ("agreement", "entropy"))
    assert expected_dice(some[0], predictor) < 0.4


def test_the_curve_tells_for_each_wish_what_it_costs() -> None:
    some = observations(60)
    found = calibrate(some, OPEN, 0.8, 0.95)
    labels = (found.predicted, np.array([o.dice for o in some]), found.passes)
    table = curve(labels, labels, 0.95, [0.5, 0.8, 0.999])
    assert table.accepted_share.is_monotonic_decreasing
    assert (table.share_as_wished.dropna() >= 0.95).all()
    assert table.accepted_share.iloc[-1] == 0
    assert np.isnan(table.mean_dice.iloc[-1])


@pytest.mark.slow
def test_the_command_hides_manual_livers_and_writes_gates_that_a_run_takes(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    training = {"train_liver.training.steps": 40, "train_liver.training.learning_rate": 0.01}
    write_preset(own, TINY, {"ingest.phantoms.cases": 32, **training}, "more to learn from")
    options = ("--params", str(own))
    succeed("hepar", "ingest", *options, cwd=tmp_path)
    said = succeed("hepar", "calibrate-gates", *options, "--out", "mine.yaml", cwd=tmp_path)
    assert "expected against true Dice, out of fold: Spearman" in said
    cohort = {case.case_id: case for case in Cohort.load(tmp_path / "cohort")}
    table = pd.read_csv(tmp_path / "calibration" / "observations.csv")
    assert set(table.modality) == {"CT", "MR"}
    assert {cohort[name].split for name in table.case_id} == {Split.TRAIN}
    assert sorted(table.trained_share.unique()) == [0.5, 1.0]
    gates = load_params(tmp_path / "mine.yaml").pseudo_label.gates
    assert gates.predictor is not None
    assert "agreement" in gates.predictor.signals
    assert load_params(tmp_path / "mine.yaml").evaluate == load_params(TINY).evaluate
    assert (tmp_path / "calibration" / "calibration.png").stat().st_size > 10_000
    again = call("hepar", "calibrate-gates", *options, "--out", "mine.yaml", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.startswith("hepar: mine.yaml is there already")


def test_an_ensemble_is_not_calibrated_by_single_teachers(tiny: Params, tmp_path: Path) -> None:
    folds = tiny.model_copy(update={"train_liver": tiny.train_liver.model_copy(update={"folds": 2})})
    with pytest.raises(ParamsError, match=r"set train_liver\.folds to 1"):
        calibrate_gates.observe(tmp_path / "cohort", tmp_path / "calibration", folds)


def test_a_wish_that_nothing_meets_is_answered_by_the_highest_that_something_does(tmp_path: Path) -> None:
    facts = {
        "observations": 40,
        "patients": 10,
        "signals": ["agreement"],
        "spearman": 0.9,
        "mean_absolute_error": 0.05,
        "wished_dice": 0.9,
        "accepted_share": 0.0,
        "accepted_mean_dice": None,
        "accepted_least_dice": None,
        "highest_wish": 0.85,
        "highest_wish_share": 0.25,
    }
    (tmp_path / calibrate_gates.FILE).write_text(json.dumps(facts))
    last = calibrate_gates.summary(tmp_path).splitlines()[-1]
    assert last.startswith(
        "accepted for a Dice of 0.9: 0%; the highest Dice that the labels bear out is 0.85, for which 25%"
    )
    (tmp_path / calibrate_gates.FILE).write_text(json.dumps(facts | {"highest_wish": None, "highest_wish_share": None}))
    assert calibrate_gates.summary(tmp_path).splitlines()[-1] == "accepted for a Dice of 0.9: 0%"

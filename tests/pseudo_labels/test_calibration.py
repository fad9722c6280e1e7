"""Calibration: the predictor, its out-of-fold errors, and the bounds for a target Dice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from good_signals import GATES, GOOD

from hepar.cases import Modality
from hepar.errors import DataError
from hepar.pseudo_labels.calibration import (
    UNREACHABLE,
    Observation,
    calibrate,
    fit,
    observations_frame,
    pass_other_gates,
    predict,
    quality_scores,
    target_curve,
    threshold,
)

OPEN = GATES.model_copy(update={"min_agreement": (0.0, 0.0), "max_entropy": (9.0, 9.0)})  # every label passes


def observations(patients: int, each: int = 3, seed: int = 0) -> list[Observation]:
    """Pseudo-livers whose Dice is the square of their agreement, with noise."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(patients * each):
        agreement = float(rng.uniform(0.4, 1.0))
        dice = float(np.clip(agreement**2 + rng.normal(0, 0.02), 0, 1))
        signals = replace(GOOD, agreement=agreement, entropy=float(rng.uniform(0, 1)))
        name = f"p{number // each}"
        made.append(Observation(f"c{number}", name, Modality.CT, 1.0, signals, dice, pairwise_dice=agreement))
    return made


def test_a_predictor_learns_the_dice_from_the_signals() -> None:
    seen, new = observations(30), observations(30, seed=1)
    predictor = fit(seen, ("agreement",))
    error_n = np.abs(predict(new, predictor) - [o.dice for o in new])
    assert float(error_n.mean()) < 0.03


def test_a_modality_with_weaker_teachers_gets_a_lower_predicted_dice() -> None:
    seen = observations(30)
    worse = [replace(o, modality=Modality.MR, patient_id=f"m{o.patient_id}", dice=o.dice - 0.1) for o in seen]
    predictor = fit([*seen, *worse], ("agreement",))
    new = observations(30, seed=1)
    as_mr = [replace(o, modality=Modality.MR) for o in new]
    loss_n = predict(new, predictor) - predict(as_mr, predictor)
    assert float(loss_n.mean()) == pytest.approx(0.1, abs=0.02)


def test_reported_errors_come_from_unseen_patients() -> None:
    shuffled = observations(30)
    rng = np.random.default_rng(3)
    dice = rng.permutation([o.dice for o in shuffled])  # unrelated to the signals
    noise = [replace(o, dice=float(value)) for o, value in zip(shuffled, dice, strict=True)]
    found = calibrate(noise, OPEN, 0.9, 0.95)
    assert abs(found.spearman) < 0.3  # a fit evaluated on its own cases would look better
    assert found.accept == UNREACHABLE
    informative = calibrate(shuffled, OPEN, 0.9, 0.95)
    assert informative.spearman > 0.9
    assert informative.mean_absolute_error < 0.04


def test_accepted_labels_reach_the_target_dice() -> None:
    found, new = calibrate(observations(60), OPEN, 0.8, 0.95), observations(200, seed=5)
    accepted_n = np.array([o.dice for o in new])[predict(new, found.predictor) >= found.accept]
    assert len(accepted_n) > 50
    assert float((accepted_n >= 0.8).mean()) > 0.9
    assert found.reject < found.accept


def test_the_threshold_is_the_lowest_bound_with_enough_coverage() -> None:
    predicted = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    dice = np.array([0.35, 0.35, 0.35, 0.35, 0.35, 0.2, 0.35])
    assert threshold(predicted, dice, 0.3, 6 / 7) == 0.5  # five of five, by the rule of succession
    assert threshold(predicted, dice, 0.3, 7 / 9) == 0.3  # six of seven
    assert threshold(predicted, dice, 0.36, 0.5) == UNREACHABLE
    assert threshold(predicted[:4], dice[:4], 0.3, 6 / 7) == UNREACHABLE  # four of four are too few
    assert threshold(predicted[:0], dice[:0], 0.3, 0.1) == UNREACHABLE


def test_no_label_with_a_predicted_dice_below_the_target_is_accepted() -> None:
    predicted, dice = np.linspace(0.95, 0.75, 21), np.full(21, 0.95)  # all are better than most predictions
    assert threshold(predicted, dice, 0.85, 0.9) == pytest.approx(0.85)
    assert threshold(predicted, dice, 0.97, 0.5) == UNREACHABLE


def test_equal_predictions_are_accepted_together() -> None:
    predicted = np.array([0.9] * 5 + [0.8] * 2)
    dice = np.array([0.95] * 4 + [0.1] + [0.95] * 2)
    assert threshold(predicted, dice, 0.7, 0.8) == UNREACHABLE  # four of four, but not without the fifth


def test_bounds_come_from_labels_that_pass_the_other_gates() -> None:
    some = observations(60)
    strict = OPEN.model_copy(update={"min_agreement": (0.9, 0.8)})
    found = calibrate(some, strict, 0.5, 0.9)
    assert found.out_of_fold.passes_n.tolist() == [o.signals.agreement >= 0.9 for o in some]
    assert pass_other_gates(some, OPEN).all()


def test_too_few_patients_and_equal_dice_are_refused() -> None:
    with pytest.raises(DataError, match=r"^3 patients have a manual liver, but calibration needs at least 4$"):
        calibrate(observations(3), OPEN, 0.9, 0.95)
    same = [replace(o, dice=0.9) for o in observations(10)]
    with pytest.raises(DataError, match=r"^every pseudo-liver has Dice 0\.900"):
        calibrate(same, OPEN, 0.9, 0.95)


def test_infinite_signals_do_not_break_a_fit() -> None:
    some = observations(10)
    some[0] = replace(some[0], signals=replace(some[0].signals, entropy=float("inf"), agreement=0.0), dice=0.0)
    predictor = fit(some, ("agreement", "entropy"))
    assert predict(some, predictor)[0] < 0.4


def test_a_higher_target_accepts_fewer_labels() -> None:
    some = observations(60)
    found = calibrate(some, OPEN, 0.8, 0.95)
    table = target_curve(found.out_of_fold, found.out_of_fold, 0.95, [0.5, 0.8, 0.999])
    assert table.accepted_share.is_monotonic_decreasing
    assert (table.share_at_target.dropna() >= 0.95).all()
    assert table.accepted_share.iloc[-1] == 0
    assert np.isnan(table.mean_dice.iloc[-1])


def test_both_scores_of_quality_stand_by_their_column_of_the_table() -> None:
    some, predicted_n = observations(4, each=1), np.array([0.1, 0.2, 0.3, 0.4])
    table, scores = observations_frame(some, predicted_n), quality_scores(some, predicted_n)
    assert list(scores) == ["predicted_dice", "pairwise_dice"]
    for name, score_n in scores.items():
        assert table[name].tolist() == score_n.tolist()
    assert table.pairwise_dice.tolist() == [o.signals.agreement for o in some]

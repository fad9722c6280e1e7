"""Whether tables of scores were made alike, by their facts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from score_csv import scores_csv

from hepar.evaluation.report_folder import Report
from hepar.evaluation.score_table import ScoreTable, parse_scores
from hepar.evaluation.scored_alike import scoring_differences
from hepar.inference.model_folder import ModelFolder
from hepar.inference.settings import PredictionSettings
from hepar.runtime.commit import RELEASE

OF_MODEL = {RELEASE: "1", ModelFolder.KIND: "a", **PredictionSettings(0.5, 1, (), 0.4, 0.1).facts()}
FIRST = parse_scores(scores_csv([{"case_id": "a"}]), "x", OF_MODEL)


def other(**facts: str) -> ScoreTable:
    return replace(FIRST, name="y", facts={**OF_MODEL, **facts})


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, ""),
        ({RELEASE: "2"}, "release is 1 in x and 2 in y"),
        ({RELEASE: ""}, "release is 1 in x and not known in y"),
        ({"overlap": "0.25"}, "overlap is 0.5 in x and 0.25 in y"),
        ({"mirror_axes": "yx", "variants": "2"}, "variants is 1 in x and 2 in y; mirror_axes is none in x and yx in y"),
    ],
)
def test_what_differs_is_named_by_table(facts: dict[str, str], expected: str) -> None:
    assert scoring_differences([FIRST, other(**facts)]) == expected


def test_thresholds_that_each_model_has_chosen_are_no_difference() -> None:
    own = {Report.LEFT_TO_MODEL: "tumour_threshold"}
    one, two = (other(**own, tumour_threshold=value) for value in ("0.3", "0.7"))
    assert scoring_differences([one, replace(two, name="z")]) == ""
    assert scoring_differences([FIRST, two]) == "tumour_threshold is 0.4 in x and the model's own in y"


def test_masks_that_were_scored_without_a_model_have_no_settings() -> None:
    masks = replace(FIRST, name="y", facts={RELEASE: "1"})
    assert scoring_differences([FIRST, masks]) == ""
    unknown = replace(FIRST, name="z", facts={})
    assert scoring_differences([FIRST, masks, unknown]) == "release is 1 in x, y and not known in z"

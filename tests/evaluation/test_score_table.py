"""Tables of scores: where they are read from, and which cases can be paired."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from score_csv import scores_csv

from hepar.errors import ArtifactError, DataError
from hepar.evaluation.report_folder import Report
from hepar.evaluation.score_table import pair_cases, parse_scores, read_scores
from hepar.runtime.artifacts import write_artifact
from hepar.runtime.commit import RELEASE

ROWS = [{"case_id": "a", "liver_dice": 0.9, "specific": True}, {"case_id": "b", "liver_dice": None, "specific": False}]


def test_numbers_and_truth_values_are_numbers_and_what_is_empty_is_left_out() -> None:
    table = parse_scores(scores_csv(ROWS), "x")
    assert table.rows["a"].values == {"liver_dice": 0.9, "specific": 1.0}
    assert table.rows["b"].values == {"specific": 0.0}
    assert table.rows["a"].identity.modality == "CT"
    mixed = parse_scores(scores_csv([*ROWS, {"case_id": "c", "specific": None}]), "x")
    assert [row.values.get("specific") for row in mixed.rows.values()] == [1, 0, None]


def write_report(folder: Path) -> None:
    cases = pd.DataFrame({name: ["NA"] for name in Report.TEXTS} | {"liver_dice": [0.5]})
    with write_artifact(folder, Report.KIND, {}) as partial:
        Report(partial).save({}, {RELEASE: "1"}, cases, pd.DataFrame({"case_id": []}))


def test_a_report_and_a_folder_that_holds_one_have_the_same_scores(tmp_path: Path) -> None:
    write_report(tmp_path / "run" / "report")
    run, report, file = (
        read_scores(place, "report")
        for place in (tmp_path / "run", tmp_path / "run" / "report", tmp_path / "run" / "report" / Report.CASES)
    )
    assert run.rows == report.rows == file.rows
    assert run.facts == report.facts == file.facts == {RELEASE: "1"}
    copied = tmp_path / "run" / Report.CASES
    copied.write_text((tmp_path / "run" / "report" / Report.CASES).read_text())
    assert read_scores(copied, "report").facts == {}
    assert run.rows["NA"].values == {"liver_dice": 0.5}
    assert run.name == str(tmp_path / "run")


def test_places_without_scores_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        read_scores(tmp_path / "nowhere", "report")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no report: neither manifest\.json nor a folder report"):
        read_scores(tmp_path / "empty", "report")
    with write_artifact(tmp_path / "pool", "pool", {}) as folder:
        (folder / "x").write_text("")
    with pytest.raises(ArtifactError, match="pool but must be report"):
        read_scores(tmp_path / "pool", "report")
    write_report(tmp_path / "damaged")
    (tmp_path / "damaged" / Report.CASES).write_text("case_id\n")
    with pytest.raises(ArtifactError, match=Report.CASES):
        read_scores(tmp_path / "damaged", "report")


@pytest.mark.parametrize(
    ("csv", "problem"),
    [
        ("", "x is not a table of scores"),
        ("case_id,liver_dice\na,1\n", "x is not a table of scores: the column patient_id is missing"),
        (scores_csv([{"case_id": "a"}]).splitlines()[0] + "\n", "x has no cases"),
        (scores_csv([*ROWS, ROWS[0]]), "x: case a: the id is used twice"),
        (scores_csv([{"case_id": "a", "liver_dice": "n/a"}]), "x: case a: liver_dice is 'n/a' but must be a number"),
        (scores_csv([{"case_id": "a", "liver_dice": "inf"}]), "x: case a: liver_dice is inf but must be a number"),
        (scores_csv([{"case_id": "a", "modality": ""}]), "x: case a: modality is empty"),
        (scores_csv([{"case_id": "a"}]) + 'b,"c\n', "x is not a table of scores"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(csv: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parse_scores(csv, "x")


def test_the_cases_of_one_table_alone_are_named() -> None:
    first = parse_scores(scores_csv([{"case_id": name} for name in "dbac"]), "x")
    second = parse_scores(scores_csv([{"case_id": name} for name in "ebcf"]), "y")
    paired = pair_cases(first, second)
    assert [one.identity.case_id for one, _ in paired.pairs] == ["b", "c"]
    assert (paired.only_first, paired.only_second) == (("a", "d"), ("e", "f"))
    with pytest.raises(DataError, match=r"x \(4 cases, such as a\) and z \(1, such as q\) have no case in common"):
        pair_cases(first, parse_scores(scores_csv([{"case_id": "q"}]), "z"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"patient_id": "p"}, "case a: patient_id is 'a' in x but 'p' in y"),
        ({"modality": "MR"}, "case a: modality is 'CT' in x but 'MR' in y"),
        ({"source": "B"}, "case a: source is 'A' in x but 'B' in y"),
        ({"tumour_reference_volume_ml": 10.1}, "case a: the reference tumour has 10.00 ml in x but 10.10 ml in y"),
    ],
)
def test_the_same_id_must_be_the_same_case_and_reference(change: dict[str, object], problem: str) -> None:
    row = {"case_id": "a", "tumour_reference_volume_ml": 10.0}
    first, same = (parse_scores(scores_csv([row]), name) for name in "xy")
    assert len(pair_cases(first, same).pairs) == 1
    with pytest.raises(DataError, match=problem):
        pair_cases(first, parse_scores(scores_csv([{**row, **change}]), "y"))

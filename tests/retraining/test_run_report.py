"""How a run ended: a version beside the champion that it met, pointers to it, and runs that failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY
from toy_versions import ToyRegistry, scores, toy_gates
from typer.testing import CliRunner

from hepar.cli.main import app
from hepar.errors import DataError
from hepar.evaluation.summary import Bootstrap
from hepar.params import Params
from hepar.registry.champion import MET_TAG, Judge, promote, rollback, settle
from hepar.registry.model_registry import RUN_TAG, RegisteredModel
from hepar.registry.tracking import connect
from hepar.retraining.run_report import (
    FIGURE,
    POINTERS,
    TEXT,
    Failure,
    describe_run,
    newest_version,
    pointed_version,
    read_failure,
)
from hepar.retraining.submission import REASONS_TAG, RUN_NAME

NAME, FAST = "hepar-toy", Bootstrap(1, 50)
FAILED = {"outcome": "FAILED", "subject": "run\n 7", "details": ["evaluate: no"], "links": {"log": "https://x"}}


@pytest.fixture
def registry(tmp_path: Path, database: None) -> ToyRegistry:
    return ToyRegistry(tmp_path)


def settled(registry: ToyRegistry, tiny: Params, number: str) -> str:
    settle(number, Judge(RegisteredModel(connect(), NAME), toy_gates(tiny).gates))
    return number


def test_a_version_is_described_beside_the_one_that_it_met(registry: ToyRegistry, tiny: Params, tmp_path: Path) -> None:
    """A new champion beside the previous one, a challenger beside the champion, the first beside none."""
    assert newest_version(NAME) == ""
    first = settled(registry, tiny, registry.add(scores(0.8), **{"pool version": "ab.dir"}))
    alone = describe_run(NAME, first, FAST)
    assert (alone.alias, alone.against, alone.comparison) == ("champion", "", None)
    assert "There was no champion to compare it with." in alone.text()
    assert alone.facts["pool version"] == "ab.dir"

    second = settled(registry, tiny, registry.add(scores(0.9)))
    third = settled(registry, tiny, registry.add(scores(0.6)))
    registry.client.set_model_version_tag(NAME, third, REASONS_TAG, "6 new cases")
    registry.add(scores(0.9))  # no gate has decided on it yet
    assert newest_version(NAME) == third
    champion, challenger = (describe_run(NAME, number, FAST) for number in (second, third))
    assert (champion.alias, champion.against) == ("champion", f"models:/{NAME}/{first}")
    assert (challenger.alias, challenger.against) == ("challenger", f"models:/{NAME}/{second}")
    assert challenger.comparison is not None
    (row,) = [row for row in challenger.comparison.rows if row.metric.name == "liver Dice"]
    assert row.result.difference.value == pytest.approx(-0.3)
    text = challenger.text()
    assert "Last decision: not promoted; " in text
    assert "Trained because: 6 new cases." in text
    challenger.write(tmp_path / "out")
    assert (tmp_path / "out" / FIGURE).is_file()
    alone.write(tmp_path / "out")
    assert not (tmp_path / "out" / FIGURE).exists(), "the figure of another version was left"


def test_a_version_stands_beside_the_champion_of_its_last_decision(registry: ToyRegistry, tiny: Params) -> None:
    """Whoever is champion by now."""
    first, better, best = (registry.add(scores(dice)) for dice in (0.8, 0.85, 0.9))
    worse = registry.add(scores(0.6))
    for number in (first, worse, better, best):
        settled(registry, tiny, number)
    met = {number: describe_run(NAME, number, FAST).against for number in (first, worse, better, best)}
    address = f"models:/{NAME}/"
    assert met == {first: "", worse: f"{address}{first}", better: f"{address}{first}", best: f"{address}{better}"}
    promote(worse, toy_gates(tiny), force=True)
    assert describe_run(NAME, worse, FAST).against == f"{address}{best}"
    for number in (worse, better):  # as an older release left them
        registry.client.delete_model_version_tag(NAME, number, MET_TAG)
    assert describe_run(NAME, worse, FAST).against == f"{address}{best}"
    assert describe_run(NAME, better, FAST).against == f"{address}{worse}"


def test_a_version_that_was_rolled_back_is_reported_as_such(registry: ToyRegistry, tiny: Params) -> None:
    first, second = (settled(registry, tiny, registry.add(scores(dice))) for dice in (0.8, 0.9))
    rollback(toy_gates(tiny))
    report = describe_run(NAME, second, FAST)
    assert report.title == f"{NAME} version {second}: rolled back to version {first}"
    assert f"Last decision: rolled back to version {first}." in report.text()
    assert describe_run(NAME, first, FAST).title == f"{NAME} version {first}: champion"


def test_versions_without_common_patients_are_not_compared(registry: ToyRegistry, tiny: Params) -> None:
    settled(registry, tiny, registry.add(scores(0.8)))
    others = scores(0.9).assign(case_id=[f"d{n}" for n in range(6)])
    found = describe_run(NAME, settled(registry, tiny, registry.add(others, test_set="b")), FAST)
    assert found.comparison is None
    assert f"Not compared with models:/{NAME}/1: " in found.text()
    assert "have no case in common" in found.text()


def test_the_reasons_of_a_run_on_a_cluster_are_those_of_the_attempt(registry: ToyRegistry, tiny: Params) -> None:
    number = settled(registry, tiny, registry.add(scores(0.8), **{"kfp run": "run-7"}))
    tags = {RUN_TAG: "run-7", REASONS_TAG: "a liver was drawn"}
    registry.client.create_run(registry.experiment, run_name=RUN_NAME, tags=tags)
    assert describe_run(NAME, number, FAST).reasons == "a liver was drawn"


def test_what_the_pointers_name_is_not_reported_again(registry: ToyRegistry, tiny: Params, tmp_path: Path) -> None:
    settled(registry, tiny, registry.add(scores(0.8)))
    params = tmp_path / "own.yaml"
    params.write_text(yaml.safe_dump({"extends": str(TINY), "register": {"model_name": NAME}}))

    def report(*more: str) -> Any:
        words = ["report-run", "--params", str(params), "--pointers", str(tmp_path), "--out", str(tmp_path / "out")]
        return CliRunner().invoke(app, [*words, *more])

    assert report().exit_code == 0
    (tmp_path / f"{NAME}.yaml").write_text((tmp_path / "out" / POINTERS).read_text())
    assert pointed_version(tmp_path, NAME) == "1"
    assert report().exit_code == 3
    assert report("1").exit_code == 0
    promoted = CliRunner().invoke(app, ["promote", str(tmp_path), "--params", str(params)])
    assert promoted.stdout == "version 1 is the champion already; nothing changed\n"
    message = tmp_path / "message.json"
    message.write_text(json.dumps({"client_payload": FAILED}))
    failed = report("--message", str(message))
    assert (failed.exit_code, failed.stdout) == (0, f"FAILED: run 7: {tmp_path / 'out'}\n")
    assert not (tmp_path / "out" / POINTERS).exists()
    assert "- evaluate: no" in (tmp_path / "out" / TEXT).read_text()


@pytest.mark.parametrize("text", ["name: other\nversion: '1'\n", "version: '1'\n", "[]", "a: [", ""])
def test_pointers_that_name_no_version_of_the_model_are_refused(tmp_path: Path, text: str) -> None:
    assert pointed_version(tmp_path, NAME) == ""
    (tmp_path / f"{NAME}.yaml").write_text(text)
    with pytest.raises(DataError, match=r"hepar-toy"):
        pointed_version(tmp_path, NAME)


@pytest.mark.parametrize(
    "message",
    [{"outcome": "SUCCEEDED"}, {"client_payload": {"outcome": "SUCCEEDED"}}, {"schedule": "1 * * * *"}, {}, [], "x"],
)
def test_a_message_of_no_failure(message: Any) -> None:
    assert read_failure(message) is None


def test_a_failure_is_read_whatever_else_the_message_holds() -> None:
    assert read_failure(FAILED) == Failure("FAILED", "run 7", ("evaluate: no",), {"log": "https://x"})
    assert read_failure({"outcome": "ERROR", "details": "x", "links": 3}) == Failure("ERROR", "", (), {})

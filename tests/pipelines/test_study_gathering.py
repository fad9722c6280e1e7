"""A study that a cluster has run: its reports are found in the store by the steps that made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_study import ARMS, FakeStages, write_study

from components.stored_artifacts import StoredArtifact
from hepar.errors import DataError, HeparError
from hepar.evaluation.report_folder import Report
from hepar.runtime.environment import STORE_VARIABLE
from pipelines.studies.definition import load_study
from pipelines.studies.folds import remote_folds
from pipelines.studies.gathering import CLUSTER, gather_study, stored_name
from pipelines.studies.layout import result_of
from pipelines.studies.plan import StudyCell, plan_cells
from pipelines.studies.report import write_study_report
from pipelines.studies.running import run_cells

CASES = 7


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of three seeds, and a store."""
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    return write_study(tmp_path, seeds=[1, 2, 3])


def cells_of(study: Path) -> list[StudyCell]:
    loaded, folds, _ = remote_folds(load_study(study))
    return plan_cells(loaded, folds)


def run_as_tasks(cells: list[StudyCell], folder: Path, universal: float) -> None:
    """Finish these cells, with this liver Dice of the universal arm, as tasks that hand their reports to the store."""
    folder.mkdir(exist_ok=True)
    stages = FakeStages(lambda arm, case: universal if arm == "universal" else 0.5 + case / 100, CASES)
    assert run_cells(cells, folder, stages) == []
    for step in (cell.steps[-1] for cell in cells):
        StoredArtifact(Report.KIND, {}, name=stored_name(step)).finish(result_of(step, folder))


def figures(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "reports" / "toy" / "study.json").read_text())
    return {name: found[name] for name in ("figures", "claims", "missing")}


def test_the_gathered_report_is_that_of_the_cells(study: Path, tmp_path: Path) -> None:
    cells = cells_of(study)
    run_as_tasks(cells, tmp_path / "pods", 0.9)
    gather_study(study, tmp_path / "out", None)
    gathered = tmp_path / "out" / CLUSTER
    write_study_report(load_study(study), cells, [], tmp_path / "pods")
    assert figures(gathered) == figures(tmp_path / "pods")
    assert figures(gathered)["claims"][0]["verdict"] == "holds"
    page = (gathered / "reports" / "toy" / "study.md").read_text()
    assert "6 of 6 cells finished, commit abc." in page  # how long a cluster took is not known
    assert "Not all steps are of one commit" not in page


def test_cells_that_are_not_in_the_store_yet_are_missing(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = cells_of(study)
    with pytest.raises(DataError, match=r"store has no report of study toy: is it the store of the cluster, and are"):
        gather_study(study, tmp_path / "out", None)
    run_as_tasks(cells[:-1], tmp_path / "pods", 0.9)
    with pytest.raises(HeparError, match=r"^1 of 6 cells are missing, first CT only, seed 3: its report is not in /"):
        gather_study(study, tmp_path / "out", None)
    assert "5 of 6 cells finished" in capsys.readouterr().out
    run_as_tasks(cells[-1:], tmp_path / "pods", 0.9)
    gather_study(study, tmp_path / "out", None)
    printed = capsys.readouterr()
    assert "6 of 6 cells finished" in printed.out
    assert printed.err.count("fetches report") == 1  # the others are there


def test_a_report_that_was_made_again_is_fetched_again(study: Path, tmp_path: Path) -> None:
    for number, dice in enumerate((0.9, 0.3)):
        run_as_tasks(cells_of(study), tmp_path / f"pods-{number}", dice)
        gather_study(study, tmp_path / "out", None)
        (claim,) = figures(tmp_path / "out" / CLUSTER)["claims"]
        assert claim["gain"] == pytest.approx(dice - 0.53)
    assert claim["verdict"] == "does not hold"


def test_without_a_store_the_variable_is_named(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE_VARIABLE)
    with pytest.raises(DataError, match="what a study has made on a cluster is in a store: set HEPAR_STORE"):
        gather_study(study, tmp_path / "out", None)


def test_every_cell_has_a_name_of_its_own(study: Path) -> None:
    names = [stored_name(cell.steps[-1]) for cell in cells_of(study)]
    assert len(set(names)) == len(names) == 3 * len(ARMS)

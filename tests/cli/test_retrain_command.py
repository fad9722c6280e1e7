"""`hepar retrain` and `hepar watch` on a folder of phantoms with a champion of it; nothing is trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from conftest import made_once
from inbox import opened_inbox
from phantom_folder import PhantomFolder
from toy_champion import NAME, write_champion
from typer.testing import CliRunner

import hepar.cli.retraining
import hepar.stages.ingest
from hepar.cases import Cohort
from hepar.cli.main import app
from hepar.cli.retraining import REFUSED
from hepar.errors import HeparError
from hepar.params import Params, dump_params
from hepar.pseudo_labels.review_page.session import ReviewSession
from hepar.retraining.folder import RetrainingFolder

pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")  # MLflow, of a type of its own
CT, MR = LATER = ("phantom-ct-0004", "phantom-mr-0005")  # whose livers are drawn after the champion has learned


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, phantom_source: Path, tiny: Params) -> Path:
    """A source in which some livers are not drawn yet and a scan occurs twice, and a run on it, with its database."""

    def write(folder: Path) -> None:
        source = PhantomFolder(Path(shutil.copytree(phantom_source, folder / "source")))
        rows = [_undrawn(row) if row["case_id"] in LATER else row for row in source.rows()]
        source.rewrite([*rows, {**rows[0], "case_id": "zy-known-copy", "patient_id": "yet another"}])
        (folder / "run").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'run' / 'mlflow.db'}")
            write_champion(source.folder, folder / "run", tiny)

    return made_once(tmp_path_factory, "retraining", write)


def _undrawn(row: dict[str, str]) -> dict[str, str]:
    return {**row, "liver": "", "liver_state": "unknown"}


@dataclass
class Workplace:
    """A copy of the source and of the run, and the trainings that were started; each ends as `outcome` says."""

    folder: Path
    source: PhantomFolder
    trained: list[Path] = field(default_factory=list)
    outcome: Callable[[], None] = lambda: None

    def retrain(self, *more: str, command: str = "retrain", **values: Any) -> Result:
        params = self.folder / "own.yaml"
        params.write_text(yaml.safe_dump(self.params(values)))
        words = [command, "--source", str(self.source.folder), "--workdir", str(self.folder / "run")]
        return CliRunner().invoke(app, [*words, "--params", str(params), *more])

    def params(self, values: dict[str, Any]) -> dict[str, Any]:
        given = dump_params(self.tiny)
        given["register"]["model_name"], given["experiment"] = NAME, "toy"
        given["retrain"].update(min_became_known=2, min_new_cases=9, suspect_dice=0.0, look_seconds=[0.01, 0.02])
        given["retrain"].update(values)
        return given

    tiny: Params = field(kw_only=True)

    def runner(self, name: str) -> Callable[..., None]:
        def run(params: Params, workdir: Path, image: str) -> None:
            self.trained.append(workdir)
            self.outcome()

        return run

    def draw(self, *case_ids: str) -> None:
        """Put masks into the table that were missing."""
        rows = self.source.rows()
        for row in rows:
            if row["case_id"] in case_ids:
                row.update(liver=f"{row['case_id']}/liver.nii.gz", liver_state="manual")
        self.source.rewrite(rows)


@pytest.fixture
def place(finished: Path, tmp_path: Path, tiny: Params, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    shutil.copytree(finished / "source", tmp_path / "source")
    shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    workplace = Workplace(tmp_path, PhantomFolder(tmp_path / "source"), tiny=tiny)
    monkeypatch.setattr(hepar.cli.retraining, "load_runner", workplace.runner)
    return workplace


def test_an_unknown_that_became_known_is_trained_once(place: Workplace) -> None:
    unchanged = place.retrain()
    assert unchanged.exit_code == 3, unchanged.output
    assert "0 new cases, at least 9 are enough" in unchanged.stdout
    place.draw(*LATER)
    planned = place.retrain("--dry-run", "--json")
    assert planned.exit_code == 0, planned.output
    found = json.loads(planned.stdout)
    assert (found["retrain"], found["submitted"], found["champion"]) == (True, False, f"models:/{NAME}/1")
    (reason,) = [check for check in found["checks"] if check["holds"]]
    assert (reason["rule"], reason["value"], reason["bound"]) == ("unknowns that became known", 2, 2)
    assert reason["counts"] == {"CT/phantom": 1, "MR/phantom": 1}
    assert place.trained == []
    assert place.retrain().exit_code == 0
    again = place.retrain()
    assert (again.exit_code, place.trained) == (3, [place.folder / "run"])
    assert "not trained: this state has been trained already (MLflow run " in again.stdout
    planned = place.retrain("--dry-run")
    assert (planned.exit_code, planned.stdout) == (3, again.stdout)
    assert planned.stdout.startswith("retrain: no\n")
    found = json.loads(place.retrain("--dry-run", "--json").stdout)
    assert (found["retrain"], found["submitted"]) == (False, False)
    assert f"not trained: {found['why_not']}" == again.stdout.splitlines()[-1]


def test_a_failed_training_is_resubmitted_at_most_as_often_as_allowed(place: Workplace) -> None:
    def fail() -> None:
        raise HeparError("evaluate: no")

    place.outcome = fail
    place.draw(*LATER)
    results = [place.retrain(max_resubmissions=1) for _ in range(3)]
    assert [type(result.exception).__name__ for result in results[:2]] == ["HeparError", "HeparError"]
    assert len(place.trained) == 2
    assert results[2].exit_code == 3
    assert "training this state has failed 2 times; at most 1 resubmissions are allowed" in results[2].stdout


@pytest.mark.parametrize("ended", ["finished", "failed"])
def test_a_training_that_was_not_promoted_is_not_repeated_for_a_single_label(place: Workplace, ended: str) -> None:
    """It has ended with the model that is champion already. One that failed has learned from nothing."""

    def end() -> None:
        if ended == "failed":
            raise HeparError("evaluate: no")

    place.outcome = end
    place.draw(CT)
    place.retrain(min_became_known=1)
    place.draw(MR)
    place.outcome = lambda: None
    again = place.retrain("--dry-run", min_became_known=2)
    assert again.exit_code == (3 if ended == "finished" else 0), again.output
    assert "reason: 2 unknowns became known" in again.stdout
    sentence = "0 new cases and 1 unknowns that became known have come since, at least 9 or 2 are enough"
    assert (sentence in again.stdout) == (ended == "finished")
    assert place.retrain(min_became_known=1).exit_code == 0
    assert len(place.trained) == 2


def test_a_suspicious_mask_is_refused_until_it_is_reviewed(place: Workplace) -> None:
    """The champion does not know MR, so that nothing speaks against the other one."""
    place.draw(*LATER)
    refused = place.retrain(suspect_dice=1.0)
    assert (refused.exit_code, place.trained) == (REFUSED, []), refused.output
    assert f"1 of 2 new cases are suspicious, more than retrain.max_suspect_share (0.2) allows: {CT}" in refused.stdout
    folder = RetrainingFolder.of_workdir(place.folder / "run")
    session = ReviewSession(folder.cohort, folder.suspects, folder.reviews_folder, "somebody")
    (described,) = session.describe_all()
    assert described["case_id"] == CT
    assert "liver Dice with the champion's prediction" in described["reasons"][0]
    assert session.file(CT, "uncertain.nii.gz").is_file()
    session.decide(CT, "reject")
    held = place.retrain(suspect_dice=1.0)
    assert (held.exit_code, place.trained) == (REFUSED, [])
    assert f"refused: rejected in review, but still in the source: {CT}" in held.stdout
    session = ReviewSession(folder.cohort, folder.suspects, folder.reviews_folder, "somebody")
    session.decide(CT, "accept")
    assert place.retrain(suspect_dice=1.0).exit_code == 0
    assert len(place.trained) == 1


def test_a_dry_run_tells_nobody_of_a_refusal_and_the_run_after_it_does(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.draw(*LATER)
    with opened_inbox() as inbox:
        monkeypatch.setenv("HEPAR_NOTIFY_URL", inbox.url)
        planned = place.retrain("--dry-run", suspect_dice=1.0)
        assert "\nrefused: 1 of 2 new cases are suspicious" in planned.stdout
        assert inbox.bodies == []
        assert RetrainingFolder.of_workdir(place.folder / "run").last_look() == {}
        for _ in range(2):
            place.retrain(suspect_dice=1.0)
        assert len(inbox.bodies) == 1


def test_a_copy_of_a_known_patient_makes_its_batch_suspicious(place: Workplace) -> None:
    copied = {**place.source.rows()[0], "case_id": "zz-copy", "patient_id": "another"}
    place.source.rewrite([*place.source.rows(), copied])
    result = place.retrain()
    assert result.exit_code == REFUSED
    assert "zz-copy (refused by ingest: no scan occurs twice: same voxels as case phantom-ct-0000)" in result.stdout


@pytest.mark.parametrize("logged", [True, False])
def test_what_was_refused_when_the_champion_learned_is_not_suspicious_without_its_cohort(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, logged: bool
) -> None:
    """A run of an older release has not logged it: then nobody knows the age of a refusal."""
    shutil.rmtree(place.folder / "run" / "cohort")
    if not logged:
        monkeypatch.setattr("hepar.registry.lineage_server.LoggedRun.refused", lambda *given: None)
    place.draw(*LATER)
    copied = {**place.source.rows()[1], "case_id": "zz-copy", "patient_id": "another"}
    result = place.retrain("--dry-run", max_suspect_share=0.1)
    assert result.exit_code == 0, result.output
    place.source.rewrite([*place.source.rows(), copied])
    result = place.retrain("--dry-run", max_suspect_share=0.1)
    assert ("1 of 3 new cases are suspicious" in result.stdout) == logged, result.output
    assert "zy-known-copy" not in result.stdout


def test_a_look_at_an_unchanged_source_ingests_nothing(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place.retrain("--json").stdout
    monkeypatch.setattr("hepar.stages.ingest.run", lambda *arguments: pytest.fail("it was ingested"))
    assert place.retrain("--json").stdout == first


def test_a_look_notices_another_split_in_an_unchanged_table_name(place: Workplace, tmp_path: Path) -> None:
    table, states = tmp_path / "splits.csv", []
    for split in ("train", "val", "val"):
        table.write_text(f"case_id,split\n{CT},{split}\n")
        states.append(json.loads(place.retrain("--json", "--split-from", str(table)).stdout)["state"])
    assert states[0] != states[1] == states[2]


def test_a_cohort_of_its_own_links_what_has_not_changed(place: Workplace) -> None:
    folder = RetrainingFolder.of_workdir(place.folder / "run")
    place.retrain()
    image = Cohort.load(folder.cohort).cases[0].image
    before = (folder.cohort / image).stat().st_ino
    place.draw(*LATER)
    place.retrain("--dry-run")
    assert (folder.cohort / image).stat().st_ino == before


def test_two_looks_at_one_time_in_a_working_directory_are_one(place: Workplace) -> None:
    with RetrainingFolder.of_workdir(place.folder / "run").hold():
        result = place.retrain()
    assert result.exit_code == 3
    assert "another look or training is at work in" in result.stderr


def test_watch_trains_once_and_stops_on_a_signal(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C arrives in the wait after the third look."""
    waits: list[float] = []

    def wait(seconds: float, stopped: Any) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            place.draw(*LATER)
        if len(waits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("hepar.retraining.watching._wait", wait)
    result = place.retrain(command="watch")
    assert result.exit_code == 0, result.output
    lines = [line.partition(" ")[2] for line in result.stdout.splitlines()]
    assert lines[0] == "no reason to train; next look in 0 s"
    assert lines[1].startswith("trained: 2 unknowns became known (CT/phantom 1, MR/phantom 1): 2 liver drawn")
    assert f"; {NAME} version 1, champion; next look in 0 s" in lines[1]  # what the run has registered
    assert lines[2].startswith("not trained: this state has been trained already")
    assert f": {NAME} version 1, " in lines[2]
    assert "`hepar promote 1` decides again" in lines[2]
    assert len(place.trained) == 1


def test_a_watch_that_is_stopped_in_a_look_trains_nothing(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler of a cluster would kill it soon after."""
    ingest = hepar.stages.ingest.run

    def stopped_meanwhile(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        ingest(*given)

    monkeypatch.setattr("hepar.stages.ingest.run", stopped_meanwhile)
    place.draw(*LATER)
    result = place.retrain(command="watch")
    assert result.exit_code == 0, result.output
    assert [line.partition("Z ")[2] or line for line in result.stdout.splitlines()] == [
        "not trained: SIGTERM arrived",
        "stopped",
    ]
    assert place.trained == []

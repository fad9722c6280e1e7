"""Registration: the same model and report are one version, a broken one is completed, later ones meet the gates."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from toy_cohort import EVERYWHERE, write_cohort
from toy_model import constant_weights, write_model
from toy_versions import scores, toy_gates

import hepar.stages.evaluate
import hepar.stages.register
from hepar.errors import ArtifactError, StorageError
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, RegisterParams
from hepar.registry.champion import DECISION_TAG, rollback
from hepar.registry.model_registry import POOL_TAG, RegisteredModel, pool_version
from hepar.registry.registration import Registration
from hepar.registry.tracking import MODEL_TAG, connect
from hepar.runtime.artifacts import read_manifest, write_artifact
from hepar.runtime.commit import RELEASE, release

pytestmark = [
    pytest.mark.usefixtures("database"),
    pytest.mark.filterwarnings("ignore:.*inferred as AnyType"),  # MLflow, of a type of its own
]
NAME = "hepar-toy"


def report_on(model: Path, report: Path, liver: float, test_set: str = "a") -> Path:
    """A report that gives a model this liver Dice in every case."""
    model_hash = read_manifest(model, ModelFolder.KIND).hash
    facts = {
        Report.TEST_SET: test_set,
        RELEASE: release(),
        ModelFolder.KIND: model_hash,
        ModelFolder.POOL_VERSION: "v1",
    }
    dice = {name: {"dice": {"mean": value}} for name, value in (("liver", liver), ("tumour", None))}
    with write_artifact(report, Report.KIND, {ModelFolder.KIND: model_hash}) as folder:
        Report(folder).save({"CT": dice}, facts, scores(liver), pd.DataFrame({"case_id": []}))
    return report


@pytest.fixture
def model(tmp_path: Path, tiny: Params) -> Path:
    return write_model(tmp_path / "model", tiny).folder


def another_model(folder: Path, tiny: Params) -> Path:
    return write_model(folder / "rival", tiny, min_lesion_ml=0.7).folder


def register(model: Path, report: Path, tiny: Params) -> Registration:
    registration = model.parent / "registration"
    hepar.stages.register.run(model, report, registration, toy_gates(tiny, NAME), "tests")
    return Registration.load(registration)


def versions() -> list[str]:
    found = connect().MlflowClient().search_model_versions(f"name='{NAME}'")
    return sorted(str(version.version) for version in found)


def aliases() -> dict[str, str]:
    return RegisteredModel(connect(), NAME).aliases()


def test_the_same_model_and_report_are_one_version(model: Path, tiny: Params, tmp_path: Path) -> None:
    report = report_on(model, tmp_path / "report", 0.9)
    first = register(model, report, tiny)
    assert first == Registration(NAME, "1", "champion", ())
    sealed = read_manifest(tmp_path / "registration", Registration.KIND).hash
    assert register(model, report, tiny) == first
    assert read_manifest(tmp_path / "registration", Registration.KIND).hash == sealed
    assert (versions(), aliases()) == (["1"], {"champion": "1"})
    client = mlflow.MlflowClient()
    version = client.get_model_version(NAME, "1")
    assert version.tags[MODEL_TAG] == read_manifest(model, ModelFolder.KIND).hash
    assert version.tags[POOL_TAG] == pool_version(f"models:/{NAME}@champion") == "v1"
    run = client.get_run(version.run_id)
    assert run.data.metrics["test/CT/liver_dice"] == 0.9
    logged = mlflow.search_logged_models(experiment_ids=[run.info.experiment_id], output_format="list")
    assert len(logged) == 1


def test_a_version_is_judged_by_its_own_report_after_the_model_has_got_another(
    model: Path, tiny: Params, tmp_path: Path
) -> None:
    register(model, report_on(model, tmp_path / "report", 0.3), tiny)
    rival = another_model(tmp_path, tiny)
    register(rival, report_on(rival, tmp_path / "rival-report", 0.9), tiny)
    again = register(model, report_on(model, tmp_path / "other", 0.7), tiny)
    reason = "CT liver Dice: change -0.200 [-0.200, -0.200] may lie below -0.020 (n = 6 patients)"
    assert again == Registration(NAME, "3", "challenger", (reason,))
    kept = [RegisteredModel(connect(), NAME).version(number) for number in "123"]
    assert [version.cases[0].liver_dice for version in kept if version and version.cases] == [0.3, 0.9, 0.7]
    assert mlflow.MlflowClient().get_model_version(NAME, "3").tags[DECISION_TAG] == f"not promoted; {reason}"


def test_a_first_version_below_a_floor_becomes_challenger(model: Path, tiny: Params, tmp_path: Path) -> None:
    result = register(model, report_on(model, tmp_path / "report", 0.01), tiny)
    assert (result.alias, aliases()) == ("challenger", {"challenger": "1"})


def test_the_champion_under_another_report_is_no_challenger_to_itself(
    model: Path, tiny: Params, tmp_path: Path
) -> None:
    register(model, report_on(model, tmp_path / "report", 0.8), tiny)
    result = register(model, report_on(model, tmp_path / "other", 0.99, test_set="b"), tiny)
    assert result.reasons == ("version 1, the champion, is the same model",)
    assert aliases() == {"champion": "1", "challenger": "2"}


def test_a_champion_is_scored_anew_where_the_test_set_has_grown(tiny: Params, tmp_path: Path) -> None:
    """Its own report says that it is perfect, on two patients; its model finds no liver in any of the three of now."""
    first = write_model(tmp_path / "first", tiny, constant_weights(tiny, 0.1, 0.1)).folder
    register(first, report_on(first, tmp_path / "report", 1.0), tiny)
    better = write_model(tmp_path / "better", tiny, constant_weights(tiny, 0.9, 0.1)).folder
    cohort, grown = write_cohort(tmp_path / "small", ["p0", "p1"]), write_cohort(tmp_path / "grown", ["p0", "p1", "p2"])
    hepar.stages.evaluate.run(grown, better, tmp_path / "scored", tiny.evaluate)
    floor = toy_gates(tiny, NAME).gates.model_copy(update={"min_liver_dice": EVERYWHERE - 0.01})
    section = RegisterParams(model_name=NAME, gates=floor)
    places = better, tmp_path / "scored", tmp_path / "registration"
    with pytest.raises(ArtifactError, match="run evaluate again"):
        hepar.stages.register.run(*places, section, "tests", cohort)
    assert versions() == ["1"]
    hepar.stages.register.run(*places, section, "tests", grown)
    assert Registration.load(tmp_path / "registration") == Registration(NAME, "2", "champion", ())
    assert aliases() == {"champion": "2", "previous": "1"}


def test_a_test_set_that_has_grown_needs_its_cohort(model: Path, tiny: Params, tmp_path: Path) -> None:
    register(model, report_on(model, tmp_path / "report", 0.8), tiny)
    rival = another_model(tmp_path, tiny)
    result = register(rival, report_on(rival, tmp_path / "other", 0.99, test_set="b"), tiny)
    (reason,) = result.reasons
    assert reason.endswith("pass --cohort with the cohort of version 2 to score it on the same patients")
    assert aliases() == {"champion": "1", "challenger": "2"}


def test_repeating_a_registration_does_not_undo_a_rollback(model: Path, tiny: Params, tmp_path: Path) -> None:
    register(model, report_on(model, tmp_path / "report", 0.8), tiny)
    rival = another_model(tmp_path, tiny)
    better = report_on(rival, tmp_path / "better", 0.9)
    assert register(rival, better, tiny).alias == "champion"
    rollback(toy_gates(tiny, NAME))
    register(rival, better, tiny)
    assert aliases() == {"champion": "1"}


@pytest.mark.parametrize("broken", ["set_registered_model_alias", "set_model_version_tag"])
def test_a_registration_that_breaks_off_is_completed_by_the_next(
    broken: str, model: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = report_on(model, tmp_path / "report", 0.9)

    def fail(*args: Any) -> None:
        raise mlflow.MlflowException("out of order")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, broken, fail)
        with pytest.raises(StorageError, match=r"out of order$"):
            register(model, report, tiny)
    assert not (tmp_path / "registration").exists()
    assert register(model, report, tiny) == Registration(NAME, "1", "champion", ())
    assert (versions(), aliases()) == (["1"], {"champion": "1"})


def test_two_attempts_at_once_make_one_version(
    model: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while the first still uploads, as after a pod that was thought lost, and ends before it."""
    report, second = report_on(model, tmp_path / "report", 0.9), tmp_path / "second" / "model"
    shutil.copytree(model, second)
    log_model, ended = mlflow.pyfunc.log_model, list[Registration]()

    def log_beside_another(*words: Any, **named: Any) -> Any:
        monkeypatch.setattr(mlflow.pyfunc, "log_model", log_model)
        with ThreadPoolExecutor(1) as other:  # a thread has an active run of its own
            ended.append(other.submit(register, second, report, tiny).result())
        return log_model(*words, **named)

    monkeypatch.setattr(mlflow.pyfunc, "log_model", log_beside_another)
    first = register(model, report, tiny)
    assert ended == [first] == [Registration(NAME, "1", "champion", ())]
    assert (versions(), aliases()) == (["1"], {"champion": "1"})


def test_a_version_is_added_under_the_lease_of_the_model(
    model: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets, register_model = list[int](), mlflow.register_model

    def register_and_look(*words: Any, **named: Any) -> Any:
        tickets.append(len(mlflow.MlflowClient().search_model_versions(f"name='{NAME}-lease'")))
        return register_model(*words, **named)

    monkeypatch.setattr(mlflow, "register_model", register_and_look)
    register(model, report_on(model, tmp_path / "report", 0.9), tiny)
    assert tickets == [1]


def test_run_and_experiment_of_a_scheduler_are_used(
    model: Path, tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect().MlflowClient()
    place = (tmp_path / "artifacts").as_uri()
    run = client.create_run(client.create_experiment("scheduler", artifact_location=place)).info
    report = report_on(model, tmp_path / "report", 0.9)
    for _ in range(2):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", run.experiment_id)
        monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
        register(model, report, tiny)
    assert client.get_model_version(NAME, "1").run_id == run.run_id
    assert versions() == ["1"]


def test_a_report_on_another_model_is_refused(model: Path, tiny: Params, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", tiny, min_lesion_ml=0.7).folder
    with pytest.raises(ArtifactError, match="run evaluate again"):
        register(model, report_on(other, tmp_path / "report", 0.9), tiny)

"""`hepar submit`, `kfp run create` and `kfp run submit` against a stand-in for a KFP server."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import yaml
from click.testing import CliRunner
from cluster.kfp_stand_in import DIGEST, LOST, SOURCE, Fault, KfpStandIn, Refused, parse_spec
from conftest import TINY
from typer.testing import CliRunner as TyperRunner
from typer.testing import Result

from hepar.cli.cluster import RunRequest
from hepar.cli.main import app
from hepar.errors import HeparError, ParamsError, Preempted, StorageError
from hepar.params import load_params
from hepar.registry.model_registry import RUN_TAG
from hepar.registry.registration import Registration
from hepar.registry.tracking import connect
from hepar.retraining.decision import RetrainingEvidence, decide_retraining
from hepar.retraining.looking import Look
from hepar.retraining.submission import FAILED, FINISHED, KILLED, RUNNING, RunCancelled
from hepar.runtime.device import catch_sigterm
from pipelines import submission
from pipelines.compiled import CompiledPipeline
from pipelines.kfp_server import TOKEN_VARIABLE, KfpServer
from pipelines.submission import (
    AlreadySubmitted,
    follow,
    outcome_on_cluster,
    plan_run,
    run_on_cluster,
    submit,
    submit_run,
    submit_to_cluster,
)


def test_two_submissions_give_one_run(
    kfp: KfpStandIn, request_: RunRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit_run(request_)
    name, link = (line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines())
    assert link == f"{kfp.address}/#/runs/details/run-1"
    with pytest.raises(AlreadySubmitted, match=rf"^run {name} is pending, and is not started again: {link}"):
        submit_run(request_)
    assert submit_run(replace(request_, wait=True))  # it follows the run that is there
    with pytest.raises(AlreadySubmitted, match="has succeeded"):
        submit_run(request_)
    assert [run["display_name"] for run in kfp.runs] == [name]
    assert submit_run(replace(request_, overrides={**SOURCE, "evaluate.overlap": 0.25}))
    assert len({run["display_name"] for run in kfp.runs}) == 2
    assert len(kfp.experiments) == len(kfp.pipelines) == len(kfp.versions) == 1  # the second run found them
    assert kfp.runs[1]["runtime_config"]["parameters"]["evaluate"]["overlap"] == 0.25


def test_a_failed_run_may_be_repeated(
    kfp: KfpStandIn, request_: RunRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.states = ("RUNNING", "FAILED")
    assert not submit_run(replace(request_, wait=True))
    assert "FAILED (train-universal) (train-universal: exit code 2)" in capsys.readouterr().err
    kfp.looks.clear()
    kfp.runs[0]["ended"] = "FAILED"
    kfp.states = ("RUNNING", "SUCCEEDED")
    assert submit_run(replace(request_, wait=True))
    assert len(kfp.runs) == 2


@pytest.mark.parametrize("status", [500, LOST])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/runs"),
        ("POST", "/experiments"),
        ("POST", "/pipelines"),
        ("POST", ".*upload_version"),
        ("GET", "/runs"),
    ],
)
def test_what_fails_for_a_moment_starts_no_second_run(
    kfp: KfpStandIn, request_: RunRequest, method: str, path: str, status: int
) -> None:
    kfp.faults = [Fault(method, path, status)]
    assert submit_run(request_)
    assert kfp.faults == []
    assert [len(made) for made in (kfp.runs, kfp.experiments, kfp.pipelines, kfp.versions)] == [1, 1, 1, 1]


def test_a_server_that_keeps_failing_or_refuses_ends_in_one_sentence(
    kfp: KfpStandIn, request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp.faults = [Fault("POST", "/runs", 500)] * 3
    with pytest.raises(StorageError, match=r"run hepar-two-stage-[0-9a-f]{16}: played$"):
        submit_run(request_)
    kfp.token = "sesame-and-more"
    with pytest.raises(
        StorageError, match="answers 401 to its health: set HEPAR_KFP_TOKEN to a token that may do this"
    ):
        submit_run(request_)
    monkeypatch.setenv(TOKEN_VARIABLE, "sesame-and-more")
    assert submit_run(request_)
    assert len(kfp.runs) == 1


def test_of_two_submissions_at_one_time_the_older_run_stays(
    kfp: KfpStandIn, request_: RunRequest, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan_run(compiled, SOURCE)
    version = KfpServer.version

    def meanwhile(server: KfpServer, pipeline: CompiledPipeline) -> tuple[str, str]:
        found = version(server, pipeline)
        monkeypatch.setattr(KfpServer, "version", version)
        submit(KfpServer(kfp.address), planned)
        return found

    monkeypatch.setattr(KfpServer, "version", meanwhile)
    with pytest.raises(AlreadySubmitted, match=r"run-1$"):
        submit_run(request_)
    assert [run.get("ended") for run in kfp.runs] == [None, "CANCELED"]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"evaluate.overlapp": 0.5}, "overrides: unknown key evaluate.overlapp"),
        ({"evaluate.overlap": "much"}, "overrides: evaluate.overlap is"),
        ({"train_universal": {"training": {"steps": -1}}}, "overrides: train_universal.training.steps is"),
        ({"retrain.min_new_cases": 3}, "overrides: unknown key retrain"),
    ],
)
def test_what_the_params_refuse_reaches_no_server(compiled: Path, overrides: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ParamsError, match=f"^{complaint}"):
        plan_run(compiled, {**SOURCE, **overrides})


def test_an_input_without_default_must_be_given_and_images_have_digests(compiled: Path, tmp_path: Path) -> None:
    spec, *platforms = yaml.safe_load_all(compiled.read_text())
    spec["root"]["inputDefinitions"]["parameters"]["source"].pop("defaultValue", None)
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump_all([spec, *platforms]))
    with pytest.raises(ParamsError, match="has no default for source: pass --set source=…"):
        plan_run(own, {})
    assert plan_run(own, SOURCE).arguments == SOURCE
    own.write_text(compiled.read_text().replace(DIGEST, "hepar:1", 1))
    with pytest.raises(ParamsError, match="image hepar:1 is named by a tag"):
        plan_run(own, SOURCE)
    own.write_text("a: 1\n")
    with pytest.raises(ParamsError, match="is no compiled pipeline"):
        plan_run(own, SOURCE)
    own.unlink()
    with pytest.raises(ParamsError, match=r"own\.yaml does not exist; 'make compile' writes one$"):
        plan_run(own, SOURCE)


def test_the_name_is_a_key_over_image_params_source_and_champion(
    kfp: KfpStandIn, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def name(package: Path = compiled, **overrides: Any) -> str:
        return plan_run(package, {**SOURCE, **overrides}).name

    first = name()
    assert first == name()
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.nii.gz").write_bytes(b"a")
    listed = name(source=str(scans))
    (scans / "b.nii.gz").write_bytes(b"b")
    names = [first, name(experiment="another"), listed, name(source=str(scans))]
    other = tmp_path / "other.yaml"
    other.write_text(compiled.read_text().replace(DIGEST, DIGEST.replace("a" * 64, "b" * 64)))
    names.append(name(other))
    for model_hash in ("c", "d"):
        champion = SimpleNamespace(uri="models:/hepar-universal/1", model_hash=model_hash)
        monkeypatch.setattr(submission, "find_champion", lambda _, found=champion: found)
        names.append(name())
    table = tmp_path / "splits.csv"
    for split in ("train", "test"):
        table.write_text(f"case_id,split\na,{split}\n")
        names.append(plan_run(compiled, {**SOURCE, "ingest.split_from": str(table)}).name)
    assert len(set(names)) == len(names)
    assert plan_run(compiled, SOURCE, name="backfill-2024").name == "backfill-2024"
    assert plan_run(compiled, SOURCE, name="a" * 255).name == "a" * 255
    with pytest.raises(ParamsError, match=r"^--name has 256 characters, but KFP takes at most 255: a{256}$"):
        plan_run(compiled, SOURCE, name="a" * 256)
    with pytest.raises(ParamsError, match=r"^experiment has 129 characters, but KFP takes at most 128: b{129}$"):
        name(experiment="b" * 129)


def test_a_run_of_other_params_by_the_runner_of_retraining(
    kfp: KfpStandIn, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "two_stage.yaml").write_text(compiled.read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.address)
    made = [run_on_cluster(load_params(TINY), tmp_path, "not used") for _ in range(2)]  # as after a crash: found, done
    (run,) = kfp.runs
    assert set(made) == {run["run_id"]}
    assert run["runtime_config"]["parameters"]["register"]["model_name"] == "hepar-tiny"
    assert outcome_on_cluster(submit_to_cluster(load_params(TINY), tmp_path, "not used")) == FINISHED
    kfp.states = ("CANCELED",)
    with pytest.raises(RunCancelled, match="ended with CANCELED"):
        run_on_cluster(load_params(TINY), tmp_path, "not used")
    kfp.states = ("FAILED",)
    with pytest.raises(HeparError, match="ended with FAILED"):
        run_on_cluster(load_params(TINY), tmp_path, "not used")


def with_sigterm(fault: Fault) -> Callable[[str, str], int | None]:
    """A fault at which this process gets SIGTERM, and which it meets again if it asks again."""

    def played(method: str, path: str) -> int | None:
        if (method, path) != (fault.method, fault.path):
            return None
        os.kill(os.getpid(), signal.SIGTERM)
        return fault.status

    return played


@dataclass(frozen=True)
class Looker:
    """A folder with a compiled pipeline, in which `hepar retrain` finds that there is no champion; `ask` calls it."""

    folder: Path

    def ask(self, runner: str, command: str = "retrain") -> Result:
        words = [command, "--params", "own.yaml", "--workdir", "run", "--runner", runner]
        return TyperRunner().invoke(app, words)

    @property
    def recorded(self) -> list[tuple[str, str | None]]:
        """Status and KFP run of the attempts in MLflow."""
        found = mlflow.search_runs(search_all_experiments=True, output_format="list")
        return sorted((one.info.status, one.data.tags.get(RUN_TAG)) for one in found)


@pytest.fixture
def looker(kfp: KfpStandIn, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looker:
    """Without resubmissions, so that a failed attempt would be the last."""
    (tmp_path / "build").mkdir()
    shutil.copy(compiled, tmp_path / "build" / "two_stage.yaml")
    params = {"extends": str(TINY), "source": "phantoms", "retrain": {"max_resubmissions": 0}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp.address)
    decision = decide_retraining(RetrainingEvidence(""), load_params(TINY).retrain)
    monkeypatch.setattr("hepar.retraining.looking.look", lambda *given, **more: Look("s" * 64, "", decision))
    return Looker(tmp_path)


def test_a_training_that_was_waited_for_on_a_cluster_is_recorded_by_what_the_registry_has(
    looker: Looker, kfp: KfpStandIn
) -> None:
    """The registration in the working directory is of an earlier training there."""
    client = connect().MlflowClient()
    client.create_registered_model("hepar-tiny")
    client.create_model_version("hepar-tiny", "none:/none")
    client.create_model_version("hepar-tiny", "none:/none", tags={RUN_TAG: "run-1"})
    Registration("hepar-tiny", "1", "champion", ()).save(looker.folder / "run" / Registration.KIND)
    done = looker.ask("cluster")
    assert done.exit_code == 0, done.output
    assert looker.recorded == [(FINISHED, "run-1")]
    assert client.get_model_version("hepar-tiny", "1").tags == {}
    again = looker.ask("cluster")
    assert again.exit_code == 3
    assert "been trained already" in again.stdout
    assert ": hepar-tiny version 2, no decision is recorded; " in again.stdout
    assert len(kfp.runs) == 1


def test_a_run_that_somebody_has_cancelled_is_not_started_again(looker: Looker, kfp: KfpStandIn) -> None:
    assert looker.ask("submit").exit_code == 0
    kfp.states = ("CANCELED",)
    for _ in range(2):
        again = looker.ask("submit")
        assert again.exit_code == 3, again.output
        assert "was cancelled" in again.stdout
        assert "`hepar submit` with the same params starts it again" in again.stdout
    assert looker.recorded == [(KILLED, "run-1")]
    assert len(kfp.runs) == 1


def test_a_run_that_was_deleted_has_failed(looker: Looker, kfp: KfpStandIn) -> None:
    assert looker.ask("submit").exit_code == 0
    kfp.runs.clear()
    again = looker.ask("submit")
    assert "training this state has failed 1 times; at most 0 resubmissions are allowed" in again.stdout, again.output
    assert looker.recorded == [(FAILED, "run-1")]


@pytest.mark.parametrize(
    ("command", "fault", "begun"),
    [
        ("retrain", Fault("GET", "/healthz", 503), 0),
        ("watch", Fault("POST", "/runs", 503), 0),
        ("retrain", Fault("POST", "/runs", LOST), 1),
    ],
    ids=["before", "refused", "answer lost"],
)
def test_a_look_that_sigterm_ends_is_no_failed_attempt_and_its_run_is_found(
    looker: Looker, kfp: KfpStandIn, monkeypatch: pytest.MonkeyPatch, command: str, fault: Fault, begun: int
) -> None:
    with monkeypatch.context() as patch, catch_sigterm() as passed_on:
        patch.setattr(kfp, "fault", with_sigterm(fault))
        stopped = looker.ask("submit", command)
    assert isinstance(stopped.exception, Preempted), stopped.output
    assert not passed_on()
    assert len(kfp.runs) == begun
    assert looker.ask("submit").exit_code == 0
    (run,) = kfp.runs
    assert looker.recorded == [(KILLED, None), (RUNNING, run["run_id"])]


def test_the_commands_exit_code_is_that_of_the_run(kfp: KfpStandIn, compiled: Path) -> None:
    asked = ["submit", str(compiled), "--endpoint", kfp.address, "--set", "source=phantoms"]
    planned = TyperRunner().invoke(app, [*asked, "--dry-run", "--set", "evaluate.overlap=0.25"])
    assert planned.exit_code == 0
    assert "evaluate" in planned.output
    assert kfp.runs == []
    kfp.states = ("SUCCEEDED",)
    assert TyperRunner().invoke(app, [*asked, "--wait"]).exit_code == 0
    kfp.states = ("FAILED",)
    assert TyperRunner().invoke(app, [*asked, "--wait", "--name", "other"]).exit_code == 1
    assert isinstance(TyperRunner().invoke(app, [*asked, "--set", "source"]).exception, ParamsError)


@pytest.mark.filterwarnings("ignore:This client only works:FutureWarning")
@pytest.mark.parametrize("command", ["create", "submit"])
def test_the_plain_client_of_kfp_starts_the_compiled_file(kfp: KfpStandIn, compiled: Path, command: str) -> None:
    from kfp.cli.cli import cli

    def start(*parameters: str) -> Any:
        words = ["--endpoint", kfp.address, "run", command, "-e", "first", "-r", "first", "-f", str(compiled)]
        return CliRunner().invoke(cli, [*words, *parameters], obj={})  # as its entry point calls it

    started = start("source=phantoms")
    assert started.exit_code == 0, started.output
    assert [run["display_name"] for run in kfp.runs] == ["first"]
    for parameters in (("sourcee=phantoms",), ("source=phantoms", "evaluate=1")):
        assert start(*parameters).exit_code != 0
    assert len(kfp.runs) == 1


def test_the_stand_in_refuses_a_spec_with_an_unknown_field(compiled: Path) -> None:
    spec, *platforms = yaml.safe_load_all(compiled.read_text())
    assert parse_spec([spec, *platforms])
    with pytest.raises(Refused, match="retryPolicyy"):
        parse_spec([{**spec, "retryPolicyy": 3}])
    with pytest.raises(Refused, match="platformss"):
        parse_spec([spec, {"platformss": {}}])


def test_a_run_is_followed_to_its_end(kfp: KfpStandIn, request_: RunRequest) -> None:
    kfp.states = ("PENDING", "RUNNING", "PAUSED", "CANCELING", "CANCELED")
    server = KfpServer(kfp.address)
    run = submit(server, plan_run(request_.package, SOURCE))
    kfp.faults = [Fault("GET", "/runs/.*", 500)]
    assert follow(server, run.run_id) == "CANCELED"

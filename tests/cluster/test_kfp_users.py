"""KFP with several users, its recurring runs, and a server that is not there."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import services
from click.testing import CliRunner
from cluster.kfp_stand_in import KfpStandIn
from typer.testing import CliRunner as TyperRunner

from hepar.cli.cluster import ACCOUNT_VARIABLE, NAMESPACE_VARIABLE, RunRequest
from hepar.cli.main import app
from hepar.errors import StorageError
from pipelines.kfp_server import ENDPOINT_VARIABLE, TOKEN_VARIABLE, KfpServer
from pipelines.submission import AlreadySubmitted, submit_run

TOKEN = "sesame-and-more"
MINE, OTHER = "hepar-runs", "others-runs"


@pytest.fixture
def users(kfp: KfpStandIn, monkeypatch: pytest.MonkeyPatch) -> KfpStandIn:
    """The stand-in with several users; this one has a token for one namespace."""
    kfp.token, kfp.namespaces = TOKEN, frozenset({MINE})
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    return kfp


@pytest.fixture
def mine(users: KfpStandIn, request_: RunRequest) -> RunRequest:
    return replace(request_, namespace=MINE)


def test_everything_is_created_and_found_again_in_the_namespace(users: KfpStandIn, mine: RunRequest) -> None:
    assert submit_run(mine)
    with pytest.raises(AlreadySubmitted):
        submit_run(mine)
    assert submit_run(replace(mine, name="another"))  # which uses the same experiment, pipeline and version
    assert len(users.runs) == 2
    for made in (users.experiments, users.pipelines):
        assert [one["namespace"] for one in made] == [MINE]
    assert len(users.versions) == 1


@pytest.mark.parametrize(
    ("token", "namespace", "complaint"),
    [
        ("", MINE, rf"answers 401 to its health in the namespace {MINE}: set {TOKEN_VARIABLE} to a token that may"),
        (TOKEN, OTHER, rf"answers 403 to its runs in the namespace {OTHER}: set {TOKEN_VARIABLE} to a token that may"),
        (TOKEN, "", r"its runs: a namespace is needed, since there are several users$"),
    ],
)
def test_without_the_right_nothing_is_created(
    users: KfpStandIn, mine: RunRequest, monkeypatch: pytest.MonkeyPatch, token: str, namespace: str, complaint: str
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(StorageError, match=complaint):
        submit_run(replace(mine, namespace=namespace))
    assert [users.experiments, users.pipelines, users.versions, users.runs] == [[], [], [], []]


def test_a_pod_sends_the_token_that_kubernetes_projects_into_it(
    users: KfpStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes replaces the file before the token expires. `HEPAR_KFP_TOKEN` has precedence."""
    file = tmp_path / "token"
    file.write_text("projected-and-old")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    monkeypatch.setenv(ENDPOINT_VARIABLE, users.address)
    assert KfpServer("", MINE).runs_named("none") == []
    monkeypatch.delenv(TOKEN_VARIABLE)
    with pytest.raises(StorageError, match="answers 401"):
        KfpServer("", MINE)
    file.write_text(TOKEN)
    server = KfpServer("", MINE)
    file.write_text("projected-anew")
    users.token = "projected-anew"
    assert server.runs_named("none") == []


def test_a_run_of_another_namespace_is_not_looked_at(users: KfpStandIn, mine: RunRequest) -> None:
    assert submit_run(mine)
    users.namespaces = frozenset({OTHER})
    with pytest.raises(StorageError, match="answers 403 to run run-1"):
        KfpServer(users.address, OTHER).run("run-1")


def test_namespace_and_account_come_from_variables_too(
    users: KfpStandIn, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT_VARIABLE, users.address)
    monkeypatch.setenv(NAMESPACE_VARIABLE, OTHER)
    monkeypatch.setenv(ACCOUNT_VARIABLE, "hepar-run")
    asked = ["submit", str(compiled), "--set", "source=phantoms"]
    assert isinstance(TyperRunner().invoke(app, asked).exception, StorageError)
    assert TyperRunner().invoke(app, [*asked, "--namespace", MINE]).exit_code == 0
    assert [(run["namespace"], run["service_account"]) for run in users.runs] == [(MINE, "hepar-run")]


def schedule(kfp: KfpStandIn, compiled: Path, cron: str, *further: str) -> Any:
    """`kfp recurring-run create`, by the function that its entry point calls."""
    from kfp.cli.cli import cli

    words = ["--endpoint", kfp.address, "--namespace", MINE, "--existing-token", TOKEN, "recurring-run", "create"]
    words += ["--experiment-name", "hepar", "--job-name", "nightly", "--pipeline-package-path", str(compiled)]
    return CliRunner().invoke(cli, [*words, "--cron-expression", cron, *further], obj={})


@pytest.mark.filterwarnings("ignore:This client only works:FutureWarning")
def test_kfps_own_command_creates_a_recurring_run_that_is_enabled_only_if_told_so(
    users: KfpStandIn, compiled: Path
) -> None:
    for option, mode in (("--enabled", "ENABLE"), ("--no-catchup", "DISABLE")):
        made = schedule(users, compiled, "0 30 3 * * *", option, "source=phantoms")
        assert made.exit_code == 0, made.output
        assert users.recurring_runs.pop()["mode"] == mode
    for cron, parameters in (
        ("30 3 * * *", ["source=phantoms"]),
        ("0 30 3 * * *", ["sourcee=phantoms"]),
        ("0 30 3 * * *", ["source=phantoms", "evaluate=1"]),
    ):
        assert schedule(users, compiled, cron, "--enabled", *parameters).exit_code != 0
    assert users.recurring_runs == []


def test_a_closed_port_ends_soon_in_a_sentence_with_the_address(
    request_: RunRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = services.free_ports(1)
    address = f"http://127.0.0.1:{port}"
    begun = time.monotonic()
    with pytest.raises(StorageError, match=rf"^{address} cannot be reached: .*Connection refused$"):
        submit_run(replace(request_, endpoint=address, namespace=MINE))
    assert time.monotonic() - begun < 15
    assert (
        f"{address} cannot be reached: [Errno 111] Connection refused; trying again in 1 s" in capsys.readouterr().err
    )


def test_a_server_without_address_is_said_to_have_none(request_: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.kfp_server.FIRST_PAUSES", (0.01,))
    monkeypatch.setenv("KUBECONFIG", "/none")
    with pytest.raises(StorageError, match=rf"^KFP \({ENDPOINT_VARIABLE} is not set\) cannot be reached"):
        submit_run(replace(request_, endpoint=""))

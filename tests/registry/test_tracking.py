"""MLflow: which run and experiment a stage records in, a missing database, passwords, and servers that fail."""

from __future__ import annotations

import base64
import logging
import os
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import mlflow
import pytest
from commands import script
from full_disk import SmallDisk
from toy_model import toy_spec

from hepar.errors import StorageError
from hepar.params import Params
from hepar.registry.tracking import MODEL_TAG, TrainingRun, connect, mlflow_errors, model_run
from hepar.runtime.environment import EPHEMERAL_VARIABLE


def experiment_of(run: mlflow.ActiveRun) -> str:
    return str(mlflow.get_experiment(run.info.experiment_id).name)


def trained_run(experiment: str, model_hash: str) -> str:
    """A finished run that trained a model."""
    mlflow_module = connect()
    with mlflow_module.start_run(experiment_id=mlflow_module.create_experiment(experiment)) as run:
        mlflow_module.set_tag(MODEL_TAG, model_hash)
    return str(run.info.run_id)


@pytest.mark.usefixtures("database")
def test_the_run_that_trained_a_model_is_reopened_in_whatever_experiment_it_lies() -> None:
    run_id = trained_run("training", "model hash")
    with model_run("another", "model hash") as opened:
        assert opened.active_run().info.run_id == run_id
        assert experiment_of(opened.active_run()) == "training"
    assert mlflow.get_experiment_by_name("another") is None


@pytest.mark.usefixtures("database")
def test_a_model_that_the_server_does_not_know_gets_a_run_in_the_experiment_of_the_params(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the shell")
    for _ in range(2):  # it is created, then found
        with model_run("of the params", "unknown") as opened:
            assert experiment_of(opened.active_run()) == "of the params"
    assert mlflow.get_experiment_by_name("of the shell") is None


@pytest.mark.usefixtures("database")
def test_run_and_experiment_of_a_scheduler_have_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = trained_run("training", "known")
    client = mlflow.MlflowClient()
    scheduled = client.create_run(client.create_experiment("scheduler"), run_name="task").info
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", scheduled.experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", scheduled.run_id)
    with model_run("of the params", "unknown") as opened:
        assert opened.active_run().info.run_id == scheduled.run_id
    with model_run("of the params", "another") as opened:  # the run of the scheduler is used up
        assert experiment_of(opened.active_run()) == "scheduler"
    monkeypatch.setenv("MLFLOW_RUN_ID", scheduled.run_id)
    with model_run("of the params", "known") as opened:
        assert opened.active_run().info.run_id == trained
    assert client.get_run(scheduled.run_id).info.run_name == "task"
    assert mlflow.get_experiment_by_name("of the params") is None


@pytest.mark.usefixtures("database")
def test_trainings_share_the_run_of_a_scheduler_as_its_children(
    tiny: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler gives every stage of a pipeline the same run, which holds one set of parameters."""
    connect()
    client = mlflow.MlflowClient()
    scheduled = client.create_run(client.create_experiment("scheduler")).info
    ids = []
    for name, steps in (("first", 5), ("second", 6), ("second", 6)):  # the last one resumes
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", scheduled.experiment_id)
        monkeypatch.setenv("MLFLOW_RUN_ID", scheduled.run_id)
        training = tiny.train_universal.training.model_copy(update={"steps": steps})
        with TrainingRun("of the params", name, toy_spec(tiny.network), training, tmp_path / name) as run:
            run.log(1, {"train/loss": 0.5})
            run.tag_model(f"model of {name}")
            ids.append(mlflow.active_run().info.run_id)
    assert ids[0] == scheduled.run_id
    assert ids[1] == ids[2] != scheduled.run_id
    first, second = (client.get_run(run_id) for run_id in ids[:2])
    assert [run.data.params["training.steps"] for run in (first, second)] == ["5", "6"]
    assert [run.data.tags[MODEL_TAG] for run in (first, second)] == ["model of first", "model of second"]
    assert second.data.tags["mlflow.parentRunId"] == scheduled.run_id
    assert second.info.experiment_id == scheduled.experiment_id
    monkeypatch.setenv("MLFLOW_RUN_ID", scheduled.run_id)
    with model_run("of the params", "a third model") as opened:  # that no training of this server made
        assert opened.get_run(opened.active_run().info.run_id).data.tags["mlflow.parentRunId"] == scheduled.run_id
    assert client.get_run(scheduled.run_id).data.tags[MODEL_TAG] == "model of first"


@pytest.mark.usefixtures("database")
def test_a_deleted_experiment_is_named() -> None:
    connect().MlflowClient().delete_experiment(mlflow.create_experiment("gone"))
    with pytest.raises(StorageError, match=r"^the experiment 'gone' at sqlite:.* was deleted"), model_run("gone", "x"):
        pass


# forks that have imported everything begin at once
OPEN_RUNS = """
import multiprocessing, sys
import mlflow.store.tracking.sqlalchemy_store
from hepar.registry.tracking import model_run

def open_run(number):
    begin.wait()
    with model_run("first", f"model {number}"):
        pass

fork, count = multiprocessing.get_context("fork"), int(sys.argv[1])
begin = fork.Barrier(count, timeout=120)
processes = [fork.Process(target=open_run, args=(number,)) for number in range(count)]
for process in processes:
    process.start()
for process in processes:
    process.join()
print([process.exitcode for process in processes])
"""


def test_processes_that_meet_a_missing_database_at_once_all_succeed(tmp_path: Path) -> None:
    ended = script(OPEN_RUNS, "3", folder=tmp_path, MLFLOW_TRACKING_URI=os.environ["MLFLOW_TRACKING_URI"])
    assert ended.stdout == "[0, 0, 0]\n", ended.stderr
    connect()
    assert len(mlflow.search_runs(experiment_names=["first"], output_format="list")) == 3


@pytest.fixture
def refusing_server() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that refuses every request and quotes it, and the credentials that it is sent."""
    sent: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append(base64.b64decode(self.headers.get("Authorization", "Basic ").split()[1]).decode())
            self.send_response(403)
            self.end_headers()
            self.wfile.write(f"no access for http://{sent[-1]}@{self.headers['Host']}".encode())

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", sent
    server.shutdown()
    server.server_close()


def test_a_password_in_the_address_is_used_but_never_shown(
    refusing_server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, sent = refusing_server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:se%2Fcret@{address}")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")  # restored after the test
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(
        StorageError, match=rf"^MLflow at http://(…@)?{address} \(MLFLOW_TRACKING_URI\) fails: "
    ) as failed:
        connect()
    assert set(sent) == {"user:se/cret"}
    assert "cret" not in str(failed.value)
    assert "cret" not in mlflow.get_tracking_uri()


def test_errors_of_the_disk_and_the_database_are_one_sentence() -> None:
    with pytest.raises(StorageError, match=r"fails: \[Errno 28\] No space left on device$"), mlflow_errors():
        raise OSError(28, "No space left on device")
    with pytest.raises(StorageError, match=r"fails: \(sqlite3\.OperationalError\) disk is full$"), mlflow_errors():
        raise mlflow.MlflowException("(sqlite3.OperationalError) disk is full\n[SQL: INSERT …]\n[parameters: ('x',)]")
    with (
        pytest.raises(StorageError, match=r"fails: Failures: File weights\.pt \[Errno 28\] No space$"),
        mlflow_errors(),
    ):
        raise mlflow.MlflowException(
            "Failures:\n##### File weights.pt #####\n[Errno 28] No space\nTraceback:\nTraceback (most recent):\n…"
        )


def test_a_new_database_on_a_full_disk_is_made_once_there_is_room(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.folder / 'mlflow.db'}")
    failed = 0
    for kib in (0, 64, 200, 300, 500, 700):
        failed += bool(disk.outcome(kib, connect))
        assert disk.left_behind() in ([], [".mlflow.db.lock"], [".mlflow.db.lock", "mlflow.db"])
    connect()
    assert failed > 1
    assert mlflow.get_experiment("0").name == "Default"
    assert "Traceback" not in "".join(capfd.readouterr())


CREATE_SLOWLY = """
import os
import mlflow.store.tracking.sqlalchemy_store as stores
from hepar.registry.tracking import connect

stores.mlflow.store.db.utils._upgrade_db = lambda engine: os.kill(os.getpid(), 9)
connect()
"""


def test_a_process_killed_as_it_creates_a_database_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = script(CREATE_SLOWLY, folder=tmp_path, MLFLOW_TRACKING_URI=os.environ["MLFLOW_TRACKING_URI"])
    assert killed.code == -9, killed.stderr
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    connect()
    assert mlflow.get_experiment("0").name == "Default"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


@pytest.mark.usefixtures("database")
def test_temporary_files_of_mlflow_lie_in_our_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with model_run("training", "unknown"):
        (scratch,) = (temporary / f"hepar-{os.getuid()}").iterdir()
        assert Path(tempfile.mkdtemp()).parent == scratch
        assert os.environ["TMPDIR"] == str(scratch)
    assert list(temporary.iterdir()) == []
    assert tempfile.gettempdir() == str(temporary)


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("name", ["mlflow.store.db.utils", "mlflow.tracking", "sqlalchemy.pool", "alembic"])
def test_mlflow_logs_nothing_beside_what_it_raises(name: str) -> None:
    connect()
    assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


def test_in_a_container_a_missing_server_is_refused_before_a_database_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv(EPHEMERAL_VARIABLE, "1")
    with pytest.raises(StorageError, match="MLFLOW_TRACKING_URI is not set, and a database in this container"):
        connect()
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/kept.db")
    connect()

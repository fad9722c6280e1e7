"""MLflow tracking: the connection, runs and their metrics. Besides this module only `hepar.registry.pyfunc` imports
mlflow.

The tracking server is MLFLOW_TRACKING_URI; the default is `mlflow.db` in the working directory, with artifacts in
`mlartifacts` beside it. Runs are recorded in the experiment that the params name. A scheduler such as KFP may set
MLFLOW_RUN_ID and MLFLOW_EXPERIMENT_ID instead: a training then continues that run, new runs join that experiment.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pandas as pd

from hepar.errors import DataError, HeparError, Preempted, StorageError, one_line
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder, ModelSpec
from hepar.params import TrainingParams
from hepar.runtime.commit import git_commit
from hepar.runtime.environment import EPHEMERAL_VARIABLE
from hepar.runtime.execution import execution_facts
from hepar.runtime.fetching import whole
from hepar.runtime.redaction import redact
from hepar.runtime.scratch import scratch_folder

URI_VARIABLE = "MLFLOW_TRACKING_URI"
USER_VARIABLE, PASSWORD_VARIABLE = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
RUN_VARIABLE, EXPERIMENT_VARIABLE = "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"  # set by a scheduler
SQLITE, DATABASE = "sqlite:///", "mlflow.db"
DEFAULT_URI = f"{SQLITE}{DATABASE}"
MODEL_TAG = "hepar.model"
RUN_FILE = "mlflow_run"
TRAINING = "training"  # prefix of the MLflow params of a training
TEST_SCORES = "test/"  # prefix of the metrics of a report
APPENDICES = ("[SQL:", "(Background on this error", "\nTraceback")  # to messages of MLflow
MAX_REASON = 300  # characters of a message of MLflow


def connect() -> Any:
    """The mlflow module, set to the tracking server; a missing SQLite database is created.

    Raises StorageError if the server does not answer.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # containers have no git
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar for each of dozens of small files
    import mlflow

    for chatty in ("mlflow", "mlflow.store.db.utils", "sqlalchemy", "alembic"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # they log the tracebacks of what they raise
    warnings.filterwarnings("ignore", message=".*An input example was not provided")  # the model reads paths
    uri = _without_credentials(tracking_uri())
    mlflow.set_tracking_uri(uri)
    with mlflow_errors(), _one_at_a_time(uri):
        mlflow.MlflowClient().search_experiments(max_results=1)
    return mlflow


def tracking_uri() -> str:
    """Where MLflow keeps runs and models; it may hold a password.

    Raises StorageError if none is named in a container, where the default would be lost with all that it holds.
    """
    given = os.environ.get(URI_VARIABLE)
    if not given and os.environ.get(EPHEMERAL_VARIABLE):
        raise StorageError(
            f"{URI_VARIABLE} is not set, and a database in this container would be lost: set it to your MLflow server"
        )
    return given or DEFAULT_URI


def has_server() -> bool:
    """False if the tracking server is an SQLite database that does not exist; `connect` would create it."""
    database = _database(tracking_uri())
    return database is None or database.exists()


def check_server() -> None:
    """Raise DataError if there is no tracking server, before `connect` creates an empty one."""
    if not has_server():
        raise DataError(f"there is no registry at {server()}: set {URI_VARIABLE}")


def server() -> str:
    """The tracking server, as messages may name it."""
    return redact(tracking_uri())


def absolute_uri(uri: str) -> str:
    """The address of an SQLite database with the absolute path of its file; another address as it is."""
    from sqlalchemy.engine import make_url

    database = _database(uri)
    return uri if database is None else make_url(uri).set(database=str(database.resolve())).render_as_string()


def _without_credentials(uri: str) -> str:
    """An HTTP address without user name and password, which MLflow then takes from its variables.

    MLflow prints the address of the server after each run.
    """
    parts = urlsplit(uri)
    credentials, mark, host = parts.netloc.rpartition("@")
    if not mark or parts.scheme not in ("http", "https"):
        return uri
    user, _, password = credentials.partition(":")
    os.environ.setdefault(USER_VARIABLE, unquote(user))
    os.environ.setdefault(PASSWORD_VARIABLE, unquote(password))
    return parts._replace(netloc=host).geturl()


def _database(uri: str) -> Path | None:
    """The file of an SQLite database, as SQLAlchemy finds it; None for another server."""
    from sqlalchemy.engine import make_url

    path = make_url(uri).database if uri.startswith(SQLITE) else None
    return Path(path) if path and not path.startswith((":", "file:")) else None


@contextlib.contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Lock an SQLite database against other processes of hepar, and create it if it is missing."""
    with contextlib.ExitStack() as stack:
        if database := _database(uri):
            with contextlib.suppress(OSError):  # a read-only folder: the database is there already
                lock = stack.enter_context(database.with_name(f".{database.name}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not database.exists() or database.stat().st_size == 0:
                _create_database(uri, database)
        yield


def _create_database(uri: str, database: Path) -> None:
    """Create an SQLite database aside and put it in place with all its tables: MLflow cannot finish half of them."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.engine import make_url

    with scratch_folder("mlflow", beside=database.parent) as scratch:
        partial = scratch / database.name
        created = make_url(uri).set(database=str(partial)).render_as_string()
        SqlAlchemyStore(created, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        partial.replace(database)


@contextlib.contextmanager
def _temporary_files() -> Iterator[None]:
    """Let MLflow copy models to a scratch folder, which the next run removes if this one dies."""
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with scratch_folder("mlflow") as scratch:
        tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)
        try:
            yield
        finally:
            tempfile.tempdir = before
            os.environ.pop("TMPDIR")
            if variable is not None:
                os.environ["TMPDIR"] = variable


@contextlib.contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turn errors of MLflow, its database and its disk into a StorageError that names the server."""
    import mlflow
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except HeparError:
        raise
    except (mlflow.MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StorageError(f"MLflow at {server()} ({URI_VARIABLE}) fails: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """The message of an error of MLflow on one line, without the SQL, the traceback and the secrets that it quotes."""
    text = str(error)
    for appendix in APPENDICES:
        text = text.partition(appendix)[0]
    return redact(one_line(text.replace("#####", " ")))[:MAX_REASON]


def experiment_id(mlflow: Any, experiment: str) -> str:
    """The id of an experiment, which is created if missing; MLFLOW_EXPERIMENT_ID has precedence.

    Raises StorageError if it has been deleted.
    """
    if given := os.environ.get(EXPERIMENT_VARIABLE):
        return given
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        location, uri = None, tracking_uri()
        if uri.startswith(SQLITE):
            location = (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()
        try:
            return str(mlflow.create_experiment(experiment, artifact_location=location))
        except mlflow.MlflowException:
            if (found := mlflow.get_experiment_by_name(experiment)) is None:  # no other process has created it
                raise
    if found.lifecycle_stage != "active":
        raise StorageError(f"the experiment {experiment!r} at {server()} was deleted: restore it or choose another")
    return str(found.experiment_id)


def _start_run(mlflow: Any, experiment: str, known: str | None, name: str, **settings: bool) -> Any:
    """Continue a known run, or the one that a scheduler has begun, wherever they lie; else begin one.

    The run of a scheduler that holds another training already gets a child run: a run has one set of parameters.
    """
    if known:
        return mlflow.start_run(run_id=known, **settings)
    scheduled = os.environ.pop(RUN_VARIABLE, None)
    if scheduled is None:
        return mlflow.start_run(experiment_id=experiment_id(mlflow, experiment), run_name=name, **settings)
    run = mlflow.get_run(scheduled)
    if MODEL_TAG not in run.data.tags and not any(key.startswith(f"{TRAINING}.") for key in run.data.params):
        return mlflow.start_run(run_id=scheduled, **settings)
    where = run.info.experiment_id
    return mlflow.start_run(experiment_id=where, parent_run_id=scheduled, run_name=name, **settings)


class TrainingRun:
    """An MLflow run that logs the metrics of a training.

    Its id is kept in `folder`, beside the checkpoints, so that a resumed training continues the same run.
    """

    def __init__(self, experiment: str, name: str, spec: ModelSpec, training: TrainingParams, folder: Path) -> None:
        self._experiment, self._name, self._spec, self._training = experiment, name, spec, training
        self._id_file = folder / RUN_FILE

    def __enter__(self) -> Self:
        self._mlflow = connect()
        with mlflow_errors():
            self._start()
        return self

    def _start(self) -> None:
        known = self._known_id()
        run = _start_run(self._mlflow, self._experiment, known, self._name, log_system_metrics=True)
        if known:
            return
        self._id_file.parent.mkdir(parents=True, exist_ok=True)
        self._id_file.write_text(run.info.run_id)
        self._mlflow.log_params(flatten(self._training.model_dump(mode="json"), TRAINING))
        self._mlflow.log_params(flatten(self._spec.network.model_dump(mode="json"), "network"))
        self._mlflow.log_params(flatten(self._spec.plan.model_dump(mode="json"), "plan"))
        self._mlflow.set_tags(as_tags({**self._spec.origin, Report.COMMIT: git_commit(), **execution_facts()}))

    def _known_id(self) -> str | None:
        """The id of the run that this training began in, if the server still has it."""
        try:
            info = self._mlflow.get_run(self._id_file.read_text()).info
        except (OSError, self._mlflow.MlflowException):
            return None
        return str(info.run_id) if info.lifecycle_stage == "active" else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics at a training step."""
        with mlflow_errors():
            self._mlflow.log_metrics(dict(metrics), step=step)

    def log_files(self, place: str, write: Callable[[Path], None]) -> None:
        """Log the files that `write` puts into an empty folder, as the folder `place` of the run."""
        with mlflow_errors(), scratch_folder("logged") as scratch:
            write(scratch)
            self._mlflow.log_artifacts(str(scratch), place)

    def tag_model(self, model_hash: str) -> None:
        """Tag the run with the model that it trained, so that `model_run` finds it."""
        with mlflow_errors():
            self._mlflow.set_tag(MODEL_TAG, model_hash)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = kind is not None and issubclass(kind, Preempted)
        with contextlib.nullcontext() if kind is None else contextlib.suppress(StorageError), mlflow_errors():
            self._mlflow.end_run("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")


@contextlib.contextmanager
def model_run(experiment: str, model_hash: str) -> Iterator[Any]:
    """mlflow with the run that trained a model reopened, in whatever experiment it lies.

    If the server does not know it, with a new run in `experiment`. Raises StorageError if MLflow fails.
    """
    mlflow = connect()
    with mlflow_errors(), _temporary_files():
        run_id = _training_run(mlflow, model_hash)
        with _start_run(mlflow, experiment, run_id, "train-universal"):
            mlflow.set_tag(MODEL_TAG, model_hash)
            yield mlflow


def _training_run(mlflow: Any, model_hash: str) -> str | None:
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{MODEL_TAG}` = '{model_hash}'",
        max_results=1,
        output_format="list",
    )
    return str(found[0].info.run_id) if found else None


def log_report(mlflow: Any, report: Report) -> None:
    """Log a whole report and its mean Dice to the active run, beside the other reports on the same model."""
    with whole(report.folder) as folder:
        mlflow.log_artifacts(str(folder), report_place(report.manifest.hash))
    for name, value in report.mean_dice().items():
        mlflow.log_metric(f"{TEST_SCORES}{name}", value)


def report_place(report_hash: str) -> str:
    """Where the artifacts of a run hold a report."""
    return f"{Report.KIND}/{report_hash[:12]}"


def log_history(mlflow: Any, history: pd.DataFrame) -> None:
    """Log the history of a training to the active run, unless the training has logged it itself."""
    if mlflow.MlflowClient().get_run(mlflow.active_run().info.run_id).data.metrics.get("train/loss"):
        return
    for step, split, modality, metric, value in history[list(ModelFolder.HISTORY_COLUMNS)].values.tolist():
        mlflow.log_metric("/".join(filter(None, (split, modality, metric))), value, step=step)


def as_tags(values: Mapping[str, str]) -> dict[str, str]:
    """Values as MLflow tags."""
    return {tag_name(key): value for key, value in values.items()}


def tag_name(key: str) -> str:
    """The MLflow tag of a value: `pool version` becomes `hepar.pool_version`."""
    return f"hepar.{key.replace(' ', '_')}"


def flatten(values: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Nested values with dotted names, for MLflow params."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, name))
        else:
            flat[name] = str(value)
    return flat

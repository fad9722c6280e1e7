"""MLflow: runs, metrics, and the registry with its aliases. Beside it only `hepar.registry.pyfunc` imports mlflow.

The tracking server is MLFLOW_TRACKING_URI; without it, the file `mlflow.db` in the working directory, with artifacts
in `mlartifacts` beside it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hepar.errors import ArtifactError, DataError, Preempted, StorageError
from hepar.inference.prediction import SPEC, ModelSpec
from hepar.params import REGISTERED, TrainingParams

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
DEFAULT_EXPERIMENT = "hepar"
DEFAULT_URI = "sqlite:///mlflow.db"
MODEL_TAG = "hepar.model"
POOL_TAG = "hepar.pool_version"
CHAMPION, CHALLENGER = "champion", "challenger"
SQLITE = "sqlite:///"
RUN_FILE = "mlflow_run"
COMMIT_VARIABLE = "HEPAR_GIT_COMMIT"
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # of a model or version, and of an alias


def connect(experiment: str | None = None) -> Any:
    """The mlflow module, pointed at the tracking server and an experiment, which is made where it is missing.

    Raises StorageError where the server does not answer.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # no git in a container is no news
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each of dozens of small files
    import mlflow

    for chatty in ("mlflow", "alembic"):  # how a database is set up is no news either
        logging.getLogger(chatty).setLevel(logging.WARNING)
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    name = experiment or os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT
    try:
        if mlflow.get_experiment_by_name(name) is None:
            location = None
            if uri.startswith(SQLITE):
                location = (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()
            with contextlib.suppress(mlflow.MlflowException):  # somebody else was first
                mlflow.create_experiment(name, artifact_location=location)
        mlflow.set_experiment(name)
    except (mlflow.MlflowException, OSError) as error:
        why = " ".join(str(error).split())
        raise StorageError(f"MLflow at {uri} ({URI_VARIABLE}) does not answer: {why}") from None
    return mlflow


def tracking_uri() -> str:
    """Where MLflow keeps runs and models."""
    return os.environ.get(URI_VARIABLE) or DEFAULT_URI


def git_commit() -> str:
    """The commit: HEPAR_GIT_COMMIT where it is set (in a container), else the working tree's, or an empty string."""
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


class TrainingRun:
    """A run that receives the metrics of a training as they come.

    Its id is kept in `folder`, beside the checkpoints: a training that goes on from there goes on in the same run.
    """

    def __init__(self, name: str, spec: ModelSpec, training: TrainingParams, folder: Path) -> None:
        self._name, self._spec, self._training = name, spec, training
        self._note = folder / RUN_FILE

    def __enter__(self) -> Self:
        self._mlflow = connect()
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # no GPU to watch is no news
        known = self._known()
        run = self._mlflow.start_run(run_id=known, run_name=None if known else self._name, log_system_metrics=True)
        if known:
            return self
        self._note.parent.mkdir(parents=True, exist_ok=True)
        self._note.write_text(run.info.run_id)
        self._mlflow.log_params(flatten(self._training.model_dump(mode="json"), "training"))
        self._mlflow.log_params(flatten(self._spec.network.model_dump(mode="json"), "network"))
        self._mlflow.log_params(flatten(self._spec.plan.model_dump(mode="json"), "plan"))
        tags = {f"hepar.{key.replace(' ', '_')}": value for key, value in self._spec.origin.items()}
        self._mlflow.set_tags({**tags, "hepar.git_commit": git_commit()})
        return self

    def _known(self) -> str | None:
        """The run that this training began in, if the server still has it."""
        try:
            info = self._mlflow.get_run(self._note.read_text()).info
        except (OSError, self._mlflow.MlflowException):
            return None
        return str(info.run_id) if info.lifecycle_stage == "active" else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def made(self, model_hash: str) -> None:
        """Tell which model the run made, so that registering finds the run again."""
        self._mlflow.set_tag(MODEL_TAG, model_hash)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = kind is not None and issubclass(kind, Preempted)
        self._mlflow.end_run("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")


def flatten(values: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Nested values as dotted names, as MLflow's parameters are."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, name))
        else:
            flat[name] = str(value)
    return flat


@dataclass(frozen=True)
class Version:
    """A registered version with what it was scored at: its `metrics.json`, and the hash of the test set."""

    name: str
    number: str
    metrics: Mapping[str, Any]
    test_set: str


@contextlib.contextmanager
def model_run(experiment: str, model_hash: str) -> Iterator[Any]:
    """mlflow with the run that trained a model opened again, or a new run where this server knows none."""
    mlflow = connect(experiment)
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.`{MODEL_TAG}` = '{model_hash}'",
        max_results=1,
        output_format="list",
    )
    run_id = found[0].info.run_id if found else None
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else "train-universal"):
        mlflow.set_tag(MODEL_TAG, model_hash)
        yield mlflow


def log_model(mlflow: Any, model: Path, name: str) -> str:
    """Log a model folder to the active run and register it: the new version's number.

    The version holds the preprocessing, the plan and this package's code; `registry.pyfunc` says what it predicts.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    package = Path(__file__).parents[1]
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(Path(__file__).with_name("pyfunc.py")),
        artifacts={"model": str(model)},
        code_paths=[str(package)],
        pip_requirements=serving_requirements(),
        signature=ModelSignature(params=ParamSchema([ParamSpec("output", DataType.string, "")])),
        registered_model_name=name,
    )
    return str(info.registered_model_version)


def serving_requirements() -> list[str]:
    """What a registered version needs beside Python, at the versions installed here."""
    names = ["blosc2", "mlflow", "monai", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "rich", "scipy"]
    names += ["SimpleITK", "torch"]
    return [f"{name}=={version(name).split('+')[0]}" for name in names]


@contextlib.contextmanager
def downloaded_model(uri: str) -> Iterator[Path]:
    """The model folder inside a registered version, such as `models:/NAME@champion`, as long as it is needed.

    Raises ArtifactError where there is no such version, or one that hepar did not register.
    """
    mlflow = connect()
    with tempfile.TemporaryDirectory(prefix="hepar-") as scratch:
        try:
            place = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
        except mlflow.MlflowException as error:
            raise ArtifactError(f"{uri} cannot be fetched from {tracking_uri()}: {error.message}") from None
        if not (specs := sorted(place.rglob(SPEC))):
            raise ArtifactError(f"{uri} holds no model of hepar: {SPEC} is missing")
        yield specs[0].parent


def pool_version(uri: str) -> str:
    """The DVC version of the pool that a registered model, such as `models:/NAME@champion`, has learned from.

    Raises DataError where there is no such model, or its registry entry does not tell.
    """
    mlflow = connect()
    name, _, alias = uri.removeprefix(REGISTERED).partition("@")
    name, _, number = name.partition("/")
    try:
        client = mlflow.MlflowClient()
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except mlflow.MlflowException as error:
        raise DataError(f"{uri}, asked of {tracking_uri()}: {error.message}") from None
    version = str(found.tags.get(POOL_TAG, ""))
    if not version:
        raise DataError(f"{uri} does not tell its pool: the tag {POOL_TAG} is missing")
    return version


def version_by_alias(mlflow: Any, name: str, alias: str) -> Version | None:
    """The registered version that an alias points at; None without one. Raises StorageError as below."""
    return _found(mlflow, lambda client: client.get_model_version_by_alias(name, alias))


def registered_version(mlflow: Any, name: str, number: str) -> Version | None:
    """A registered version by its number; None where there is none. Raises StorageError as below."""
    return _found(mlflow, lambda client: client.get_model_version(name, number))


def _found(mlflow: Any, ask: Callable[[Any], Any]) -> Version | None:
    """A version with its scores; None where the registry says that there is none.

    Raises StorageError where the registry does not answer or the scores are gone: nothing may be promoted unseen.
    """
    try:
        found = ask(mlflow.MlflowClient())
    except mlflow.MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise StorageError(f"the registry at {tracking_uri()} does not answer: {error.message}") from None
    try:
        report = Path(mlflow.artifacts.download_artifacts(run_id=found.run_id, artifact_path="report"))
        metrics = json.loads((report / "metrics.json").read_text())
        facts = json.loads((report / "facts.json").read_text())
    except (mlflow.MlflowException, OSError, ValueError) as error:
        what = f"version {found.version} of {found.name}"
        raise StorageError(f"{what}: its report cannot be read from {tracking_uri()}: {error}") from None
    return Version(found.name, str(found.version), metrics, facts["test set"])


def tag_version(mlflow: Any, name: str, number: str, tags: Mapping[str, str]) -> None:
    """Tag a registered version."""
    for key, value in tags.items():
        mlflow.MlflowClient().set_model_version_tag(name, number, key, value)


def set_alias(mlflow: Any, name: str, alias: str, number: str) -> None:
    """Point an alias at a version; a challenger that becomes champion is challenger no more."""
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(name, alias, number)
    challenger = client.get_registered_model(name).aliases.get(CHALLENGER)
    if alias == CHAMPION and challenger is not None and str(challenger) == number:
        client.delete_registered_model_alias(name, CHALLENGER)

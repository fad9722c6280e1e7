"""MLflow tracking: the connection, runs and their metrics. Besides this module only `hepar.registry.pyfunc` imports
mlflow.

The tracking server is MLFLOW_TRACKING_URI; the default is `mlflow.db` in the working directory, with artifacts in
`mlartifacts` beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from hepar.cases import STRUCTURES
from hepar.errors import Preempted, StorageError
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder, ModelSpec
from hepar.params import TrainingParams
from hepar.runtime.commit import git_commit

URI_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
DEFAULT_EXPERIMENT = "hepar"
DEFAULT_URI = "sqlite:///mlflow.db"
MODEL_TAG = "hepar.model"
SQLITE = "sqlite:///"
RUN_FILE = "mlflow_run"


def connect(experiment: str | None = None) -> Any:
    """The mlflow module, set to the tracking server and an experiment, which is created if missing.

    Raises StorageError if the server does not answer.
    """
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # containers have no git
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar for each of dozens of small files
    import mlflow

    for chatty in ("mlflow", "alembic"):  # they log the migrations of a new database
        logging.getLogger(chatty).setLevel(logging.WARNING)
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    name = experiment or os.environ.get(EXPERIMENT_VARIABLE) or DEFAULT_EXPERIMENT
    try:
        if mlflow.get_experiment_by_name(name) is None:
            location = None
            if uri.startswith(SQLITE):
                location = (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()
            with contextlib.suppress(mlflow.MlflowException):  # another process has created it meanwhile
                mlflow.create_experiment(name, artifact_location=location)
        mlflow.set_experiment(name)
    except (mlflow.MlflowException, OSError) as error:
        why = " ".join(str(error).split())
        raise StorageError(f"MLflow at {uri} ({URI_VARIABLE}) does not answer: {why}") from None
    return mlflow


def tracking_uri() -> str:
    """Where MLflow keeps runs and models."""
    return os.environ.get(URI_VARIABLE) or DEFAULT_URI


class TrainingRun:
    """An MLflow run that logs the metrics of a training.

    Its id is kept in `folder`, beside the checkpoints, so that a resumed training continues the same run.
    """

    def __init__(self, name: str, spec: ModelSpec, training: TrainingParams, folder: Path) -> None:
        self._name, self._spec, self._training = name, spec, training
        self._id_file = folder / RUN_FILE

    def __enter__(self) -> Self:
        self._mlflow = connect()
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # it warns if there is no GPU
        known = self._known_id()
        run = self._mlflow.start_run(run_id=known, run_name=None if known else self._name, log_system_metrics=True)
        if known:
            return self
        self._id_file.parent.mkdir(parents=True, exist_ok=True)
        self._id_file.write_text(run.info.run_id)
        self._mlflow.log_params(flatten(self._training.model_dump(mode="json"), "training"))
        self._mlflow.log_params(flatten(self._spec.network.model_dump(mode="json"), "network"))
        self._mlflow.log_params(flatten(self._spec.plan.model_dump(mode="json"), "plan"))
        self._mlflow.set_tags({**as_tags(self._spec.origin), "hepar.git_commit": git_commit()})
        return self

    def _known_id(self) -> str | None:
        """The id of the run that this training began in, if the server still has it."""
        try:
            info = self._mlflow.get_run(self._id_file.read_text()).info
        except (OSError, self._mlflow.MlflowException):
            return None
        return str(info.run_id) if info.lifecycle_stage == "active" else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics at a training step."""
        self._mlflow.log_metrics(dict(metrics), step=step)

    def tag_model(self, model_hash: str) -> None:
        """Tag the run with the model that it trained, so that `model_run` finds it."""
        self._mlflow.set_tag(MODEL_TAG, model_hash)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = kind is not None and issubclass(kind, Preempted)
        self._mlflow.end_run("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")


@contextlib.contextmanager
def model_run(experiment: str, model_hash: str) -> Iterator[Any]:
    """mlflow with the run that trained a model reopened, or with a new run if the server does not know it."""
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


def log_report(mlflow: Any, report: Report) -> None:
    """Log a report and its mean Dice to the active run."""
    mlflow.log_artifacts(str(report.folder), Report.KIND)
    for modality, structures in report.metrics().items():
        for structure in STRUCTURES:
            if (value := structures[structure]["dice"]["mean"]) is not None:
                mlflow.log_metric(f"test/{modality}/{structure}_dice", value)


def log_history(mlflow: Any, history: pd.DataFrame) -> None:
    """Log the history of a training to the active run, unless the training has logged it itself."""
    if mlflow.MlflowClient().get_run(mlflow.active_run().info.run_id).data.metrics.get("train/loss"):
        return
    for step, split, modality, metric, value in history[list(ModelFolder.HISTORY_COLUMNS)].values.tolist():
        mlflow.log_metric("/".join(filter(None, (split, modality, metric))), value, step=step)


def as_tags(values: Mapping[str, str]) -> dict[str, str]:
    """Values as MLflow tags: `pool version` becomes `hepar.pool_version`."""
    return {f"hepar.{key.replace(' ', '_')}": value for key, value in values.items()}


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

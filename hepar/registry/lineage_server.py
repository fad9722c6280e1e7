"""What the MLflow server knows about artifacts: versions, trainings, and the records that trainings logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hepar.cases import Cohort
from hepar.errors import ArtifactError
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import REGISTERED
from hepar.pool.table import Pool
from hepar.registry.lineage_records import LINEAGE, LoggedRecords, Record
from hepar.registry.model_registry import COHORT_VERSION, files_of_run, find_registered
from hepar.registry.tracking import MODEL_TAG, connect, mlflow_errors, report_place, tag_name
from hepar.runtime.artifacts import MANIFEST, read_any_manifest
from hepar.runtime.execution import IMAGE, KFP_RUN
from hepar.runtime.scratch import scratch_folder

MAX_RUNS = 20  # that are asked about one artifact
_TAGS_OF_RUNS = {Pool.KIND: tag_name(ModelFolder.POOL), Cohort.KIND: tag_name(Cohort.KIND)}  # that name an input
EXECUTION = (Report.COMMIT, IMAGE, KFP_RUN)  # facts of a version and of a training
MADE_FROM = (ModelFolder.POOL, ModelFolder.WARM_START, ModelFolder.ROLE, Cohort.KIND)  # facts of a training
VERSION_FACTS = ("decision", Report.TEST_SET, COHORT_VERSION, ModelFolder.POOL_VERSION, *EXECUTION)


@dataclass(frozen=True)
class LoggedRun:
    """An MLflow run: its address, parameters, the facts in its tags, and the records of its inputs."""

    uri: str
    facts: Mapping[str, str]
    parameters: Mapping[str, str]
    logged: LoggedRecords

    @property
    def records(self) -> list[Record]:
        """The records of its inputs."""
        return self.logged.records()

    def record_of(self, model_hash: str) -> Record:
        """The record of the model that it trained, from the tags."""
        return Record(
            ModelFolder.KIND, model_hash, {name: self.facts[name] for name in MADE_FROM if name in self.facts}
        )

    def has(self, kind: str, artifact_hash: str) -> bool:
        """Whether it has logged the record of an artifact."""
        return any((record.kind, record.hash) == (kind, artifact_hash) for record in self.records)

    def table(self, kind: str, artifact_hash: str) -> pd.DataFrame | None:
        """The cases of an artifact, if it has logged them."""
        return self.logged.table(kind, artifact_hash)

    def refused(self, kind: str, artifact_hash: str) -> tuple[str, ...] | None:
        """The ids of the cases that ingest refused, if it has logged them."""
        return self.logged.refused(kind, artifact_hash)


@dataclass(frozen=True)
class Version:
    """A registered version; `problem` says why the registry does not have it.

    `artifacts` maps model and report to their hashes. The record of the report is None if its run does not hold it.
    """

    uri: str
    facts: Mapping[str, str]
    artifacts: Mapping[str, str]
    report_record: Record | None = None
    report_uri: str = ""
    problem: str = ""


class ServerRecords:
    """Questions to an MLflow server; copies of what it answers lie in the folder `scratch`."""

    def __init__(self, mlflow: Any, scratch: Path) -> None:
        self._mlflow, self._client, self._scratch = mlflow, mlflow.MlflowClient(), scratch
        self._runs: dict[str, LoggedRun] = {}

    def version(self, uri: str) -> Version:
        """The version `models:/NAME@ALIAS` or `models:/NAME/NUMBER`. Raises DataError if there is no such version."""
        found = find_registered(self._mlflow, uri)
        number, artifacts = str(found.version), _facts(found.tags, (ModelFolder.KIND, Report.KIND))
        address = f"{REGISTERED}{found.name}/{number}"
        aliases = self._client.get_registered_model(found.name).aliases
        own = ", ".join(sorted(alias for alias, at in aliases.items() if str(at) == number))
        place = report_place(artifacts.get(Report.KIND, ""))
        return Version(
            uri=address,
            facts={"aliases": own or "none", **_facts(found.tags, VERSION_FACTS)},
            artifacts=artifacts,
            report_record=self._record_in_run(found.run_id, place) if Report.KIND in artifacts else None,
            report_uri=f"runs:/{found.run_id}/{place}",
        )

    def versions_of(self, model_hash: str) -> dict[str, Record | None]:
        """The versions registered with a model, by address, with the record of the model folder that they hold."""
        found = self._client.search_model_versions(f"tags.`{MODEL_TAG}` = '{model_hash}'")
        addresses = sorted(f"{REGISTERED}{version.name}/{version.version}" for version in found)
        return {address: self._model_record(address) for address in addresses}

    def training_of(self, model_hash: str) -> LoggedRun | None:
        """The run that trained a model; None if this server does not know it."""
        return next(self._search(MODEL_TAG, model_hash), None)

    def runs_that_tell_of(self, kind: str, artifact_hash: str) -> list[LoggedRun]:
        """Runs that had an artifact as an input, and those already read that have logged its record."""
        tag = _TAGS_OF_RUNS.get(kind)
        asked = list(self._search(tag, artifact_hash)) if tag else []
        known = [run for run in self._runs.values() if run.has(kind, artifact_hash)]
        return list({run.uri: run for run in (*asked, *known)}.values())

    def _search(self, tag: str, value: str) -> Iterator[LoggedRun]:
        found = self._mlflow.search_runs(
            search_all_experiments=True,
            filter_string=f"tags.`{tag}` = '{value}'",
            max_results=MAX_RUNS,
            output_format="list",
        )
        for run in found:
            yield self._read(run)

    def _read(self, run: Any) -> LoggedRun:
        run_id = run.info.run_id
        if run_id not in self._runs:
            folder = self._scratch / run_id
            folder.mkdir()
            for path in files_of_run(self._mlflow, run_id, LINEAGE):
                self._download(folder, run_id=run_id, artifact_path=path)
            self._runs[run_id] = LoggedRun(
                f"runs:/{run_id}",
                _facts(run.data.tags, (*MADE_FROM, *EXECUTION)),
                dict(run.data.params),
                LoggedRecords(folder),
            )
        return self._runs[run_id]

    def _download(self, folder: Path, **what: str) -> Path:
        return Path(self._mlflow.artifacts.download_artifacts(dst_path=str(folder), **what))

    def _record_in_run(self, run_id: str, folder: str) -> Record | None:
        """The record of an artifact that a run holds in a folder."""
        path = f"{folder}/{MANIFEST}"
        if path not in files_of_run(self._mlflow, run_id, folder):
            return None
        return _record_at(self._download(self._scratch, run_id=run_id, artifact_path=path))

    def _model_record(self, uri: str) -> Record | None:
        """The record of the model folder in a version, of which only the manifest is downloaded."""
        folder = self._scratch / "model"
        folder.mkdir(exist_ok=True)
        try:
            artifacts = self._mlflow.models.get_model_info(uri).flavors["python_function"]["artifacts"]
            place = f"{uri}/{artifacts[ModelFolder.KIND]['path']}/{MANIFEST}"
            return _record_at(self._download(folder, artifact_uri=place))
        except (self._mlflow.MlflowException, OSError, KeyError):
            return None


@contextmanager
def server_records() -> Iterator[ServerRecords]:
    """Questions to the tracking server for as long as the context lasts. Raises StorageError if it fails."""
    with mlflow_errors(), scratch_folder("lineage") as scratch:
        yield ServerRecords(connect(), scratch)


def _facts(tags: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Those of the facts that `as_tags` has made tags of."""
    return {name: tags[tag_name(name)] for name in names if tag_name(name) in tags}


def _record_at(manifest: Path) -> Record | None:
    try:
        return Record.of(read_any_manifest(manifest.parent))
    except ArtifactError:
        return None

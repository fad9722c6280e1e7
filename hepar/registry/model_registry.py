"""The MLflow model registry: versions of a registered model, their aliases and tags, and downloads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hepar.cases import Cohort
from hepar.errors import ArtifactError, DataError, StorageError
from hepar.evaluation.report_folder import Report
from hepar.inference.model_folder import ModelFolder
from hepar.params import CHAMPION, REGISTERED
from hepar.registry.case_results import CaseResult, case_results
from hepar.registry.lease import Lease
from hepar.registry.tracking import check_server, connect, mlflow_errors, reason_of, report_place, server, tag_name
from hepar.runtime.artifacts import MANIFEST
from hepar.runtime.commit import RELEASE
from hepar.runtime.execution import KFP_RUN
from hepar.runtime.scratch import scratch_folder

CHALLENGER = "challenger"
PREVIOUS = "previous"  # the alias of the version that the champion replaced
OUTGOING = "outgoing"  # the alias of the champion while another version takes its place
POOL_TAG = tag_name(ModelFolder.POOL_VERSION)
COHORT_VERSION = "cohort version"  # the version in the store of the cohort that a model was scored on
COHORT_TAG = tag_name(COHORT_VERSION)
REPORT_TAG = tag_name(Report.KIND)
RUN_TAG = tag_name(KFP_RUN)
FACTS = (  # read back from tags
    *(Cohort.KIND, COHORT_VERSION, ModelFolder.KIND),
    *(Report.TEST_SET, RELEASE, Report.LEFT_TO_MODEL, *Report.SETTINGS),
)
NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # of a model or version, and of an alias
_SERVING_PACKAGES = (
    *("blosc2", "mlflow", "monai", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml", "rich", "scipy"),
    *("SimpleITK", "torch"),
)


@dataclass(frozen=True)
class ModelVersion:
    """A version with its test scores: what its report says of the evaluation, and the scores of its cases."""

    name: str
    number: str
    run_id: str
    facts: Mapping[str, str]  # those of `FACTS` that it has
    cases: tuple[CaseResult, ...] | None  # None if it was registered without them

    @property
    def test_set(self) -> str:
        """The hash of the test set and of the settings of the evaluation."""
        return self.facts.get(Report.TEST_SET, "")

    @property
    def release(self) -> str:
        """The release of hepar that scored it; empty if an older one did."""
        return self.facts.get(RELEASE, "")

    @property
    def model_hash(self) -> str:
        """The hash of the model folder; empty if it was registered without it."""
        return self.facts.get(ModelFolder.KIND, "")

    @property
    def uri(self) -> str:
        """The version as MLflow and `downloaded_model` take it."""
        return f"{REGISTERED}{self.name}/{self.number}"


@dataclass(frozen=True)
class RegisteredModel:
    """A model in the registry; `mlflow` comes from `connect` or `model_run`.

    With a lease, each change of an alias looks first whether it still holds, and raises StorageError if not.
    """

    mlflow: Any
    name: str
    lease: Lease | None = None

    def version(self, number: str) -> ModelVersion:
        """A version by number.

        Raises DataError if there is none, StorageError if the registry does not answer or the scores cannot be read:
        no version is promoted on scores that could not be read.
        """
        return self._with_scores(self.entry(number))

    def version_by_alias(self, alias: str) -> ModelVersion | None:
        """The version with an alias; None if there is none. Raises StorageError as `version` does."""
        found = self._find(lambda client: client.get_model_version_by_alias(self.name, alias))
        return None if found is None else self._with_scores(found)

    def entry(self, number: str) -> Any:
        """What MLflow knows about a version. Raises DataError if there is none, StorageError without an answer."""
        found = self._find(lambda client: client.get_model_version(self.name, number))
        if found is None:
            raise DataError(f"model {self.name} has no version {number} at {server()}")
        return found

    def _find(self, query: Callable[[Any], Any]) -> Any:
        """The answer of MLflow; None if there is no such version."""
        try:
            return query(self.mlflow.MlflowClient())
        except self.mlflow.MlflowException as error:
            if error.error_code in NOT_FOUND:
                return None
            raise StorageError(f"the registry at {server()} does not answer: {reason_of(error)}") from None

    def _with_scores(self, found: Any) -> ModelVersion:
        return ModelVersion(found.name, str(found.version), found.run_id, facts_of(found), self._cases(found))

    def _cases(self, found: Any) -> tuple[CaseResult, ...] | None:
        """The scores by case that were logged with a version; None if it names no report."""
        if not (report_hash := found.tags.get(REPORT_TAG)):
            return None
        place = f"{report_place(report_hash)}/{Report.CASES}"
        try:
            with scratch_folder("report") as scratch:
                self.mlflow.artifacts.download_artifacts(run_id=found.run_id, artifact_path=place, dst_path=scratch)
                (table,) = Path(scratch).rglob(Report.CASES)
                return case_results(Report(table.parent).cases())
        except (self.mlflow.MlflowException, OSError, ValueError, KeyError) as error:
            what = f"version {found.version} of {found.name}"
            raise StorageError(f"{what}: its report cannot be read from {server()}: {reason_of(error)}") from None

    def patients(self, version: ModelVersion) -> frozenset[str]:
        """Hashes of the patients whose labels the model of a version has seen; none if it does not list them.

        Only the list is downloaded. Raises StorageError if it cannot be read: unlike an imported checkpoint, a model
        whose list is out of reach may have seen anybody.
        """
        mlflow = self.mlflow
        try:
            files = mlflow.models.get_model_info(version.uri).flavors["python_function"]["artifacts"]
            within = f"{version.uri}/{files[ModelFolder.KIND]['path']}"
            with scratch_folder("patients") as scratch:
                place = _download(mlflow, f"{within}/{MANIFEST}", scratch)
                stored = ModelFolder(place.parent)
                if not stored.has_patients():
                    return frozenset()
                _download(mlflow, f"{within}/{ModelFolder.PATIENTS}", scratch)
                return stored.load_patients()
        except (mlflow.MlflowException, OSError, KeyError) as error:
            what = f"version {version.number} of {version.name}"
            raise StorageError(
                f"{what}: the patients that it learned from cannot be read from {server()}: {reason_of(error)}"
            ) from None

    def find_version(self, tags: Mapping[str, str]) -> tuple[str, Mapping[str, str]] | None:
        """Number and all tags of the first version that has these tags; None if there is none."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.mlflow.MlflowClient().search_model_versions(query)
        own = [version for version in found if version.name == self.name]
        first = min(own, key=lambda version: int(version.version), default=None)
        return None if first is None else (str(first.version), dict(first.tags))

    def log_model(self, model: Path, settings: Mapping[str, str]) -> str:
        """Log a model folder to the active run; returns its address for `add_version`.

        It is logged with the `settings` that it predicts with and the code of this package; `registry.pyfunc` defines
        its predictions.
        """
        mlflow = self.mlflow
        output = mlflow.types.ParamSpec("output", mlflow.types.DataType.string, "")
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc.py")),
            artifacts={ModelFolder.KIND: str(model)},
            model_config=dict(settings),
            code_paths=[str(Path(__file__).parents[1])],
            pip_requirements=serving_requirements(),
            signature=mlflow.models.ModelSignature(params=mlflow.types.ParamSchema([output])),
        )
        return str(info.model_uri)

    def add_version(self, logged: str, tags: Mapping[str, str]) -> str:
        """Register a logged model with tags; returns the number of the version, which gets no alias.

        There is no version without its tags, whenever the process dies.
        """
        return str(self.mlflow.register_model(logged, self.name, tags=dict(tags)).version)

    def tag_version(self, number: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self.mlflow.MlflowClient().set_model_version_tag(self.name, number, key, value)

    def aliases(self) -> dict[str, str]:
        """The number of the version behind each alias; none if there is no such model."""
        try:
            found = self.mlflow.MlflowClient().get_registered_model(self.name).aliases
        except self.mlflow.MlflowException as error:
            if error.error_code in NOT_FOUND:
                return {}
            raise
        return {alias: str(number) for alias, number in found.items()}

    def previous(self) -> str | None:
        """The number of the version that the champion replaced, also if that promotion was cut short."""
        aliases = self.aliases()
        outgoing = aliases.get(OUTGOING)
        return aliases.get(PREVIOUS) if outgoing in (None, aliases.get(CHAMPION)) else outgoing

    def make_champion(self, number: str) -> None:
        """Point the alias champion to a version and previous to the one that it replaces.

        It is no challenger any more. Repeating it after a failure half-way completes it. Whenever the process dies,
        `previous` knows the way back.
        """
        self._finish_promotion()
        aliases = self.aliases()
        champion = aliases.get(CHAMPION)
        if champion is not None and champion != number:
            self._point(OUTGOING, champion)
        self._point(CHAMPION, number)
        self._finish_promotion()
        if aliases.get(CHALLENGER) == number:
            self._free(CHALLENGER)

    def _finish_promotion(self) -> None:
        """Let the alias previous say what `previous` does, so that outgoing can go."""
        if OUTGOING in self.aliases():
            if (number := self.previous()) is not None:
                self._point(PREVIOUS, number)
            self._free(OUTGOING)

    def make_challenger(self, number: str) -> None:
        """Point the alias challenger to a version."""
        self._point(CHALLENGER, number)

    def restore_previous(self) -> None:
        """Point champion to the version that previous points to, which is then free.

        Repeating it after a failure half-way completes it. There must be a previous version.
        """
        self._finish_promotion()
        self._point(CHAMPION, self.aliases()[PREVIOUS])
        self._free(PREVIOUS)

    def _point(self, alias: str, number: str) -> None:
        self._check_lease()
        self.mlflow.MlflowClient().set_registered_model_alias(self.name, alias, number)

    def _free(self, alias: str) -> None:
        self._check_lease()
        self.mlflow.MlflowClient().delete_registered_model_alias(self.name, alias)

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()


def serving_requirements() -> list[str]:
    """The packages that a registered version needs, pinned to the versions installed here."""
    return [f"{name}=={version(name).split('+')[0]}" for name in _SERVING_PACKAGES]


@contextlib.contextmanager
def downloaded_model(uri: str) -> Iterator[Path]:
    """The model folder of a registered version, such as `models:/NAME@champion`, deleted on exit.

    Raises DataError if there is no registry, ArtifactError if there is no such version or hepar did not register it.
    """
    check_server()
    mlflow = connect()
    with scratch_folder("model") as scratch:
        try:
            place = _download(mlflow, uri, scratch)
        except mlflow.MlflowException as error:
            raise ArtifactError(f"{uri} cannot be fetched from {server()}: {reason_of(error)}") from None
        if not (specs := sorted(place.rglob(ModelFolder.SPEC))):
            raise ArtifactError(f"{uri} is not a hepar model: {ModelFolder.SPEC} is missing")
        yield specs[0].parent


def _download(mlflow: Any, uri: str, folder: Path) -> Path:
    """Where the artifact lies that MLflow has put into a folder."""
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))


def files_of_run(mlflow: Any, run_id: str, folder: str) -> tuple[str, ...]:
    """Paths of the artifacts in a folder of a run; none if there is no such folder."""
    try:
        return tuple(file.path for file in mlflow.MlflowClient().list_artifacts(run_id, folder))
    except mlflow.MlflowException as error:  # some stores refuse to list a folder that is missing
        if error.error_code not in NOT_FOUND:
            raise
        return ()


def find_registered(mlflow: Any, uri: str) -> Any:
    """What MLflow knows about the version `models:/NAME@ALIAS` or `models:/NAME/NUMBER`.

    Raises DataError if there is no such version or the address is of another form.
    """
    named = uri.removeprefix(REGISTERED)
    name, mark, key = named.partition("@" if "@" in named else "/")
    if not (name and mark and key):
        raise DataError(f"{uri} must be {REGISTERED}NAME@ALIAS or {REGISTERED}NAME/VERSION")
    client = mlflow.MlflowClient()
    try:
        return client.get_model_version_by_alias(name, key) if mark == "@" else client.get_model_version(name, key)
    except mlflow.MlflowException as error:
        if error.error_code not in NOT_FOUND:
            raise
        raise DataError(f"{uri} is not in the registry at {server()}: {reason_of(error)}") from None


def facts_of(found: Any) -> dict[str, str]:
    """Those of `FACTS` that a version has, of what MLflow knows about it."""
    return {fact: found.tags[tag_name(fact)] for fact in FACTS if tag_name(fact) in found.tags}


def versions_of_run(mlflow: Any, run: str) -> list[Any]:
    """What MLflow knows about the versions that a run on a cluster has registered; none yet while it goes on."""
    return list(mlflow.MlflowClient().search_model_versions(f"tags.`{RUN_TAG}` = '{run}'"))


def pool_version(uri: str) -> str:
    """The DVC version of the pool that a registered model, such as `models:/NAME@champion`, was trained on.

    Raises DataError if there is no such model, or if it lacks the tag, StorageError if the registry fails.
    """
    return _version_in_tag(uri, POOL_TAG, "pool")


def cohort_version(uri: str) -> str:
    """The version in the store of the cohort that a registered model was scored on.

    Raises DataError if there is no such model, or if it lacks the tag, as after a run in folders, StorageError if the
    registry fails.
    """
    return _version_in_tag(uri, COHORT_TAG, "cohort")


def _version_in_tag(uri: str, name: str, what: str) -> str:
    check_server()
    with mlflow_errors():
        tag = str(find_registered(connect(), uri).tags.get(name, ""))
    if not tag:
        raise DataError(f"{uri} does not name its {what}: the tag {name} is missing")
    return tag

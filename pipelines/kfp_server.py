"""A KFP server: experiments, versions of pipelines, runs. What fails for a moment is tried again.

A creation whose answer was lost may have happened, so whatever is created is looked for before it is created again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import urllib3
from kfp import Client
from kfp.client import (
    KF_PIPELINES_SA_TOKEN_ENV,
    KF_PIPELINES_SA_TOKEN_PATH,
    ServiceAccountTokenVolumeCredentials,
)
from kfp_server_api import ApiException, V2beta1Pipeline

from hepar.errors import HeparError, StorageError, one_line
from hepar.runtime.redaction import redact
from pipelines.compiled import CompiledPipeline
from pipelines.steps import say

T = TypeVar("T")
ENDPOINT_VARIABLE = "KF_PIPELINES_ENDPOINT"  # read by KFP's client
TOKEN_VARIABLE = "HEPAR_KFP_TOKEN"  # a bearer token for the server; empty: that of the pod's service account, if any
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)  # seconds before each further try
FIRST_PAUSES = (1.0, 2.0, 4.0)  # instead, for the first question: whoever gave a wrong address waits for it
HEALTH_TIMEOUT = (2.0, 5.0)  # of that question: seconds to connect, and to wait for the answer
UNKNOWN_USER = 401
DENIED = (UNKNOWN_USER, 403)
NOT_FOUND = 404
TOO_MANY = 429
PAGE = 100
REDIRECTS = 3  # that one request may follow, as to https


class _Client(Client):  # type: ignore[misc]  # kfp has no types
    """KFP's client, which tries everything once, follows redirects, and leaves further tries to `KfpServer`.

    Raises StorageError for a page, as to log in, which KFP's own client takes for an answer without content.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        api = self._healthz_api.api_client  # that of all calls
        read = api.deserialize

        def deserialize(response: Any, kind: Any) -> Any:
            if response.data.lstrip().startswith("<"):
                cure = f"it needs KFP's own address, and {TOKEN_VARIABLE} where one must log in"
                raise StorageError(redact(f"{api.configuration.host} answers with a page, not as KFP does: {cure}"))
            return read(response, kind)

        api.deserialize = deserialize

    def _load_config(self, *given: Any) -> Any:
        config = super()._load_config(*given)
        # urllib3 would wait for each timeout four times; 0 for `total` would forbid redirects too
        config.retries = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=REDIRECTS)
        return config

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
        return self._healthz_api.healthz_service_get_healthz(_request_timeout=HEALTH_TIMEOUT)


class KfpServer:
    """The server at `endpoint`, or that of KFP's own settings if it is empty; `namespace` where runs happen."""

    def __init__(self, endpoint: str, namespace: str = "") -> None:
        self.address = (
            redact(endpoint or os.environ.get(ENDPOINT_VARIABLE, "")) or f"KFP ({ENDPOINT_VARIABLE} is not set)"
        )
        self.namespace = namespace or None
        given = _credentials() | ({"namespace": namespace} if namespace else {})

        def connect() -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of servers before 2.0
                client = _Client(host=endpoint or None, **given)
            client.get_kfp_healthz()
            return client

        self._client = self._ask("its health", connect, FIRST_PAUSES)

    def experiment(self, name: str) -> str:
        """The id of an experiment, created if there is none."""

        def make() -> Any:
            return self._client.create_experiment(name, namespace=self.namespace)

        return str(self._ask(f"experiment {name}", make).experiment_id)  # it looks for the experiment first

    def version(self, pipeline: CompiledPipeline) -> tuple[str, str]:
        """The ids of a pipeline and of its version in the file, created if there are none."""
        service, name, path = self._client.pipelines, pipeline.name, str(pipeline.path)
        what = f"pipeline {name}"

        def make_pipeline() -> Any:
            made = V2beta1Pipeline(display_name=name, namespace=self.namespace)
            return service.pipeline_service_create_pipeline(made).pipeline_id

        def find_pipeline() -> Any:  # KFP's get_pipeline_id finds no pipeline of a namespace
            answer = self._client.list_pipelines(namespace=self.namespace, filter=_named(name))
            return next((known.pipeline_id for known in answer.pipelines or ()), None)

        found = self._created(what, make_pipeline, find_pipeline)

        def find_version() -> Any:
            chosen = _named(pipeline.version)
            answer = self._client.list_pipeline_versions(found, page_size=PAGE, filter=chosen)
            return next((version.pipeline_version_id for version in answer.pipeline_versions or ()), None)

        def make_version() -> Any:
            made = self._client.upload_pipeline_version(path, pipeline.version, pipeline_id=found)
            return made.pipeline_version_id

        return str(found), str(self._created(f"{what}, version {pipeline.version}", make_version, find_version))

    def runs_named(self, name: str) -> list[Any]:
        """All runs of a name in the namespace, oldest first."""
        found: list[Any] = []
        token = ""
        while True:
            chosen = {"page_token": token, "page_size": PAGE, "namespace": self.namespace, "filter": _named(name)}
            answer = self._ask("its runs", partial(self._client.list_runs, **chosen))
            found += answer.runs or ()
            token = answer.next_page_token or ""
            if not token:
                return sorted(found, key=lambda run: (str(run.created_at), run.run_id))

    def create_run(self, make: Callable[[Any], Any], find: Callable[[], Any | None], name: str) -> Any:
        """The run that `make` creates with KFP's client, or that `find` finds when the answer was lost."""
        return self._created(f"run {name}", lambda: make(self._client), find, look_first=False)

    def run(self, run_id: str) -> Any:
        """A run as the server knows it now."""
        return self._ask(f"run {run_id}", lambda: self._client.get_run(run_id))

    def find_run(self, run_id: str) -> Any | None:
        """A run as the server knows it now; None if it has been deleted."""

        def find() -> Any | None:
            try:
                return self._client.get_run(run_id)
            except ApiException as error:
                if error.status == NOT_FOUND:
                    return None
                raise

        return self._ask(f"run {run_id}", find)

    def terminate(self, run_id: str) -> None:
        """Stop a run."""
        self._ask(f"run {run_id}", lambda: self._client.terminate_run(run_id))

    def link(self, run_id: str) -> str:
        """The page of a run in KFP's UI."""
        return redact(f"{self._client._get_url_prefix()}/#/runs/details/{run_id}")

    def _created(self, what: str, make: Callable[[], T], find: Callable[[], T | None], look_first: bool = True) -> T:
        """What `find` finds, else what `make` makes; after a failure that may pass, both again."""
        for attempt, pause in enumerate((*PAUSES, None)):
            if (look_first or attempt) and (found := self._ask(what, find)) is not None:
                return found
            try:
                return self._quietly(make)
            except (ApiException, urllib3.exceptions.HTTPError) as error:
                self._wait(what, error, pause)
        raise AssertionError("unreachable")

    def _ask(self, what: str, ask: Callable[[], T], pauses: Sequence[float] = ()) -> T:
        """The answer to a question that may be asked again. Raises StorageError if it fails for good."""
        for pause in (*(pauses or PAUSES), None):
            try:
                return self._quietly(ask)
            except (ApiException, urllib3.exceptions.HTTPError) as error:
                self._wait(what, error, pause)
            except ValueError as error:  # of KFP's client: several of one name
                raise StorageError(f"{self.address}, {what}: {one_line(error)}") from None
        raise AssertionError("unreachable")

    def _wait(self, what: str, error: Exception, pause: float | None) -> None:
        """Wait before another try. Raises StorageError if there is none, or if it would fail too."""
        if pause is None or not _may_pass(error):
            raise self._failure(what, error) from None
        say(f"{self._failure(what, error)}; trying again in {pause:.0f} s")
        time.sleep(pause)

    @staticmethod
    def _quietly(call: Callable[[], T]) -> T:
        with contextlib.redirect_stdout(io.StringIO()):  # KFP's client prints links of its own
            return call()

    def _failure(self, what: str, error: Exception) -> HeparError:
        if isinstance(error, ApiException) and error.status in DENIED:
            where = f" in the namespace {self.namespace}" if self.namespace else ""
            cure = f"set {TOKEN_VARIABLE} to a token that may do this"
            if error.status == UNKNOWN_USER and os.environ.get(TOKEN_VARIABLE):
                cure += "; a redirect to another scheme, host or port drops it"
            return StorageError(f"{self.address} answers {error.status} to {what}{where}: {cure}")
        if isinstance(error, urllib3.exceptions.MaxRetryError):
            return StorageError(redact(f"{self.address} cannot be reached: {_reason(error)}"))
        return StorageError(redact(f"{self.address}, {what}: {_reason(error)}"))


def _credentials() -> dict[str, Any]:
    """What KFP's client gets to log in: it looks for the token of a service account only if it has no address."""
    if token := os.environ.get(TOKEN_VARIABLE):
        return {"existing_token": token}
    path = os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH
    return {"credentials": ServiceAccountTokenVolumeCredentials(path)} if Path(path).is_file() else {}


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _may_pass(error: Exception) -> bool:
    if isinstance(getattr(error, "reason", None), urllib3.exceptions.ResponseError):  # too many redirects
        return False
    status = error.status if isinstance(error, ApiException) else None
    return not status or status == TOO_MANY or status >= 500


def _reason(error: Exception) -> str:
    """What the server, or the network, says, in one line."""
    if isinstance(error, ApiException) and error.body:
        try:
            said = json.loads(error.body)
            return one_line(said.get("message") or said.get("error") or error.body)
        except (ValueError, AttributeError):
            return one_line(f"{error.status} {error.reason}")
    if isinstance(error, urllib3.exceptions.MaxRetryError):
        return one_line(getattr(error.reason, "__cause__", None) or error.reason or error)
    return one_line(error)

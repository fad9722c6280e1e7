"""A stand-in for a KFP server: the part of its v2beta1 API that submissions use, on loopback, in memory.

It is no KFP. It is stricter where that helps: a spec is parsed with unknown fields refused, so is whatever is created,
and the parameters of a run are checked against the spec's `inputDefinitions`. A run plays `states`, one further at each
look. `faults` are played once each, in order, at the first request that they match.

With `namespaces` it has several users, as KFP 2 has with profiles: experiments and runs need a namespace, pipelines
without one are shared, a list has what is in the namespace asked for and nothing else, and another namespace is
answered by 403.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from loopback import served

from pipelines.compiled import LOADER

PREFIX = "/apis/v2beta1"
# what tests compile into the pipeline, and submit
DIGEST, SOURCE = f"registry.example.org/hepar@sha256:{'a' * 64}", {"source": "phantoms"}
LOST = 0  # a fault: the request is carried out and the connection closed without an answer
JSON_TYPES: dict[str, Callable[[Any], bool]] = {
    "STRING": lambda value: isinstance(value, str),
    "NUMBER_INTEGER": lambda value: isinstance(value, int | float) and value == int(value),
    "NUMBER_DOUBLE": lambda value: isinstance(value, int | float),
    "BOOLEAN": lambda value: isinstance(value, bool),
    "STRUCT": lambda value: isinstance(value, dict),
    "LIST": lambda value: isinstance(value, list),
}


class Refused(Exception):
    """A request that the server answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """An answer instead of the right one: to requests of this method whose path matches."""

    method: str
    path: str
    status: int


@dataclass
class KfpStandIn:
    """What the server knows.

    `token`, if set, must come with each request; `namespaces` are those it may use, none where KFP has one user.
    """

    address: str = ""
    token: str = ""
    namespaces: frozenset[str] = frozenset()
    states: tuple[str, ...] = ("PENDING", "RUNNING", "SUCCEEDED")
    faults: list[Fault] = field(default_factory=list)
    experiments: list[dict[str, Any]] = field(default_factory=list)
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    recurring_runs: list[dict[str, Any]] = field(default_factory=list)
    looks: dict[str, int] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> dict[str, Any]:
        """The answer to a request. Raises Refused."""
        with self.lock:
            for known_method, pattern, answer in self.routes():
                if method == known_method and (match := re.fullmatch(pattern, path)):
                    return answer(query, body, *match.groups())
        raise Refused(404, f"{method} {path} is not played")

    def routes(self) -> list[tuple[str, str, Callable[..., dict[str, Any]]]]:
        return [
            ("GET", "/healthz", lambda query, body: {"multi_user": bool(self.namespaces)}),
            ("GET", "/experiments", self.list_experiments),
            ("POST", "/experiments", self.create_experiment),
            ("GET", "/pipelines", self.list_pipelines),
            ("POST", "/pipelines", self.create_pipeline),
            ("POST", "/pipelines/upload_version", self.upload_version),
            ("GET", "/pipelines/([^/]+)/versions", self.list_versions),
            ("GET", "/runs", self.list_runs),
            ("POST", "/runs", self.create_run),
            ("POST", "/recurringruns", self.create_recurring_run),
            ("GET", "/runs/([^/:]+)", self.get_run),
            ("POST", "/runs/([^/:]+):terminate", self.terminate_run),
        ]

    def allowed(self, namespace: str | None, shared: bool = False) -> str:
        """The namespace that a request means: none where KFP has one user. Raises Refused."""
        if not self.namespaces or (shared and not namespace):
            return ""
        if not namespace:
            raise Refused(400, "a namespace is needed, since there are several users")
        if namespace not in self.namespaces:
            raise Refused(403, f"the namespace {namespace} is not yours")
        return namespace

    def list_experiments(self, query: dict[str, str], body: bytes) -> dict[str, Any]:
        return _listed("experiments", _within(self.experiments, self.allowed(query.get("namespace"))), query)

    def create_experiment(self, query: dict[str, str], body: bytes) -> dict[str, Any]:
        given = _checked(body, kfp_server_api.V2beta1Experiment)
        return _added(self.experiments, "experiment_id", given | {"namespace": self.allowed(given.get("namespace"))})

    def list_pipelines(self, query: dict[str, str], body: bytes) -> dict[str, Any]:
        return _listed("pipelines", _within(self.pipelines, self.allowed(query.get("namespace"), shared=True)), query)

    def create_pipeline(self, query: dict[str, str], body: bytes) -> dict[str, Any]:
        given = _checked(body, kfp_server_api.V2beta1Pipeline)
        namespace = self.allowed(given.get("namespace"), shared=True)
        if any(pipeline["display_name"] == given["display_name"] for pipeline in _within(self.pipelines, namespace)):
            raise Refused(409, f"pipeline {given['display_name']} exists already")
        return _added(self.pipelines, "pipeline_id", given | {"namespace": namespace})

    def upload_version(self, query: dict[str, str], body: bytes) -> dict[str, Any]:
        self.allowed(_found(self.pipelines, "pipeline_id", query["pipelineid"])["namespace"], shared=True)
        text = _uploaded(body)
        spec = parse_spec(yaml.load_all(text, LOADER))
        if any(version["display_name"] == query["name"] for version in self.versions):
            raise Refused(409, f"version {query['name']} exists already")
        made = {"pipeline_id": query["pipelineid"], "display_name": query["name"], "pipeline_spec": spec}
        return _added(self.versions, "pipeline_version_id", made)

    def list_versions(self, query: dict[str, str], body: bytes, pipeline_id: str) -> dict[str, Any]:
        self.allowed(_found(self.pipelines, "pipeline_id", pipeline_id)["namespace"], shared=True)
        own = [version for version in self.versions if version["pipeline_id"] == pipeline_id]
        return _listed("pipeline_versions", own, query)

    def list_runs(self, query: dict[str, str], body: bytes) -> dict[str, Any]:
        own = _within(self.runs, self.allowed(query.get("namespace")))
        return _listed("runs", [self.shown(run) for run in own], query)

    def create_run(self, query: dict[str, str], body: bytes) -> dict[str, Any]:
        given = self.runnable(_checked(body, kfp_server_api.V2beta1Run))
        return self.shown(_added(self.runs, "run_id", given))

    def create_recurring_run(self, query: dict[str, str], body: bytes) -> dict[str, Any]:
        given = self.runnable(_checked(body, kfp_server_api.V2beta1RecurringRun))
        if not 1 <= int(given["max_concurrency"]) <= 10:
            raise Refused(400, "max_concurrency is out of range")
        cron = given["trigger"]["cron_schedule"]["cron"]
        if len(cron.split()) != 6:  # KFP reads five as seconds to months
            raise Refused(400, f"the schedule {cron!r} has no seconds")
        return _added(self.recurring_runs, "recurring_run_id", given)

    def runnable(self, given: dict[str, Any]) -> dict[str, Any]:
        """A run or recurring run in the namespace of its experiment. Raises Refused for a wrong spec or parameter."""
        experiment = _found(self.experiments, "experiment_id", given["experiment_id"])
        namespace = self.allowed(experiment["namespace"])
        if reference := given.get("pipeline_version_reference"):
            version = _found(self.versions, "pipeline_version_id", reference["pipeline_version_id"])
            if _found(self.pipelines, "pipeline_id", version["pipeline_id"])["namespace"] not in ("", namespace):
                raise Refused(403, "the pipeline is in another namespace")
            spec = version["pipeline_spec"]
        else:
            sent = given["pipeline_spec"]  # both documents in one, where there are two
            spec = parse_spec([sent["pipeline_spec"], sent["platform_spec"]] if "platform_spec" in sent else [sent])
        check_parameters(spec, given.get("runtime_config", {}).get("parameters") or {})
        return given | {"namespace": namespace}

    def get_run(self, query: dict[str, str], body: bytes, run_id: str) -> dict[str, Any]:
        run = self.find(run_id)
        self.looks[run_id] = self.looks.get(run_id, 0) + 1
        return self.shown(run)

    def terminate_run(self, query: dict[str, str], body: bytes, run_id: str) -> dict[str, Any]:
        self.find(run_id)["ended"] = "CANCELED"
        return {}

    def find(self, run_id: str) -> dict[str, Any]:
        run = _found(self.runs, "run_id", run_id)
        self.allowed(run["namespace"])
        return run

    def shown(self, run: dict[str, Any]) -> dict[str, Any]:
        state = self.states[min(self.looks.get(run["run_id"], 0), len(self.states) - 1)]
        answer = {key: value for key, value in run.items() if key != "ended"} | {"state": run.get("ended", state)}
        if answer["state"] == "FAILED":
            answer["error"] = {"message": "train-universal: exit code 2"}
            answer["run_details"] = {"task_details": [{"display_name": "train-universal", "state": "FAILED"}]}
        return answer

    def fault(self, method: str, path: str) -> int | None:
        """The fault that this request meets, which is then used up."""
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.fullmatch(fault.path, path):
                    self.faults.remove(fault)
                    return fault.status
        return None


def parse_spec(documents: Any) -> dict[str, Any]:
    """The pipeline spec of the documents of a compiled file, the others of which must be platform specs."""
    spec, *platforms = documents
    try:
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        for platform in platforms:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise Refused(400, f"the spec is refused: {error}") from None
    found: dict[str, Any] = spec
    return found


def check_parameters(spec: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise Refused for a parameter that is unknown, missing or of another type."""
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    if unknown := sorted(given.keys() - known.keys()):
        raise Refused(400, f"unknown parameter {unknown[0]}")
    for name, definition in known.items():
        if name not in given:
            if "defaultValue" not in definition and not definition.get("isOptional"):
                raise Refused(400, f"parameter {name} is missing")
        elif not JSON_TYPES[definition["parameterType"]](given[name]):
            raise Refused(400, f"parameter {name} is no {definition['parameterType']}")


def _checked(body: bytes, model: Any) -> dict[str, Any]:
    """What a request creates. Raises Refused for a key that KFP's own model of it has not."""
    given: dict[str, Any] = json.loads(body)
    if unknown := sorted(given.keys() - set(model.attribute_map.values())):
        raise Refused(400, f"unknown field {unknown[0]}")
    return given


def _within(items: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    return [item for item in items if item["namespace"] == namespace]


def _found(items: list[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    for item in items:
        if item[key] == value:
            return item
    raise Refused(404, f"{key} {value} not found")


def _added(items: list[dict[str, Any]], key: str, given: dict[str, Any]) -> dict[str, Any]:
    made = {**given, key: f"{key.removesuffix('_id')}-{len(items) + 1}"}
    made["created_at"] = f"2026-01-01T00:00:{len(items):02}Z"
    items.append(made)
    return made


def _listed(name: str, items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """One page of the items that the filter chooses; one of runs holds a single one, so that clients must ask again."""
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        assert predicate["operation"] in ("EQUALS", 1)  # by name, or by number as the client of KFP has it
        items = [item for item in items if item.get(predicate["key"]) == predicate["stringValue"]]
    start = int(query.get("page_token") or 0)
    size = 1 if name == "runs" else len(items)
    further = {"next_page_token": str(start + size)} if start + size < len(items) else {}
    return {name: items[start : start + size], **further} if items else {}


def _uploaded(body: bytes) -> str:
    """The file of a multipart body, which begins with its boundary."""
    boundary = body.split(b"\r\n", 1)[0][2:]
    parts = message_from_bytes(b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n\r\n" + body)
    payload = parts.get_payload()[0].get_payload(decode=True)  # type: ignore[union-attr, index]
    assert isinstance(payload, bytes)
    return payload.decode()


@contextmanager
def kfp_stand_in() -> Iterator[KfpStandIn]:
    """A server on a free port of loopback."""
    known = KfpStandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.play()

        def do_POST(self) -> None:
            self.play()

        def play(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, query = url.path.removeprefix(PREFIX), {key: value[0] for key, value in parse_qs(url.query).items()}
            fault = known.fault(self.command, path)
            try:
                if known.token and self.headers.get("Authorization") != f"Bearer {known.token}":
                    raise Refused(401, "who are you?")
                if fault:
                    raise Refused(fault, "played")
                status, answer = 200, known.answer(self.command, path, query, body)
            except Refused as refused:
                status, answer = refused.status, {"message": str(refused), "code": 2}
            if fault == LOST:
                self.close_connection = True
                return
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *words: object) -> None:
            pass

    with served(Handler) as known.address:
        yield known

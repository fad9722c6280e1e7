"""One run on a KFP server for one state: its name is a key over image, params, source and champion.

A run of that name that is running or has succeeded is not started again, so two submissions give one run; one that
failed may be repeated. KFP does not make names unique, so a submission looks again after it has created a run: of
several that have not failed the oldest stays, and the others are terminated by those who created them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.images import check_digests
from hepar.cli.cluster import ACCOUNT_VARIABLE, NAMESPACE_VARIABLE, PIPELINE_FILE, RunRequest
from hepar.errors import HeparError, ParamsError
from hepar.ingest.listing import list_source
from hepar.params import Params, PipelineParams, dump_params
from hepar.registry.tracking import mlflow_errors
from hepar.retraining.identity import find_champion, reviews_hash, training_identity
from hepar.retraining.submission import CANCELLED, FAILED, FINISHED, RUNNING, RunCancelled
from hepar.runtime.artifacts import sha256_json
from hepar.runtime.notification import SUCCEEDED
from pipelines.compiled import SECTIONS, CompiledPipeline
from pipelines.kfp_server import KfpServer
from pipelines.steps import say

CANCELED = "CANCELED"  # by a person
ENDED_BADLY = ("FAILED", CANCELED, "SKIPPED")
KEY_CHARACTERS = 16
MAX_RUN_NAME, MAX_EXPERIMENT_NAME = 255, 128  # characters that KFP's database holds
POLL_SECONDS = 15.0


class AlreadySubmitted(HeparError):
    """A run of the same state is running or has succeeded: `run`, as KFP knows it."""

    def __init__(self, message: str, run: Any) -> None:
        super().__init__(message)
        self.run = run


@dataclass(frozen=True)
class PlannedRun:
    """A run before it is started."""

    pipeline: CompiledPipeline
    name: str
    arguments: Mapping[str, Any]
    experiment: str


def plan_run(package: Path, overrides: Mapping[str, Any], name: str = "") -> PlannedRun:
    """The run of a compiled pipeline with overrides; `name` replaces the key.

    Raises ParamsError if an override is refused, a name is too long for KFP or an image is named by a tag, DataError if
    the source cannot be listed from here.
    """
    pipeline = CompiledPipeline.load(package)
    params, arguments = pipeline.arguments(overrides)
    for what, given, most in (("--name", name, MAX_RUN_NAME), ("experiment", params.experiment, MAX_EXPERIMENT_NAME)):
        if len(given) > most:
            raise ParamsError(f"{what} has {len(given)} characters, but KFP takes at most {most}: {given}")
    check_digests(pipeline.images)
    further = {key: value for key, value in arguments.items() if key not in SECTIONS}
    name = name or f"{pipeline.name}-{run_key(pipeline.images, params, further)}"
    return PlannedRun(pipeline, name, arguments, params.experiment)


def run_key(images: tuple[str, ...], params: PipelineParams, further: Mapping[str, Any]) -> str:
    """What a run is the run of: images, params and further inputs, listing of the source, reviews, champion."""
    with mlflow_errors():
        champion = find_champion(params.register_model.model_name)
    identity = training_identity(params, champion, reviews_hash(params.assemble_pool.reviews))
    return sha256_json([images, identity, dict(further), list_source(params.source)])[:KEY_CHARACTERS]


def submit(server: KfpServer, planned: PlannedRun, service_account: str = "") -> Any:
    """Start a run.

    Raises AlreadySubmitted if one of its name is running or has succeeded, StorageError if KFP fails.
    """
    if (found := _live(server, planned.name)) is not None:
        raise _already(server, found)
    experiment = server.experiment(planned.experiment)
    pipeline_id, version_id = server.version(planned.pipeline)

    def make(client: Any) -> Any:
        return client.run_pipeline(
            experiment,
            planned.name,
            params=dict(planned.arguments),
            pipeline_id=pipeline_id,
            version_id=version_id,
            service_account=service_account or None,
        )

    made = server.create_run(make, lambda: _live(server, planned.name), planned.name)
    first = _live(server, planned.name)
    if first is not None and first.run_id != made.run_id:  # another submission at the same time
        server.terminate(made.run_id)
        raise _already(server, first)
    return made


def follow(server: KfpServer, run_id: str) -> str:
    """Wait for the end of a run, saying each new state; returns the last one."""
    state = ""
    while True:
        run = server.run(run_id)
        if run.state != state:
            state = str(run.state)
            say(f"{run.display_name}: {state}{_failures(run)}")
        if state == SUCCEEDED or state in ENDED_BADLY:
            return state
        time.sleep(POLL_SECONDS)


def submit_run(request: RunRequest) -> bool:
    """What `hepar submit` does; returns False if the run was waited for and did not succeed."""
    planned = plan_run(request.package, request.overrides, request.name)
    if request.dry_run:
        print(f"run: {planned.name}\narguments: {', '.join(sorted(planned.arguments)) or 'as compiled'}")
        return True
    server = KfpServer(request.endpoint, request.namespace)
    try:
        run_id = submit(server, planned, request.service_account).run_id
    except AlreadySubmitted as known:
        if not request.wait:
            raise
        say(str(known))
        run_id = known.run.run_id
    print(f"run: {planned.name}\nlink: {server.link(run_id)}", flush=True)
    return not request.wait or follow(server, run_id) == SUCCEEDED


def run_on_cluster(params: Params, workdir: Path, image: str) -> str:
    """A runner of the whole pipeline: submit `build/two_stage.yaml` with these params to KFP, and wait for its end.

    Returns the id of the run. `workdir` stays empty and `image` is not used: the compiled file names its images. Raises
    RunCancelled if a person cancels the run, HeparError if it does not succeed.
    """
    server, run = _begun(params)
    if (state := follow(server, run.run_id)) != SUCCEEDED:
        problem = f"run {run.display_name} ended with {state}: {server.link(run.run_id)}"
        raise RunCancelled(problem) if state == CANCELED else HeparError(problem)
    return str(run.run_id)


def submit_to_cluster(params: Params, workdir: Path, image: str) -> str:
    """A runner that submits as `run_on_cluster` does, and returns the id of the run without waiting for it."""
    return str(_begun(params)[1].run_id)


def outcome_on_cluster(run_id: str) -> str:
    """How a run that a runner above has begun stands: RUNNING, FINISHED, CANCELLED or FAILED, also if it is deleted."""
    run = KfpServer("", os.environ.get(NAMESPACE_VARIABLE, "")).find_run(run_id)
    if run is None:
        return FAILED
    ended = {**dict.fromkeys(ENDED_BADLY, FAILED), CANCELED: CANCELLED, SUCCEEDED: FINISHED}
    return ended.get(str(run.state), RUNNING)


def _begun(params: Params) -> tuple[KfpServer, Any]:
    """The run of `build/two_stage.yaml` with these params, begun by this process or by one that has died since."""
    overrides = {key: value for key, value in dump_params(params).items() if key in SECTIONS}
    planned = plan_run(Path(PIPELINE_FILE), overrides)
    server = KfpServer("", os.environ.get(NAMESPACE_VARIABLE, ""))
    try:
        run = submit(server, planned, os.environ.get(ACCOUNT_VARIABLE, ""))
    except AlreadySubmitted as known:
        say(str(known))
        run = known.run
    say(f"{planned.name}: {server.link(run.run_id)}")
    return server, run


def _live(server: KfpServer, name: str) -> Any | None:
    """The oldest run of a name that has not ended badly."""
    return next((run for run in server.runs_named(name) if run.state not in ENDED_BADLY), None)


def _already(server: KfpServer, run: Any) -> AlreadySubmitted:
    how = "has succeeded" if run.state == SUCCEEDED else f"is {str(run.state or 'PENDING').lower()}"
    link = server.link(run.run_id)
    return AlreadySubmitted(f"run {run.display_name} {how}, and is not started again: {link}", run)


def _failures(run: Any) -> str:
    """The tasks of a run that failed, and what KFP says of them."""
    tasks = (run.run_details.task_details if run.run_details else None) or ()
    failed = sorted({str(task.display_name) for task in tasks if task.state == "FAILED"})
    said = run.error.message if run.error else ""
    return "".join(f" ({part})" for part in (", ".join(failed), said) if part)

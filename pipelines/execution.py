"""The pipeline in this process by one of KFP's local runners: `python -m pipelines.execution`.

`pipelines.local` starts it as a child process. The request, a JSON object on standard input, which no other user can
read, holds params (the sections, as KFP takes them), runner, root (KFP's folder, in the working directory),
environment (variables of the stages) and lifeline (see `run_lock`). What the stages print appears without secrets.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hepar.ingest.sources import PHANTOMS, is_remote, pseudonyms
from hepar.runtime.device import available_cores
from hepar.runtime.environment import IMAGE_VARIABLE, STORE_VARIABLE
from hepar.runtime.execution import STAGE_IMAGE_VARIABLE
from hepar.runtime.redaction import redact
from pipelines.run_lock import end_with_parent

# prefixes of what steps need to reach a store, MLflow or whoever takes the news
STORE_VARIABLES = ("AWS_", "HEPAR_DICOMWEB_", "HEPAR_CACHE_", "HEPAR_NOTIFY_", "MLFLOW_TRACKING_")
PACKAGE = "two_stage.yaml"  # the compiled pipeline, in KFP's folder
ONE_MACHINE_VARIABLE = "HEPAR_ONE_MACHINE"  # set where a pipeline runs on this machine, where a tag names one image
PARAMS_VARIABLE = "HEPAR_PARAMS"  # the params file whose values `pipelines.two_stage` takes as defaults


def is_local(source: str) -> bool:
    """Whether a source, or another place that a stage reads, is a path on this machine."""
    return source not in ("", PHANTOMS) and not is_remote(source)


class RedactedOutput(io.TextIOWrapper):
    """A text stream that leaves out secrets, line by line."""

    def write(self, text: str) -> int:
        return super().write(redact(text))


def execute(request: Mapping[str, Any]) -> None:
    """Run the pipeline; raises an error of KFP if a stage fails."""
    from kfp import compiler, components, local

    from pipelines.two_stage import two_stage

    runner: Any = _docker_runner(request) if request["runner"] == "docker" else local.SubprocessRunner(use_venv=False)
    local.init(runner=runner, pipeline_root=request["root"], raise_on_error=True)
    package = str(Path(request["root"]) / PACKAGE)
    compiler.Compiler().compile(two_stage, package)
    pipeline = components.load_component_from_file(package)  # as a cluster gets it, but for retries and folds
    inputs = pipeline.component_spec.inputs
    pipeline(**{name: value for name, value in request["params"].items() if name in inputs})


def _docker_runner(request: Mapping[str, Any]) -> Any:
    """Containers with the caller's user id, on the host's network, that see the working directory and the source."""
    import docker
    from docker.types import Mount
    from kfp import local

    params = request["params"]
    folders = {str(Path(request["root"]).parent): False}  # whether it is read-only
    environment = {name: value for name, value in os.environ.items() if name.startswith(STORE_VARIABLES)}
    environment |= dict(request["environment"])
    environment[STAGE_IMAGE_VARIABLE] = image_with_digest(environment[IMAGE_VARIABLE], docker.from_env)
    remote = environment.get(STORE_VARIABLE, "")
    if remote and "://" not in remote:
        Path(remote).mkdir(parents=True, exist_ok=True)
        folders[remote] = False
    for place in (params["source"], params["ingest"]["split_from"], params["assemble_pool"]["reviews"]):
        if is_local(place):
            folders[place if Path(place).is_dir() else str(Path(place).parent)] = True
    if params["source"] != PHANTOMS:  # one key for all containers, which cannot keep one
        environment[pseudonyms.VARIABLE] = pseudonyms.patient_key().decode()
    mounts = [Mount(target=path, source=path, type="bind", read_only=fixed) for path, fixed in folders.items()]
    return local.DockerRunner(
        mounts=mounts,
        environment=environment,
        network_mode="host",
        user=f"{os.getuid()}:{os.getgid()}",
        nano_cpus=available_cores() * 10**9,
    )


def image_with_digest(name: str, connect: Callable[[], Any]) -> str:
    """An image by the digest that its registry knows it by, or its name with the id that it has on this machine.

    `connect` makes a Docker client. The name alone if that cannot tell, as before the first pull.
    """
    from docker.errors import DockerException

    try:
        found = connect().images.get(name)
    except DockerException:
        return name
    known: list[str] = found.attrs.get("RepoDigests") or []
    return known[0] if known else f"{name} ({found.id})"


if __name__ == "__main__":
    sys.stdout, sys.stderr = (
        RedactedOutput(stream.buffer, encoding="utf-8", errors="replace", line_buffering=True)
        for stream in (sys.stdout, sys.stderr)
    )
    given = json.load(sys.stdin)
    end_with_parent(given["lifeline"])
    execute(given)

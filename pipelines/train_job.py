"""Stage 2 on several machines: `train-universal` as a TrainJob of Kubeflow Trainer 2.

Its pods share a volume that holds a working directory of `hepar run`: pool, teachers and params are read from it,
checkpoints and the model written to it. Trainer gives each pod the PET_ variables by which `torchrun` finds the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from components.images import check_digests, image_of
from hepar.cli.cluster import TrainJobRequest
from hepar.cli.options import POOL, TEACHER_CT, TEACHER_MR, UNIVERSAL
from hepar.errors import ParamsError
from hepar.params import Params, StepResources, load_params
from hepar.runtime.unfinished import CHECKPOINTS_VARIABLE
from hepar.runtime.whole_files import write_text
from pipelines.pod_settings import KEYS, SECRETS_OF, SETTINGS, SHARED_MEMORY, mebibytes, training_processes
from pipelines.results import PARAMS_FILE

STEP = "train-universal"
API, MANAGER = "trainer.kubeflow.org", "hepar.io/trainjob"
NODE = "node"  # how Trainer's runtimes call the replicated job of the training, and its container
WORK = Path("/work")  # where pods have the shared volume
USER = 10001  # of the images


def write_train_job(request: TrainJobRequest) -> None:
    """What `hepar trainjob` does. Raises ParamsError for what `train_job` refuses."""
    text = yaml.safe_dump(train_job(load_params(request.params), request, image_of(STEP)), sort_keys=False)
    if request.out is None:
        print(text, end="")
    else:
        request.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(request.out, text)


def train_job(params: Params, request: TrainJobRequest, image: str) -> dict[str, Any]:
    """The manifest. Raises ParamsError if the processes cannot share a batch, or for an image without a digest."""
    check_digests([image])
    resources, training = params.cluster.steps.of(STEP), params.train_universal.training
    processes = training_processes(training, resources)
    if training.batch_size % (request.nodes * processes):
        raise ParamsError(
            f"train_universal.training.batch_size is {training.batch_size} but must be divisible by"
            f" {request.nodes * processes}: {request.nodes} nodes with {processes} processes each"
        )
    return {
        "apiVersion": f"{API}/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": request.name, "namespace": request.namespace},
        "spec": {
            "activeDeadlineSeconds": round(resources.timeout_hours * 3600),
            "runtimeRef": {"apiGroup": API, "kind": "ClusterTrainingRuntime", "name": request.runtime},
            "trainer": {
                "image": image,
                "command": _command(),
                "env": _environment(params),
                "numNodes": request.nodes,
                "numProcPerNode": processes,
                "resourcesPerNode": _resources(resources),
            },
            "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patch(resources, request)}],
        },
    }


def _command() -> list[str]:
    """`torchrun`, which takes the number of nodes, the rank and the address of the first from PET_ variables."""
    options = {"--pool": POOL, "--teacher-ct": TEACHER_CT, "--teacher-mr": TEACHER_MR, "--model": UNIVERSAL}
    options["--params"] = Path(PARAMS_FILE)
    given = [word for option, place in options.items() for word in (option, str(WORK / place))]
    return ["torchrun", "--no-python", "hepar", STEP, *given]


def _environment(params: Params) -> list[dict[str, Any]]:
    """Addresses from the ConfigMap, credentials from the Secrets, as for the step of the pipeline."""
    found: list[dict[str, Any]] = [{"name": CHECKPOINTS_VARIABLE, "value": str(WORK / "checkpoints")}]

    def add(name: str, kind: str, place: str, key: str) -> None:
        found.append({"name": name, "valueFrom": {kind: {"name": place, "key": key, "optional": True}}})

    if params.cluster.settings:
        for name in SETTINGS:
            add(name, "configMapKeyRef", params.cluster.settings, name)
    for secret in SECRETS_OF[STEP]:
        if place := getattr(params.cluster.secrets, secret):
            for key, name in KEYS[secret].items():
                add(name, "secretKeyRef", place, key)
    return found


def _resources(resources: StepResources) -> dict[str, Any]:
    asked = {"cpu": f"{round(resources.cpu * 1000)}m", "memory": mebibytes(resources.memory_gib)}
    if resources.gpus:
        asked[resources.gpu_type] = str(resources.gpus)
    return {"requests": dict(asked), "limits": dict(asked)}


def _patch(resources: StepResources, request: TrainJobRequest) -> dict[str, Any]:
    """What is added to the runtime's pods: volumes, where they run, and that they run as a user."""
    shared_memory = {"medium": "Memory", "sizeLimit": mebibytes(resources.shared_memory_gib)}
    container = {
        "name": NODE,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "work", "mountPath": str(WORK)},
            {"name": "shared-memory", "mountPath": SHARED_MEMORY},
        ],
    }
    pod: dict[str, Any] = {
        "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER},
        "volumes": [
            {"name": "work", "persistentVolumeClaim": {"claimName": request.claim}},
            {"name": "shared-memory", "emptyDir": shared_memory},
        ],
    }
    if request.service_account:
        pod["serviceAccountName"] = request.service_account
    if resources.node_selector:
        pod["nodeSelector"] = dict(resources.node_selector)
    if resources.tolerations:
        taints = [taint.model_dump() for taint in resources.tolerations]
        pod["tolerations"] = [{key: value for key, value in taint.items() if value} for taint in taints]
    job = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}

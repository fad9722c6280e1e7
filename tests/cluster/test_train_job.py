"""`hepar trainjob`: Trainer's own model gives the manifest back, and its variables lead to one process's losses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import services
import typer
from commands import fork
from conftest import ROOT, environment
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from train_toys import train_toys, variables

from hepar.cli.cluster import TrainJobRequest
from hepar.cli.main import app
from hepar.errors import ParamsError
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params, load_params, override_params
from pipelines.train_job import train_job

IMAGE = f"registry.example.org/hepar@sha256:{'a' * 64}"
REQUEST = TrainJobRequest(Path("params.yaml"), 2, "work", "train", "hepar-runs", "torch-distributed", "hepar-run", None)
GPU = {
    "cluster.steps.train_universal.gpus": 1,
    "cluster.steps.train_universal.gpu_type": "nvidia.com/gpu",
    "cluster.steps.train_universal.node_selector": {"hepar-pool": "gpu"},
    "cluster.steps.train_universal.tolerations": [
        {"key": "nvidia.com/gpu", "operator": "Exists", "value": "", "effect": "NoSchedule"}
    ],
    "train_universal.training.batch_size": 4,
}


@pytest.fixture(scope="module")
def params() -> Params:
    return override_params(load_params(ROOT / "params.yaml"), GPU, "test")


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    return pod


def round_trip(job: dict[str, Any]) -> Any:
    parsed = TrainerV1alpha1TrainJob.from_dict(job)
    assert parsed is not None
    return parsed.to_dict()


def test_trainers_own_model_gives_the_manifest_back(params: Params) -> None:
    """It drops keys that it does not know, so a key in a wrong place does not come back."""
    job = train_job(params, REQUEST, IMAGE)
    assert round_trip(job) == job
    pod_of(job)["nodeSelectors"] = {"hepar-pool": "gpu"}
    assert round_trip(job) != job


def test_a_train_job_asks_for_what_the_step_of_the_pipeline_asks_for(params: Params) -> None:
    job = train_job(params, REQUEST, IMAGE)
    trainer, pod = job["spec"]["trainer"], pod_of(job)
    assert trainer["numNodes"] == 2
    assert trainer["numProcPerNode"] == 1
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "1"
    assert trainer["resourcesPerNode"]["limits"] == trainer["resourcesPerNode"]["requests"]
    assert pod["nodeSelector"] == {"hepar-pool": "gpu"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["securityContext"]["runAsNonRoot"]
    assert {volume["name"] for volume in pod["volumes"]} == {
        mount["name"] for mount in pod["containers"][0]["volumeMounts"]
    }
    secrets = {entry["valueFrom"]["secretKeyRef"]["name"] for entry in trainer["env"] if "secretKeyRef" in str(entry)}
    assert secrets == {params.cluster.secrets.s3, params.cluster.secrets.mlflow} - {""}
    without = override_params(params, {"cluster.steps.train_universal.gpus": 0}, "test")
    cpu = train_job(without, REQUEST, IMAGE)["spec"]["trainer"]["resourcesPerNode"]
    assert set(cpu["limits"]) == {"cpu", "memory"}


@pytest.mark.parametrize(("processes", "gpus", "expected"), [(0, 2, 2), (1, 2, 1), (2, 0, 2), (0, 0, 1)])
def test_the_processes_of_the_params_go_before_one_per_gpu(
    params: Params, processes: int, gpus: int, expected: int
) -> None:
    changes = {"train_universal.training.processes": processes, "cluster.steps.train_universal.gpus": gpus}
    trainer = train_job(override_params(params, changes, "test"), REQUEST, IMAGE)["spec"]["trainer"]
    assert trainer["numProcPerNode"] == expected


def test_the_command_is_one_of_hepar(params: Params) -> None:
    *launcher, program, command = train_job(params, REQUEST, IMAGE)["spec"]["trainer"]["command"][:4]
    words = train_job(params, REQUEST, IMAGE)["spec"]["trainer"]["command"][4:]
    assert (launcher, program) == (["torchrun", "--no-python"], "hepar")
    group = typer.main.get_command(app)
    parsed = group.commands[command].make_context(command, list(words))  # type: ignore[attr-defined]
    assert {str(place).split("/")[1] for place in parsed.params.values()} == {"work"}


def test_what_cannot_run_is_refused(params: Params) -> None:
    with pytest.raises(ParamsError, match=r"batch_size is 4 but must be divisible by 3: 3 nodes with 1 processes each"):
        train_job(params, replace(REQUEST, nodes=3), IMAGE)
    with pytest.raises(ParamsError, match=r"named by a tag, .* HEPAR_IMAGES=build/images.json, or HEPAR_IMAGE="):
        train_job(params, REQUEST, "hepar:latest")


def start_node(folder: Path, launcher: list[str], more: dict[str, str]) -> subprocess.Popen[str]:
    """A training of toys in a process, which has its variables as a pod has them."""
    words = [*launcher, sys.executable, str(ROOT / "tests" / "train_toys.py"), str(folder), "0", "{}"]
    own = environment(PYTHONPATH=str(ROOT / "tests"), **variables(folder), **more)
    return subprocess.Popen(words, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(folder: Path) -> Any:
    history = ModelFolder(folder / "model").load_history()
    return history[history.metric == "loss"].value.to_numpy()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_with_trainers_variables_have_the_losses_of_one_process(
    params: Params, tmp_path: Path, empty_database: Path
) -> None:
    """Two processes on loopback in place of two machines; both see one folder, as pods see the volume."""
    launcher = train_job(params, REQUEST, IMAGE)["spec"]["trainer"]["command"][:2]
    (port,) = services.free_ports(1)
    single, shared = tmp_path / "single", tmp_path / "shared"
    for folder in (single, shared):
        folder.mkdir()
        shutil.copy(empty_database, folder / "mlflow.db")
    pet = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    nodes = [start_node(shared, launcher, {**pet, "PET_NODE_RANK": str(rank)}) for rank in (0, 1)]
    alone = fork(train_toys, single, 1, {}, folder=single, **variables(single)).end()
    assert alone.code == 0, alone.stderr
    for node in nodes:
        _, stderr = node.communicate(timeout=900)
        assert node.returncode == 0, stderr
    one, two = losses(single), losses(shared)
    assert len(one) == 6
    assert np.abs(one - two).max() < 1e-5

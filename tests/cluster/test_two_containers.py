"""A TrainJob's two nodes as two containers of the image, under the command and the variables that Trainer gives them.

Both share the host's network and one folder, which stand in for a cluster's network and its volume. The image must have
been built (`make images`), so only `.ci/run`, which does that, sets HEPAR_ENGINE; else this is skipped.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import services
from conftest import ROOT

from hepar.cli.cluster import TrainJobRequest
from hepar.inference.model_folder import ModelFolder
from hepar.params import load_params
from pipelines.train_job import train_job

HAS_ENGINE = bool(os.environ.get("HEPAR_ENGINE"))  # read here, because tests run without variables of hepar
BUILT = "hepar:latest"
BY_DIGEST = f"registry.example.org/hepar@sha256:{'a' * 64}"
GIVEN = ("tests", "params", "params.yaml")  # what the training of toys reads

pytestmark = [
    pytest.mark.skipif(not HAS_ENGINE, reason="HEPAR_ENGINE is not set: no Docker Engine with the images"),
    pytest.mark.timeout(2400),
]


def start_container(folder: Path, launcher: list[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """A training of toys in a container that sees `folder` as /work."""
    environment = {
        "HOME": "/tmp",
        "USER": "hepar",
        "PYTHONPATH": "/given/tests",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": "sqlite:////work/mlflow.db",
        "HEPAR_CHECKPOINTS": "/work/checkpoints",
        **variables,
    }
    words = ["docker", "run", "--rm", "--network", "host", "--user", f"{os.getuid()}:{os.getgid()}"]
    words += [f"--volume={folder}:/work", *(f"--volume={ROOT / name}:/given/{name}:ro" for name in GIVEN)]
    words += [f"--env={name}={value}" for name, value in environment.items()]
    training = ["python", "/given/tests/train_toys.py", "/work", "0" if launcher else "1", "{}"]
    return subprocess.Popen([*words, BUILT, *launcher, *training], stderr=subprocess.PIPE, text=True)


def losses(folder: Path, containers: list[subprocess.Popen[str]]) -> Any:
    for container in containers:
        _, stderr = container.communicate(timeout=1200)
        assert container.returncode == 0, stderr
    history = ModelFolder(folder / "model").load_history()
    return history[history.metric == "loss"].value.to_numpy()


def test_two_containers_with_trainers_variables_have_the_losses_of_one_process(tmp_path: Path) -> None:
    asked = TrainJobRequest(ROOT / "params.yaml", 2, "work", "train", "runs", "torch-distributed", "hepar-run", None)
    command = train_job(load_params(ROOT / "params.yaml"), asked, BY_DIGEST)["spec"]["trainer"]["command"]
    (port,) = services.free_ports(1)
    single, shared = tmp_path / "single", tmp_path / "shared"
    for folder in (single, shared):
        folder.mkdir()
    pet = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    nodes = [start_container(shared, command[:2], {**pet, "PET_NODE_RANK": str(rank)}) for rank in (0, 1)]
    two = losses(shared, nodes)
    one = losses(single, [start_container(single, [], {})])
    assert len(one) == 6
    assert np.abs(one - two).max() < 1e-5

"""Both images pushed to a registry, pulled by digest, and run as a user with a read-only root file system.

They must have been built (`make images`), so only `.ci/run`, which does that, sets HEPAR_ENGINE; else this is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import services
from conftest import ROOT

from components.images import COMPUTE, DATA, is_by_digest, read_images

HAS_ENGINE = bool(os.environ.get("HEPAR_ENGINE"))  # read here, because tests run without variables of hepar
BUILT = {DATA: "hepar-data:latest", COMPUTE: "hepar:latest"}
LABEL = "org.opencontainers.image."

pytestmark = [
    pytest.mark.skipif(not HAS_ENGINE, reason="HEPAR_ENGINE is not set: no Docker Engine with the images"),
    pytest.mark.timeout(1800),
]


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The images by target: pushed, forgotten under these names, and pulled by their digests."""
    folder = tmp_path_factory.mktemp("registry")
    with services.oci_registry(folder / "images") as registry:
        repository, file = f"{registry}/hepar", folder / "images.json"
        command = [sys.executable, str(ROOT / "containers" / "push_images.py"), "--to", repository, "--out", str(file)]
        subprocess.run([*command, *(f"{target}={image}" for target, image in BUILT.items())], check=True)
        images = read_images(file)
        for target, image in images.items():
            tagged = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository).split()
            docker("image", "rm", *(name for name in tagged if f":{target}-" in name))
            assert subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode != 0
            docker("pull", image)
        yield images
        docker("image", "rm", *images.values())


def run(image: str, *command: str, folder: Path | None = None) -> str:
    """What a command prints in a container of the image."""
    mounts = ["--volume", f"{folder}:/given:ro"] if folder else []
    confined = ["--read-only", "--tmpfs", "/tmp", "--user", "10001:10001", "--cap-drop", "ALL"]
    return docker("run", "--rm", "--network", "host", *confined, *mounts, image, *command)


@pytest.mark.parametrize("target", BUILT)
def test_an_image_says_what_it_is_and_which_commit(pulled: dict[str, str], target: str) -> None:
    assert is_by_digest(pulled[target])
    (found,) = json.loads(docker("image", "inspect", pulled[target]))
    labels = found["Config"]["Labels"]
    commit = labels[f"{LABEL}revision"]
    assert f"HEPAR_GIT_COMMIT={commit}" in found["Config"]["Env"]
    assert len(commit.removesuffix("-dirty")) == 40
    assert labels[f"{LABEL}title"] == f"hepar {target}"
    assert labels[f"{LABEL}licenses"] == "Apache-2.0"
    assert run(pulled[target], "hepar", "--version").startswith("hepar ")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that containers see as /given: the tiny preset, and the script that hides torch."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("params.yaml", "params/tiny.yaml", "tests/without_torch.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text())
    for path in (folder, *folder.parents[:2]):  # pytest's own folders are closed to others
        path.chmod(0o755)
    return folder


def test_the_image_data_ingests_and_builds_a_pool_without_torch(pulled: dict[str, str], given: Path) -> None:
    script = ("python", "/given/tests/without_torch.py", "/given/params/tiny.yaml", "/tmp")
    assert "8 cases, 6 in the pool" in run(pulled[DATA], *script, folder=given)
    find = "from importlib.util import find_spec; print(find_spec('torch'))"
    assert run(pulled[DATA], "python", "-c", find).strip() == "None"


def test_the_image_compute_trains(pulled: dict[str, str], given: Path) -> None:
    params = "--params /given/params/tiny.yaml"
    stages = f"hepar ingest {params} && hepar train-liver --modality CT {params} && cat models/liver-ct/manifest.json"
    shell = f"export MLFLOW_TRACKING_URI=sqlite:////tmp/mlflow.db HOME=/tmp; cd /tmp; {stages}"
    assert "weights.pt" in run(pulled[COMPUTE], "sh", "-c", shell, folder=given)

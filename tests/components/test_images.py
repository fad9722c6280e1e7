"""Which image runs a step, that a cluster gets it by digest, and that the steps of `data` need no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from components.images import COMPUTE, DATA, DATA_STEPS, IMAGES_VARIABLE, check_digests, image_of, read_images
from hepar.errors import ParamsError
from hepar.runtime.environment import DEFAULT_IMAGE, IMAGE_VARIABLE

DIGESTS = {
    target: f"registry.example.org:5000/hepar@sha256:{letter * 64}" for target, letter in ((DATA, "a"), (COMPUTE, "b"))
}


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that pushing writes, in the environment."""
    (tmp_path / "images.json").write_text(json.dumps(DIGESTS))
    monkeypatch.setenv(IMAGES_VARIABLE, str(tmp_path / "images.json"))
    monkeypatch.delenv(IMAGE_VARIABLE, raising=False)
    return tmp_path / "images.json"


def test_the_steps_without_torch_have_an_image_of_their_own(pushed: Path) -> None:
    assert {step: image_of(step) for step in DATA_STEPS} == dict.fromkeys(DATA_STEPS, DIGESTS[DATA])
    assert image_of("assemble_pool") == DIGESTS[DATA]  # as its component is called
    assert image_of("train-universal") == DIGESTS[COMPUTE]


def test_an_image_for_all_steps_comes_first(pushed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGE_VARIABLE, "own")
    assert image_of("ingest") == image_of("evaluate") == "own"
    monkeypatch.delenv(IMAGE_VARIABLE)
    monkeypatch.setenv(IMAGES_VARIABLE, "")
    assert image_of("ingest") == DEFAULT_IMAGE


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[", "cannot be read"),
        ("[]", "data is None, but must be"),
        (json.dumps({**DIGESTS, COMPUTE: "hepar:latest"}), "compute is 'hepar:latest', but must be"),
        (json.dumps({**DIGESTS, DATA: f"{DIGESTS[DATA]}0"}), "data is "),
    ],
)
def test_a_file_that_names_an_image_by_tag_is_refused(pushed: Path, text: str, complaint: str) -> None:
    pushed.write_text(text)
    with pytest.raises(ParamsError, match=complaint):
        read_images(pushed)


def test_a_mere_tag_is_refused_for_a_cluster() -> None:
    check_digests(DIGESTS.values())
    with pytest.raises(ParamsError, match=r"^image hepar:1 is named by a tag, but a cluster needs a digest"):
        check_digests([DIGESTS[DATA], "hepar:1"])


def test_ingest_and_pool_building_need_no_torch(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "without_torch.py"), str(TINY), str(tmp_path)]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "8 cases, 6 in the pool"

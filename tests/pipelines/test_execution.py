"""What a stage in a container knows about where it runs: its image by digest, and the KFP run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest

from hepar.runtime.execution import KFP_RUN_VARIABLE, STAGE_IMAGE_VARIABLE, execution_facts
from pipelines.execution import image_with_digest

IMAGE = "registry.example.org/hepar@sha256:ab"


def client(**image: Any) -> SimpleNamespace:
    """A Docker client whose only image is hepar:latest."""

    def get(name: str) -> SimpleNamespace:
        if name != "hepar:latest":
            raise docker.errors.ImageNotFound(f"no {name}")
        return SimpleNamespace(**image)

    return SimpleNamespace(images=SimpleNamespace(get=get))


def test_a_local_image_is_named_by_the_digest_of_its_registry_or_by_its_id() -> None:
    pulled = client(id="sha256:12", attrs={"RepoDigests": [IMAGE]})
    assert image_with_digest("hepar:latest", lambda: pulled) == IMAGE
    built = client(id="sha256:12", attrs={"RepoDigests": []})
    assert image_with_digest("hepar:latest", lambda: built) == "hepar:latest (sha256:12)"
    assert image_with_digest("other:1", lambda: built) == "other:1"


def test_without_docker_the_image_keeps_its_name() -> None:
    def refuse() -> None:
        raise docker.errors.DockerException("no daemon")

    assert image_with_digest("hepar:latest", refuse) == "hepar:latest"


def test_only_known_facts_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert execution_facts() == {}
    monkeypatch.setenv(STAGE_IMAGE_VARIABLE, IMAGE)
    monkeypatch.setenv(KFP_RUN_VARIABLE, "run-7")
    assert execution_facts() == {"image": IMAGE, "kfp run": "run-7"}

"""The images: Dockerfiles that a linter accepts, labels, locked packages, a bill of materials; and a registry."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import services
from infra.deployment_files import INFRA, ROOT

from components.images import COMPUTE, DATA

DOCKERFILES = {"stages": ROOT / "containers" / "Dockerfile", "services": INFRA / "services" / "Dockerfile"}
LOCK = INFRA / "services" / "requirements.lock"
LABELS = {"title", "description", "licenses", "revision", "base.name"}


def hadolint(dockerfile: Path) -> str:
    done = subprocess.run([services.program("hadolint"), "--no-color", str(dockerfile)], capture_output=True, text=True)
    return done.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES.values(), ids=DOCKERFILES)
def test_the_linter_has_no_complaint(dockerfile: Path) -> None:
    assert hadolint(dockerfile) == ""


@pytest.mark.parametrize("dockerfile", DOCKERFILES.values(), ids=DOCKERFILES)
def test_an_ignored_complaint_has_its_reason_above_it(dockerfile: Path) -> None:
    lines = dockerfile.read_text().splitlines()
    for number, line in enumerate(lines):
        if "hadolint ignore" in line:
            assert lines[number - 1].startswith("# ")
            assert "hadolint" not in lines[number - 1]


@pytest.mark.parametrize(
    ("line", "rule"), [("USER root", "DL3002"), ("RUN pip install boto3", "DL3042"), ("RUN cd /tmp", "DL3003")]
)
def test_the_linter_complains(tmp_path: Path, line: str, rule: str) -> None:
    spoiled = tmp_path / "Dockerfile"
    spoiled.write_text(f"{DOCKERFILES['services'].read_text()}\n{line}\n")
    assert rule in hadolint(spoiled)


@pytest.mark.parametrize("dockerfile", DOCKERFILES.values(), ids=DOCKERFILES)
def test_an_image_says_what_it_is_and_runs_as_a_user(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    assert set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", text)) == LABELS
    for target in targets(text):  # what comes after USER runs and installs nothing
        assert re.findall(r"^(?:USER|RUN|COPY) .*", target, re.MULTILINE)[-1] == "USER 10001:10001"
        assert "org.opencontainers.image.revision=" in target
    made = re.findall(r"--build-arg (\w+)=", (ROOT / "Makefile").read_text())
    assert set(re.findall(r"^ARG (\w+)", text, re.MULTILINE)) <= set(made)


def targets(dockerfile: str) -> list[str]:
    """The text of each stage that no other stage builds upon or copies from: the images."""
    stages = re.split(r"^(?=FROM )", dockerfile, flags=re.MULTILINE)[1:]
    used = set(re.findall(r"(?:^FROM |--from=)(\w+)", dockerfile, re.MULTILINE))
    return [text for text in stages if not set(re.findall(r"^FROM .* AS (\w+)", text)) & used]


def test_there_is_an_image_for_each_target_that_compiling_knows() -> None:
    names = [re.findall(r"^FROM .* AS (\w+)", text)[0] for text in targets(DOCKERFILES["stages"].read_text())]
    assert names == [DATA, COMPUTE]
    built = re.findall(r"--target (\w+)", (ROOT / "Makefile").read_text())
    assert built == names


def test_the_services_are_of_the_versions_that_are_tested() -> None:
    def pins(lock: Path) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock.read_text(), re.MULTILINE))

    locked, tested = pins(LOCK), pins(ROOT / "requirements-dev.lock")
    wanted = [line for line in LOCK.with_suffix(".in").read_text().splitlines() if not line.startswith("#")]
    assert set(wanted) <= locked.keys()
    assert {name: version for name, version in locked.items() if tested.get(name) != version} == {}
    entries = re.findall(r"^[a-z0-9._-]+==.*(?:\n    --hash=.*)*", LOCK.read_text(), re.MULTILINE)
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


FAKE_DOCKER = """#!/bin/sh
case "$1" in
  image) echo sha256:feed ;;
  run) printf 'libc6:amd64\\t2.36-9+deb12u9\\tamd64\\ntzdata\\t1:2024a\\tall\\n' ;;
esac
"""


@pytest.mark.parametrize("has_docker", [True, False])
def test_a_bill_of_materials_lists_python_and_debian_packages(tmp_path: Path, has_docker: bool) -> None:
    """Docker is played by a script: what is tested is what becomes of its answers."""
    path = [str(Path(sys.executable).parent)]
    if has_docker:
        (tmp_path / "docker").write_text(FAKE_DOCKER)
        (tmp_path / "docker").chmod(0o755)
        path += [str(tmp_path), "/usr/bin", "/bin"]
    lock = tmp_path / "some.lock"
    lock.write_text(f"einops==0.8.0 \\\n    --hash=sha256:{'a' * 64}\n")
    command = [
        sys.executable,
        str(ROOT / ".ci" / "sbom.py"),
        "--image",
        "hepar:latest",
        "--out",
        str(tmp_path / "sbom"),
    ]
    done = subprocess.run([*command, str(lock)], env={"PATH": os.pathsep.join(path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "sbom").read_text())
    found = {part["purl"] for part in document["components"]}
    debian = {"pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64", "pkg:deb/debian/tzdata@1%3A2024a?arch=all"}
    assert found == {"pkg:pypi/einops@0.8.0"} | (debian if has_docker else set())
    (einops,) = [part for part in document["components"] if part["name"] == "einops"]
    assert f'"{"a" * 64}"' in json.dumps(einops)
    assert ("its Debian packages are not listed" in done.stderr) != has_docker
    (note,) = [one["value"] for one in document["metadata"]["properties"] if one["name"] == "hepar:debian-packages"]
    assert note.startswith("listed by dpkg-query" if has_docker else "not listed")
    assert is_valid((tmp_path / "sbom").read_text())


def is_valid(document: str) -> bool:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None


def test_a_registry_gives_back_an_image_by_its_digest(tmp_path: Path) -> None:
    """The registry of Debian, asked as Docker asks it, with an image of one empty layer."""
    with services.oci_registry(tmp_path / "images") as registry:
        url = f"http://{registry}/v2/hepar"
        layer = b"{}"
        digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
        place = requests.post(f"{url}/blobs/uploads/", timeout=30).headers["Location"]
        sent = requests.put(place, params={"digest": digest}, data=layer, timeout=30)
        assert sent.status_code == 201
        kind = "application/vnd.oci.image.manifest.v1+json"
        part = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(layer)}
        manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": part, "layers": []})
        pushed = requests.put(f"{url}/manifests/latest", data=manifest, headers={"Content-Type": kind}, timeout=30)
        named = f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"
        assert pushed.headers["Docker-Content-Digest"] == named
        pulled = requests.get(f"{url}/manifests/{named}", headers={"Accept": kind}, timeout=30)
        assert pulled.text == manifest
        assert requests.get(f"{url}/manifests/sha256:{'0' * 64}", timeout=30).status_code == 404

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
LOCKS = sorted(REPOSITORY.glob("requirements*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_hashes(lock):
    pins = re.findall(r"^[a-z0-9._-]+==.*(?:\n    --hash=.*)*", lock.read_text(), re.MULTILINE)
    assert pins
    assert [pin for pin in pins if "--hash=sha256:" not in pin] == []


def test_torch_is_locked_apart_with_the_versions_of_the_other_locks():
    pins = {lock.name: dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", lock.read_text(), re.MULTILINE)) for lock in LOCKS}
    assert "torch" not in pins["requirements.lock"] | pins["requirements-dev.lock"]
    both = {name: pins[name]["torch"] for name in ("requirements-torch.lock", "requirements-torch-cpu.lock")}
    assert both["requirements-torch-cpu.lock"] == both["requirements-torch.lock"] + "+cpu"
    shared = pins["requirements-dev.lock"]
    for name, packages in pins.items():
        differing = {package for package in packages.keys() & shared.keys() if packages[package] != shared[package]}
        assert differing == set(), name


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ("License-Expression: GPL-3.0-only", "GPL-3.0-only is not in the list"),
        ("License-Expression: MIT AND AGPL-3.0-or-later", "MIT AND AGPL-3.0-or-later is not in the list"),
        ("License: GPLv3\nClassifier: License :: OSI Approved :: MIT License", "GPLv3 is not in the list"),
        ("Classifier: License :: Other/Proprietary License", "Other/Proprietary License is not in the list"),
        ("License: Free for members of our club", "Free for members of our club is not in the list"),
        ("Summary: has no licence", "its metadata has no licence"),
        ("License-Expression: GPL-2.0-only OR Apache-2.0", ""),
        ("License-Expression: MPL-2.0 AND (GPL-2.0-only OR MIT)", ""),
        ("License: Copyright by us\nClassifier: License :: OSI Approved :: BSD License", ""),
    ],
)
def test_only_listed_licences_pass(tmp_path, metadata, complaint):
    info = tmp_path / "planted-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: planted\nVersion: 1.0\n{metadata}\n")
    said = _licences(tmp_path, "planted==1.0 \\\n    --hash=sha256:00\n")
    if complaint:
        assert f"planted: licence {complaint}" in said or f"planted: {complaint}" in said
    else:
        assert "planted: " not in said


def test_a_locked_package_without_known_licence_fails(tmp_path):
    assert "nowhere: not installed, so its licence is unknown" in _licences(tmp_path, "nowhere==1.0\n")


def _licences(folder: Path, lock: str) -> str:
    (folder / "some.lock").write_text(lock)
    check = [sys.executable, str(REPOSITORY / ".ci" / "licences.py"), str(folder / "some.lock")]
    result = subprocess.run(check, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)
    assert result.stderr == ""
    assert result.returncode == 1  # if only for exceptions that no package of this lock needs
    return result.stdout


def test_workflows_pin_actions_and_may_only_read():
    for path in (REPOSITORY / ".github" / "workflows").glob("*.y*ml"):
        text = path.read_text()
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {"contents": "read"}
        used = re.findall(r"uses: (.*)", text)
        assert used
        assert [line for line in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []
        for job in workflow["jobs"].values():
            checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
            assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize("base", ["python:3.11-slim", "python@sha256:12", f"python@sha256:{'0' * 63}g"])
def test_an_image_to_release_needs_a_base_by_digest(base):
    release = ["make", "release-image", f"BASE_IMAGE={base}"]
    result = subprocess.run(release, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert f"BASE_IMAGE is {base}, must name a digest" in result.stderr

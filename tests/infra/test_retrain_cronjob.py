"""The CronJob that looks at the source: schema and command; `test_kubernetes.py` holds it to the rules."""

from __future__ import annotations

import subprocess
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from infra.deployment_files import INFRA, container, rendered

from hepar.cli.cluster import PIPELINE_FILE
from hepar.cli.main import app
from hepar.cli.retraining import NO, REFUSED
from hepar.cli.stages import OUTCOMES
from hepar.runtime.notification import FORMAT_VARIABLE, URL_VARIABLE


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(rendered(INFRA / "kubernetes" / "overlays" / "retrain")))


def test_they_fit_the_schema(manifests: list[dict[str, Any]]) -> None:
    assert {found["kind"] for found in manifests} >= {"CronJob", "PersistentVolumeClaim", "Role"}
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.37.0", strict=True)


@pytest.mark.parametrize(("ended", "expected"), [(0, 0), (NO, 0), (REFUSED, REFUSED), (2, 2), (75, 75)])
def test_the_look_at_the_source_succeeds_without_a_reason_to_train(
    manifests: list[dict[str, Any]], tmp_path: Path, ended: int, expected: int
) -> None:
    """The command of the CronJob, with a stand-in for `hepar` that writes down its words; they fit the command line."""
    found = container(manifests, "CronJob", "retrain")
    stand_in = tmp_path / "hepar"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\nexit {ended}\n')
    stand_in.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HEPAR_SOURCE": "s3://scans/all of them"}
    done = subprocess.run(found["command"], cwd=tmp_path, env=variables, capture_output=True)
    assert done.returncode == expected
    command, *words = (tmp_path / "words").read_text().splitlines()
    options = typer.main.get_command(app).commands[command].make_context(command, list(words)).params  # type: ignore[attr-defined]
    assert (options["source"], options["workdir"]) == ("s3://scans/all of them", Path(found["workingDir"]))
    mounted = {one["mountPath"] for one in found["volumeMounts"]}
    assert {found["workingDir"], str(Path(found["workingDir"]) / Path(PIPELINE_FILE).parent)} <= mounted
    assert options["runner"] in {entry.name for entry in entry_points(group=OUTCOMES)}


def test_a_refusal_fails_the_job_at_once_and_is_posted_if_there_is_an_address(manifests: list[dict[str, Any]]) -> None:
    (job,) = [one["spec"]["jobTemplate"]["spec"] for one in manifests if one["kind"] == "CronJob"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [REFUSED])
    found = container(manifests, "CronJob", "retrain")
    assert rule["onExitCodes"]["containerName"] == found["name"]
    given = {one["name"]: one.get("valueFrom", {}) for one in found["env"]}
    for name, kind in ((URL_VARIABLE, "secretKeyRef"), (FORMAT_VARIABLE, "configMapKeyRef")):
        assert given[name][kind]["optional"] is True

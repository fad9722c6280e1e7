"""infra/compose: what Docker Compose makes of it, and what holds for each service."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import services
import yaml
from cryptography.fernet import Fernet
from infra.deployment_files import COMPOSE, EXAMPLE, ComposeFile, example_variables

from hepar.service.access import TOKEN_VARIABLE
from hepar.service.limits import ServiceLimits

FILLED = {name: value or f"/srv/{name.lower()}" for name, value in example_variables().items()}
ON_DEMAND = {"buckets", "backup"}  # they end


@pytest.fixture(scope="module")
def compose() -> ComposeFile:
    return ComposeFile.load(FILLED)


def config(environment: Path) -> subprocess.CompletedProcess[str]:
    """What `docker-compose config` says of the file with these variables."""
    found = shutil.which("docker-compose") or services.missing("docker-compose")
    command = [found, "--file", str(COMPOSE), "--env-file", str(environment), "config"]
    return subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)


def test_docker_compose_reads_it_as_the_tests_do(compose: ComposeFile, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in FILLED.items()))
    done = config(tmp_path / "env")
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert read.keys() == compose.services.keys()
    for name, service in read.items():
        assert service["command"] == compose.command(name)
        assert service.get("environment", {}) == compose.environment(name)
        expected = compose.services[name].get("healthcheck", {}).get("test")
        assert service.get("healthcheck", {}).get("test") == expected


def test_nothing_starts_from_the_example_alone() -> None:
    done = config(EXAMPLE)
    assert done.returncode != 0
    assert re.search(r"set (POSTGRES_PASSWORD|S3_SECRET_KEY|S3_ACCESS_KEY), see .env.example", done.stderr)


def test_whatever_is_empty_in_the_example_must_be_set() -> None:
    uses = re.findall(r"\$\{(\w+)(:-|:\?)", COMPOSE.read_text())
    assert {name for name, _ in uses} == set(example_variables())
    assert {name for name, operator in uses if operator == ":?"} == {
        name for name, value in example_variables().items() if not value
    }
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE.read_text()))
    assert defaults == {name: value for name, value in example_variables().items() if value}


def test_the_key_of_webhooks_is_made_as_the_example_says() -> None:
    """MLflow does not start with a key of another form; `rand -hex`, as for the other secrets, gives one."""
    (command,) = re.findall(r"# encrypts .*make it with: (.*)", EXAMPLE.read_text())
    made = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.strip()
    assert base64.b64encode(base64.b64decode(made, altchars=b"-_", validate=True), altchars=b"-_").decode() == made
    Fernet(made)


def test_no_secret_is_in_a_command(compose: ComposeFile) -> None:
    names = ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY")
    secrets = {FILLED[name] for name in (*names, TOKEN_VARIABLE)}
    words = [word for service in compose.services.values() for word in service["command"]]
    assert [word for word in words if any(secret in word for secret in secrets)] == []


@pytest.mark.parametrize("name", ComposeFile.load(FILLED).services)
def test_a_service_is_confined_and_watched(compose: ComposeFile, name: str) -> None:
    service: Any = compose.services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert service["restart"] == ("no" if name in ON_DEMAND else "unless-stopped")
    assert ("healthcheck" in service) == (name not in ON_DEMAND)


def test_predictions_have_bounds_and_are_kept_in_memory(compose: ComposeFile) -> None:
    serve: Any = compose.services["serve"]
    (place,) = serve["tmpfs"]
    assert (place.partition(":")[0], serve["mem_limit"], serve["pids_limit"]) == ("/tmp", "16g", 512)
    size_gib, memory_gib = int(re.findall(r"size=(\d+)g", place)[0]), int(serve["mem_limit"].removesuffix("g"))
    (upload_gib,) = [float(word.partition("=")[2]) for word in serve["command"] if word.startswith("--max-upload-gib=")]
    assert upload_gib + ServiceLimits().free_bytes / 2**30 < size_gib < memory_gib  # else no upload would be accepted


def test_what_must_last_has_a_volume_of_its_own(compose: ComposeFile) -> None:
    mounts = {
        name: [str(one).split(":")[0] for one in service.get("volumes", ())]
        for name, service in compose.services.items()
    }
    assert mounts["postgres"] == ["postgres"]
    assert mounts["s3"] == ["s3"]
    assert mounts["mlflow"] == []  # all of it is in the other two
    assert mounts["serve"] == []  # uploads and results must not last
    assert mounts["review"] == [FILLED["WORKDIR"], FILLED["REVIEWS"]]
    assert mounts["backup"] == [FILLED["BACKUP_FOLDER"]]

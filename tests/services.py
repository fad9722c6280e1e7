"""Real services on loopback for tests: PostgreSQL, S3 (SeaweedFS), MLflow's server, an OCI registry and Orthanc.

Each listens on free ports, is waited for until it is healthy, and is ended by its pid. Where a program is missing, the
tests that need it are skipped and say so; where HEPAR_CI is set, as by `.ci/run`, they fail.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest

BIN = Path(sys.executable).parent
IN_CI = bool(os.environ.get("HEPAR_CI"))  # read here, because tests run without variables of hepar
START_SECONDS, STOP_SECONDS = 240.0, 30.0
S3_KEYS = {"AWS_ACCESS_KEY_ID": "hepar-test", "AWS_SECRET_ACCESS_KEY": "hepar-test-secret"}
MLFLOW_COMMAND = ("mlflow", "server")
ORTHANC_PLUGIN = "libOrthancDicomWeb.so"
ORTHANC_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")


def missing(what: str) -> NoReturn:
    """Skip a test, or fail it in CI, because of what this machine lacks."""
    if IN_CI:
        pytest.fail(f"{what} is missing, and HEPAR_CI is set")
    pytest.skip(f"{what} is missing")


def program(name: str) -> str:
    """The path of a program: of the environment, of PostgreSQL, or of the system."""
    for folder in (BIN, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)):
        if (folder / name).is_file():
            return str(folder / name)
    return shutil.which(name) or missing(name)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


def answers(url: str) -> bool:
    """Whether a GET is answered by 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def started(
    command: Sequence[str],
    healthy: Callable[[], bool],
    log: Path,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    stop: signal.Signals = signal.SIGKILL,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is healthy; killed at the end with all that it started: nobody needs its data then."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HEPAR_", "AWS_", "PG"))
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program(command[0]), *command[1:]],
            cwd=log.parent,
            env={**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **(env or {})},
            stdout=output,
            stderr=output,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not healthy():
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.1)
        yield process
    finally:
        process.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):  # it has a group of its own, so no other process is meant
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def s3_server(
    folder: Path,
    buckets: Sequence[str] = (),
    command: Sequence[str] = (
        "weed",
        "server",
        "-ip=127.0.0.1",
        "-volume.max=0",
        "-master.volumeSizeLimitMB=64",
        "-s3",
    ),
    keys: Mapping[str, str] = S3_KEYS,
) -> Iterator[dict[str, str]]:
    """SeaweedFS with its data in `folder`; yields the variables of its clients.

    Of a repeated flag the last counts. Without `keys` the command must name a file of identities.
    """
    names = ["master.port", "volume.port", "filer.port", "s3.port"]
    names += [f"{name}.grpc" for name in names]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    flags = [
        f"-dir={folder}",
        "-master.telemetry=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.preStopSeconds=0",
    ]
    flags += [f"-{name}={port}" for name, port in ports.items()]
    url = f"http://127.0.0.1:{ports['s3.port']}"
    log = folder.with_name(f"{folder.name}.log")
    with started([*command, *flags], lambda: answers(f"{url}/healthz"), log, keys):
        client = {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1", **keys}
        for bucket in buckets:
            s3_client(client).create_bucket(Bucket=bucket)
        yield client


def s3_client(variables: Mapping[str, str]) -> Any:
    """A boto3 client of the server that `s3_server` yields."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name=variables["AWS_DEFAULT_REGION"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )


@contextmanager
def postgres_server(
    logs: Path, command: Sequence[str] = ("postgres",), password: str = "hepar-test"
) -> Iterator[dict[str, str]]:
    """PostgreSQL with an empty database `mlflow` of the user `mlflow`; yields libpq's variables.

    It refuses to run as root, so it runs as the user postgres, in a folder that this user can reach.
    """
    initdb, user = program("initdb"), "postgres" if os.geteuid() == 0 else None
    (port,) = free_ports(1)
    folder = Path(tempfile.mkdtemp(prefix="hepar-postgres-"))
    try:
        secret = folder / "password"
        secret.write_text(password)
        if user:
            for path in (folder, secret):
                shutil.chown(path, user, user)
        made = [
            initdb,
            f"--pgdata={folder / 'data'}",
            "--username=mlflow",
            f"--pwfile={secret}",
            "--auth=scram-sha-256",
        ]
        _ = subprocess.run(
            [*made, "--no-sync", "--no-instructions"],
            user=user, group=user, extra_groups=[] if user else None, cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        client = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "mlflow", "PGPASSWORD": password}
        client["PGDATABASE"] = "mlflow"
        flags = [
            "-D",
            str(folder / "data"),
            "-p",
            str(port),
            "-c",
            f"unix_socket_directories={folder}",
            "-c",
            "fsync=off",
        ]
        query = [program("psql"), "--no-psqlrc", "--dbname=postgres", "--command"]

        def healthy() -> bool:
            return subprocess.run([*query, "select 1"], env=client, capture_output=True).returncode == 0

        log = logs / f"postgres-{port}.log"
        with started([*command, *flags], healthy, log, user=user, stop=signal.SIGQUIT):
            subprocess.run([*query, "create database mlflow"], env=client, check=True, capture_output=True)
            yield client
    finally:
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(
    logs: Path, variables: Mapping[str, str], command: Sequence[str] = MLFLOW_COMMAND, bucket: str = "mlflow"
) -> Iterator[str]:
    """MLflow's server on the database and the S3 bucket that `variables` name; yields its address."""
    (port,) = free_ports(1)
    url = f"http://localhost:{port}"
    flags = ["--backend-store-uri=postgresql+psycopg2://", f"--artifacts-destination=s3://{bucket}"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "GIT_PYTHON_REFRESH": "quiet"}
    log = logs / f"mlflow-{port}.log"
    words = [
        *command,
        *flags,
        "--host=127.0.0.1",
        f"--port={port}",
        "--workers=1",
    ]  # each worker takes seconds to start
    with started(words, lambda: answers(f"{url}/health"), log, {**quiet, **variables}):
        yield url


@contextmanager
def oci_registry(folder: Path) -> Iterator[str]:
    """Docker's registry with its images in `folder`; yields its name, HOST:PORT."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder.with_name(f"{folder.name}.yml")
    configuration.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}\nhttp:\n  addr: 127.0.0.1:{port}\n"
    )
    log = folder.with_name(f"{folder.name}.log")
    with started(
        ["docker-registry", "serve", str(configuration)], lambda: answers(f"http://127.0.0.1:{port}/v2/"), log
    ):
        yield f"127.0.0.1:{port}"


@contextmanager
def orthanc_server(folder: Path) -> Iterator[str]:
    """A fresh Orthanc with DICOMweb, below `/dicom-web`, with its data in `folder`; yields its address.

    A series is complete after a second without a new instance.
    """
    plugin = next(
        (path for path in (Path(place) / ORTHANC_PLUGIN for place in ORTHANC_FOLDERS) if path.is_file()), None
    )
    if plugin is None:
        missing("Orthanc with DICOMweb (apt-get install orthanc orthanc-dicomweb)")
    http, dicom = free_ports(2)
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http,
        "DicomPort": dicom,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StableAge": 1,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    url = f"http://127.0.0.1:{http}"
    command = ["Orthanc", str(folder / "orthanc.json")]
    with started(command, lambda: answers(f"{url}/dicom-web/studies"), folder / "log", stop=signal.SIGTERM):
        yield url

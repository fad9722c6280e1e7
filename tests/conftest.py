"""Shared fixtures: real data, phantoms, params, and one tiny run of all stages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes share the tests as there are cores

import pytest
from filelock import FileLock
from full_disk import SmallDisk, small_disk
from inbox import Inbox, opened_inbox
from phantom_folder import PhantomFolder
from toy_case import write_case

from hepar.cases import Case
from hepar.params import Params, load_params
from hepar.phantoms import write_phantoms
from hepar.registry.tracking import connect
from hepar.runtime.notification import URL_VARIABLE

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TINY = ROOT / "params" / "tiny.yaml"
SHARED = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each process that shares the tests begin with slow ones, so that none waits for a slow one at the end.

    xdist hands each process one part of the list, and later the end of another's part to one that has finished. The
    first gets the slow tests of the finished run, so that others do not wait while it is made.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    slow.sort(key=lambda item: "by_kfp" not in getattr(item, "fixturenames", ()))
    quick = [item for item in items if not item.get_closest_marker("slow")]
    items.clear()
    for parts in range(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 0, -1):
        size, first = (len(slow) + len(quick)) // parts, len(slow) // parts
        items += slow[:first] + quick[: size - first]
        del slow[:first], quick[: size - first]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; tests that use it are skipped if it does not exist."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny() -> Params:
    return load_params(TINY)


@pytest.fixture(scope="session")
def phantom_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only folder with `cohort.csv` and eight small phantoms."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=8, seed=7, size_zyx=(24, 40, 40))
    return folder


@pytest.fixture
def source(tmp_path: Path, phantom_source: Path) -> PhantomFolder:
    """A copy of `phantom_source` that a test may edit."""
    shutil.copytree(phantom_source, tmp_path / "source")
    return PhantomFolder(tmp_path / "source")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A case with boxes as masks, in `tmp_path/cohort`."""
    return write_case(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk on which a test leaves as little room as it wants."""
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def inbox(own_tracking: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    """A server on loopback that takes notifications."""
    with opened_inbox() as inbox:
        monkeypatch.setenv(URL_VARIABLE, inbox.url)
        yield inbox


@pytest.fixture(autouse=True)
def own_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point every test at a tracking database of its own."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "HEPAR_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Take back the threads that a stage of an earlier test has given to torch."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database with nothing in it, which takes MLflow more than a second to create."""

    def create(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
            connect()

    return made_once(tmp_path_factory, "database", create) / "mlflow.db"


@pytest.fixture
def database(tmp_path: Path, empty_database: Path, own_tracking: None) -> None:
    """Put a copy of the empty database where the test will look for its own."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "HEPAR_"))}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **more}


def call(*command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command; one of hepar in a fork of a process that has imported everything, see `commands`."""
    if command[0] == "hepar":
        from commands import hepar

        ended = hepar(list(command), cwd, more)
        return subprocess.CompletedProcess(command, ended.code, ended.stdout, ended.stderr)
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, check=False)


def succeed(*command: str, cwd: Path, **more: str) -> str:
    done = call(*command, cwd=cwd, **more)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of the session that `make` fills, once for all processes that share the tests."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, finished = root / name, root / f"{name}.finished"
    with FileLock(root / f"{name}.lock"):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder


@pytest.fixture(scope="session")
def by_kfp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a finished `hepar run`; its standard output is in `screen.txt`."""

    def run(folder: Path) -> None:
        workdir = folder / "run"
        screen = succeed("hepar", "run", "--params", str(TINY), "--workdir", str(workdir), cwd=folder)
        (workdir / "screen.txt").write_text(screen)

    return made_once(tmp_path_factory, "kfp", run) / "run"


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server on loopback with one bucket; yields the environment variables of its clients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end
            time.sleep(0.1)
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="pools")
        yield settings
    finally:
        server.kill()
        server.wait()

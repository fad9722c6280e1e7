"""Shared fixtures: real data, phantoms, params, and one tiny run of all stages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from phantom_folder import PhantomFolder
from toy_case import write_case

from hepar.cases import Case
from hepar.params import Params, load_params
from hepar.phantoms import write_phantoms

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TINY = ROOT / "params" / "tiny.yaml"
SHARED = ROOT.parent / "shared" / "data"


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


@pytest.fixture(autouse=True)
def own_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point every test at a tracking database of its own."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "HEPAR_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "HEPAR_"))}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **more}


def call(*command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=environment(**more), capture_output=True, text=True, check=False)


def succeed(*command: str, cwd: Path, **more: str) -> str:
    done = call(*command, cwd=cwd, **more)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
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

"""What tests share: the real data's place, and one tiny run of all stages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
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
    """The folder of real scans; a test that asks for it is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny() -> Params:
    return load_params(TINY)


@pytest.fixture(scope="session")
def phantom_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cohort.csv` and eight small phantoms, to be read and never to be changed."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=8, seed=7, size_zyx=(24, 40, 40))
    return folder


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A case of boxes whose files lie in `tmp_path/cohort`."""
    return write_case(tmp_path)


@pytest.fixture(autouse=True)
def own_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to a tracking server or folder outside its own."""
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


@pytest.fixture(scope="session")
def by_kfp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a finished `hepar run`; its screen is in `screen.txt`."""
    workdir = tmp_path_factory.mktemp("kfp") / "run"
    screen = succeed("hepar", "run", "--params", str(TINY), "--workdir", str(workdir), cwd=workdir.parent)
    (workdir / "screen.txt").write_text(screen)
    return workdir

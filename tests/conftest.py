"""What tests share: the real data's place, and one tiny run of all stages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hepar.params import Params, load_params
from hepar.phantoms import write_phantoms

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; a test that asks for it is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny() -> Params:
    return load_params(ROOT / "params" / "tiny.yaml")


@pytest.fixture(scope="session")
def phantom_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cohort.csv` and eight small phantoms, to be read and never to be changed."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, cases=8, seed=7, size_zyx=(24, 40, 40))
    return folder


@pytest.fixture(autouse=True)
def own_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to a tracking server or folder outside its own."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "HEPAR_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

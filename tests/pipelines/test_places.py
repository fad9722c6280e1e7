"""Relative places of the environment, and what a stage that works in another folder makes of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import pipelines.steps
from pipelines import local
from pipelines.places import absolute_variables
from pipelines.run_lock import only_run
from pipelines.steps import Step, run_step
from pipelines.studies import running

STAGE = f"""#!{sys.executable}
from pathlib import Path
from hepar.registry.tracking import has_server
from hepar.runtime.object_store import Store
from hepar.runtime.unfinished import checkpoint_folder

print(has_server(), Store.of_environment().url, checkpoint_folder(Path("model"), "0" * 64))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the command, with a database, and a stage that runs in the folder beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "mlflow.db").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "stage").write_text(STAGE)
    (tmp_path / "stage").chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.setenv("HEPAR_STORE", "store")
    monkeypatch.setenv("HEPAR_CHECKPOINTS", "kept")
    return folder


def of_a_run(folder: Path) -> Mapping[str, str]:
    return local._environment(folder, folder / "progress", "subprocess", "hepar:latest")


def of_a_study(folder: Path) -> Mapping[str, str]:
    return running._environment(folder, jobs=1)


def of_a_step_alone(folder: Path) -> Mapping[str, str]:
    return {}


@pytest.mark.parametrize("environment", [of_a_run, of_a_study, of_a_step_alone])
def test_stages_find_what_relative_paths_of_the_command_name(
    here: Path, environment: Callable[[Path], Mapping[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = here.parent / "elsewhere"
    monkeypatch.setattr(pipelines.steps, "HEPAR", str(here.parent / "stage"))
    log = here.parent / "log"
    with only_run(elsewhere) as held:
        run_step(Step("stage", (), elsewhere / "model", "model"), elsewhere, held, environment(elsewhere), log)
    assert log.read_text() == f"True {here / 'store'} {here / 'kept' / 'model-0000000000000000'}\n"


def test_addresses_of_servers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "HEPAR_STORE": "s3://pools/dvc"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert absolute_variables() == given

"""`hepar study`: it finds the pipelines by their entry points, lists steps, compiles, and refuses by name."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, succeed
from toy_study import FakeStages, teachers_meet, write_study
from typer.testing import CliRunner

from hepar.cli.main import app
from hepar.errors import DataError, HeparError, ParamsError
from hepar.runtime.environment import IMAGE_VARIABLE, STORE_VARIABLE
from pipelines.studies import running
from pipelines.studies.running import run_cells

GROUP = "hepar.studies"


@pytest.fixture(autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of pyproject.toml, also where hepar was installed before they were added."""
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    folder = tmp_path_factory.mktemp("installed")
    info = folder / "hepar_entries-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hepar-entries\nVersion: 0\n")
    lines = [f"{name} = {target}" for name, target in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")
    monkeypatch.syspath_prepend(folder)


def test_a_dry_run_lists_the_steps(tmp_path: Path) -> None:
    words = ["study", str(write_study(tmp_path, seeds=[1])), "--dry-run", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert sum(line.startswith("| evaluate-") for line in found.stdout.splitlines()) == 2


def test_jobs_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeStages()
    fake.fail = teachers_meet()
    monkeypatch.setattr(running, "run_cells", lambda cells, folder, jobs: run_cells(cells, folder, fake, jobs))
    words = ["study", str(write_study(tmp_path, seeds=[1])), "--out", str(tmp_path / "out"), "--jobs", "2"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.output
    assert "2 of 2 cells finished" in found.stdout


def test_a_study_is_compiled_for_a_cluster(tmp_path: Path) -> None:
    """In a process of its own: the components take their image when they are imported."""
    package, image = tmp_path / "study.yaml", {IMAGE_VARIABLE: f"registry.example.org/hepar@sha256:{'a' * 64}"}
    succeed("hepar", "study", str(write_study(tmp_path)), "--cluster", str(package), cwd=tmp_path, **image)
    assert "name: hepar-study-toy" in package.read_text()


def test_what_a_cluster_has_made_is_gathered_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    words = ["study", str(write_study(tmp_path)), "--gather", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, DataError)
    assert "has no report of study toy" in str(found.exception)


@pytest.mark.parametrize("others", [["--dry-run"], ["--cluster", "study.yaml"], ["--jobs", "2"]])
def test_one_thing_at_a_time(tmp_path: Path, others: list[str]) -> None:
    found = CliRunner().invoke(app, ["study", str(write_study(tmp_path)), "--gather", *others])
    assert isinstance(found.exception, ParamsError)
    assert re.search(r"leave out --cluster( and --gather)?$", str(found.exception))


@pytest.mark.parametrize("words", [[], ["--cluster", "study.yaml"], ["--gather"]])
def test_a_bad_override_is_named_with_its_arm(tmp_path: Path, words: list[str]) -> None:
    arms = {"a": {}, "b": {"assemble_pool.label": "mixed"}}
    found = CliRunner().invoke(app, ["study", str(write_study(tmp_path, arms=arms, claims=[])), *words])
    assert isinstance(found.exception, ParamsError)
    assert str(found.exception).endswith("arm 'b': unknown key assemble_pool.label")


@pytest.mark.parametrize("words", [["study", "study.yaml"], ["submit"], ["pool", "push"]])
def test_without_the_pipelines_it_says_so(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, HeparError)
    assert "installed without its pipelines" in str(found.exception)

"""`hepar lineage`: the tree and its JSON, from a working directory and from the registry with a pool on a remote."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from toy_lineage import IMAGE, KFP, LICENCE, NAME, ToyRun, copied_run, finished_run, hash_of
from typer.testing import CliRunner

from hepar.cli.lineage import tree_lines
from hepar.cli.main import app
from hepar.errors import DataError
from hepar.params import Params
from hepar.registry.lineage import Lineage, Node
from hepar.runtime.artifacts import dvc_version

pytestmark = pytest.mark.filterwarnings("ignore:.*inferred as AnyType")  # MLflow, of a type of its own


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Params) -> ToyRun:
    return finished_run(tmp_path_factory, tiny)


@pytest.fixture
def run(finished: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyRun:
    """A copy of the run's folders, with its MLflow server; the current folder is an empty one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.folder / 'mlflow.db'}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return copied_run(finished, tmp_path / "work" / "run")  # two folders above it are looked in, too


def lineage(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["lineage", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def as_remote(pool: Path, folder: Path) -> str:
    """Put a pool where DVC has its files on a remote; returns the version."""
    listing = []
    for path in sorted(path for path in pool.rglob("*") if path.is_file()):
        digest = _store(path.read_bytes(), folder)
        listing.append({"md5": digest, "relpath": path.relative_to(pool).as_posix()})
    text = json.dumps(sorted(listing, key=lambda file: file["relpath"]), sort_keys=True)
    return f"{_store(text.encode(), folder, '.dir')}.dir"


def _store(data: bytes, folder: Path, suffix: str = "") -> str:
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    place = folder / "files" / "md5" / digest[:2] / f"{digest[2:]}{suffix}"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return digest


def test_the_tree_shows_each_artifact_once_with_places_facts_and_cases(run: ToyRun) -> None:
    shutil.rmtree(run.pseudo)
    lines = lineage(str(run.folder), "--cases").splitlines()
    assert lines[0] == f"registered version models:/{NAME}/1  HERE"
    pool, pseudo, teacher = (hash_of(run.pool)[:12], "pseudo-labels", hash_of(run.teacher)[:12])
    assert f"├── model {hash_of(run.model)[:12]}  HERE" in lines
    assert f"│   ├── pool {pool}  HERE" in lines
    assert [line for line in lines if f"└── {pseudo} " in line and line.endswith("GONE, BUT RECORDED")]
    assert [line for line in lines if line.endswith(f"teacher-CT: model {teacher}  HERE")]
    assert [line for line in lines if line.endswith(f"warm start: model {teacher}  (see above)")]
    assert [line for line in lines if line.endswith(f"in folder: {run.pool}")]
    for fact in (f"image: {IMAGE}", f"kfp run: {KFP}", "aliases: champion"):
        assert f"│   {fact}" in lines
    (counted,) = {line.strip("│ ") for line in lines if line.endswith(f"2 of LiTS, licence {LICENCE}")}
    assert counted == f"2 of LiTS, licence {LICENCE}"
    (case,) = (line for line in lines if "│         b, LiTS, test" in line)
    assert case.endswith(str(run.cohort / "volumes" / "b" / "image.nii.gz"))
    assert "liver none" in case


def test_an_empty_fact_is_none_but_a_commit_or_a_missing_one_not_known() -> None:
    report = Node("a" * 64, "report", facts={"mirror_axes": "", "image": None, "variants": "1", "git commit": ""})
    lines = tree_lines(Lineage(report.key, {report.key: report}), cases=False)
    assert [line.strip() for line in lines[1:]] == [
        "mirror_axes: none",
        "image: not known",
        "variants: 1",
        "git commit: not known",
    ]


def test_json_from_the_registry_opens_the_pool_on_its_remote(run: ToyRun, tmp_path: Path) -> None:
    version = as_remote(run.pool, tmp_path / "remote")
    assert version == dvc_version(run.pool)
    for remote, problem in ((tmp_path / "remote", False), (tmp_path / "other", True)):
        found = json.loads(lineage(f"models:/{NAME}@champion", "--json", "--remote", str(remote)))
        nodes = {node["key"]: node for node in found["nodes"]}
        assert found["root"] == f"models:/{NAME}/1"
        assert nodes[found["root"]]["parents"] == {"model": hash_of(run.model), "report": hash_of(run.report)}
        pool, cohort = nodes[hash_of(run.pool)], nodes[hash_of(run.cohort)]
        (place,) = pool["places"]
        assert (place["where"], place["address"], bool(place["problem"])) == ("DVC remote", version, problem)
        assert pool["state"] == ("gone, but recorded" if problem else "here")
        assert cohort["state"] == "gone, but recorded"
        assert [case["file"] for case in cohort["cases"]] == ["", ""]


def test_a_folder_finds_the_database_of_its_run_and_creates_none(
    run: ToyRun, finished: ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that what the command sets is undone
    assert "recorded in MLflow run" not in lineage(str(run.model))
    assert not list(Path.cwd().iterdir())
    assert "recorded in MLflow run" in lineage(str(finished.model))


def test_wrong_arguments_end_with_a_sentence(run: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"^nowhere is neither models:/NAME@ALIAS nor .* nor a folder$"):
        lineage("nowhere")
    with pytest.raises(DataError, match=r"^--in is nowhere, which is no folder$"):
        lineage(str(run.folder), "--in", "nowhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///missing.db")
    with pytest.raises(DataError, match=r"^there is no registry at sqlite:///missing\.db: set MLFLOW_TRACKING_URI$"):
        lineage(f"models:/{NAME}/1")
    assert not list(Path.cwd().iterdir())

"""`hepar verify`, and `hepar pool audit --verify`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy_model import write_model
from typer.testing import CliRunner

from hepar.cli.main import app
from hepar.errors import ArtifactError
from hepar.inference.model_folder import ModelFolder
from hepar.params import Params
from hepar.runtime.artifacts import MANIFEST


def test_a_sound_folder_of_any_kind_is_reported_as_sealed(tmp_path: Path, tiny: Params) -> None:
    model = write_model(tmp_path / "model", tiny).folder
    shown = CliRunner().invoke(app, ["verify", str(model)])
    assert shown.exit_code == 0
    assert shown.stdout.startswith(f"{model}: model ")
    assert shown.stdout.endswith("all 4 files as sealed\n")


def test_every_damaged_file_is_listed(tmp_path: Path, tiny: Params) -> None:
    model = write_model(tmp_path / "model", tiny).folder
    (model / ModelFolder.HISTORY).unlink()
    content = (model / ModelFolder.WEIGHTS).read_bytes()
    (model / ModelFolder.WEIGHTS).write_bytes(content[:-1] + b"!")
    shown = CliRunner().invoke(app, ["verify", str(model)])
    assert isinstance(shown.exception, ArtifactError)  # which the program shows as a sentence, with exit code 2
    assert str(shown.exception) == f"{model} is damaged: 2 of 4 files"
    listed = shown.stderr.splitlines()
    assert listed[0] == f"hepar: {model}: history.csv is missing"
    assert listed[1].startswith(f"hepar: {model}: weights.pt has changed since it was sealed (SHA-256 ")


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert str(shown.exception) == f"{tmp_path} is not a complete artifact: {MANIFEST} is missing"


@pytest.mark.slow
def test_an_audit_verifies_what_it_audits(by_kfp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cohort", "models", "pool"):
        shutil.copytree(by_kfp / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    audit = ["pool", "audit", "--only", "no-test-patient"]
    assert CliRunner().invoke(app, [*audit, "--verify"]).exit_code == 0
    history = tmp_path / "models" / "liver-ct" / ModelFolder.HISTORY
    *digits, last, newline = history.read_bytes()
    history.write_bytes(bytes([*digits, ord("9") if last != ord("9") else ord("8"), newline]))
    assert CliRunner().invoke(app, audit).exit_code == 0
    shown = CliRunner().invoke(app, [*audit, "--verify"])
    assert str(shown.exception).startswith("models/liver-ct is damaged: history.csv has changed since it was sealed")

"""`hepar list-source` writes the listing of a source, and touches the file only if the listing has changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hepar.cli.main import app
from hepar.ingest.listing import list_source
from hepar.params import Params, dump_params


@pytest.fixture
def params_file(tmp_path: Path, tiny: Params) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(dump_params(tiny)))
    return path


@pytest.fixture
def source(tmp_path: Path, phantom_source: Path) -> Path:
    return Path(shutil.copytree(phantom_source, tmp_path / "source"))


def write_listing(out: Path, *arguments: str) -> None:
    result = CliRunner().invoke(app, ["list-source", *arguments, "--out", str(out)], catch_exceptions=False)
    assert (result.exit_code, result.output) == (0, "")


def test_the_listing_of_the_source_is_written(source: Path, params_file: Path, tmp_path: Path) -> None:
    write_listing(tmp_path / "new" / "source.csv", str(source), "--params", str(params_file))
    assert (tmp_path / "new" / "source.csv").read_text() == list_source(str(source))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["source.csv"]


def test_the_default_source_is_that_of_the_params_file(params_file: Path, tmp_path: Path) -> None:
    write_listing(tmp_path / "source.csv", "--params", str(params_file))
    assert (tmp_path / "source.csv").read_text() == list_source("phantoms")


def test_only_a_changed_listing_touches_the_file(source: Path, params_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "source.csv"
    write_listing(out, str(source), "--params", str(params_file))
    os.utime(out, ns=(0, 0))
    write_listing(out, str(source), "--params", str(params_file))
    assert out.stat().st_mtime_ns == 0
    (source / "added.nii.gz").write_bytes(b"a new scan")
    write_listing(out, str(source), "--params", str(params_file))
    assert out.stat().st_mtime_ns > 0
    assert "added.nii.gz" in out.read_text()

"""`hepar predict`: its options, and the JSON that it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_case import write_noise
from toy_model import constant_weights, write_model
from typer.testing import CliRunner

from hepar.cli.main import app
from hepar.params import Params


@pytest.fixture
def folder(tiny: Params, tmp_path: Path) -> Path:
    """A scan of 32.768 ml, and a model of which one member finds liver everywhere and the other tumour everywhere."""
    write_noise(tmp_path / "scan.nii.gz")
    liver, tumour = constant_weights(tiny, 0.9, 0.2), constant_weights(tiny, 0.2, 0.9)
    write_model(tmp_path / "model", tiny, liver, members=[tumour])
    return tmp_path


def predict(folder: Path, *options: str) -> dict[str, Any]:
    places = [str(folder / "scan.nii.gz"), "--out", str(folder / "labels.nii.gz"), "--model", str(folder / "model")]
    done = CliRunner().invoke(app, ["predict", *places, "--modality", "ct", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_volumes_and_lesions_are_printed(folder: Path) -> None:
    assert predict(folder, "--variants", "2", "--mirror", "x", "--overlap", "0") == {
        "labels": str(folder / "labels.nii.gz"),
        "modality": "CT",
        "liver_ml": 32.768,
        "tumour_ml": 32.768,
        "lesions": [
            {
                "volume_ml": 32.768,
                "confidence": 0.55,
                "centre_index_zyx": [7.5, 7.5, 7.5],
                "centre_lps_mm": [15.0, 15.0, 15.0],
            }
        ],
    }


@pytest.mark.parametrize("options", [("--tumour-threshold", "0.6"), ("--min-lesion-ml", "33")])
def test_threshold_and_smallest_lesion_are_options(folder: Path, options: tuple[str, str]) -> None:
    found = predict(folder, *options)
    assert (found["liver_ml"], found["tumour_ml"], found["lesions"]) == (32.768, 0, [])

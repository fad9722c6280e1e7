"""Exported models compute what the model computes: in ONNX Runtime, and by MONAI's own runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import SimpleITK as sitk
import torch
from toy_model import PLAN, toy_weights, write_model
from typer.testing import CliRunner

from hepar.cases import Modality
from hepar.cli.main import app
from hepar.errors import DataError
from hepar.evaluation.overlap import dice
from hepar.export import onnx_file
from hepar.export.exporting import export_bundle, export_onnx
from hepar.export.mean_network import example_window
from hepar.inference.model_folder import ModelFolder, ModelSpec
from hepar.inference.prediction import load_ensemble, segment
from hepar.inference.settings import PredictionSettings
from hepar.networks import build_network
from hepar.params import Params
from hepar.prediction.opening import local_model

CPU = torch.device("cpu")
SPEC: dict[str, Any] = {"patch_zyx": (16, 32, 32), "tumour_threshold": 0.45, "min_lesion_ml": 0.0}


@pytest.fixture(scope="module")
def model(tiny: Params, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """An ensemble of two random networks, each of which finds about half of a scan liver, and half of it tumour."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("export") / "model"
    image_zyx = sitk.GetArrayFromImage(_scan()).astype(np.float32) / 200 - 0.5
    window_bcdhw = torch.from_numpy(np.pad(image_zyx, ((2, 2), (0, 0), (0, 0)), mode="edge"))[None, None, :, :32, :32]
    weights = [_balanced(toy_weights(tiny), tiny, window_bcdhw) for _ in range(2)]
    return write_model(folder, tiny, weights[0], members=weights[1:], **SPEC)


def _balanced(weights: dict[str, torch.Tensor], tiny: Params, window_bcdhw: torch.Tensor) -> dict[str, torch.Tensor]:
    network = build_network(tiny.network.name, tiny.network.config, SPEC["patch_zyx"]).eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        weights["head.bias"] -= network(window_bcdhw).median(-1).values.mean((0, 2, 3))
    return weights


@pytest.fixture(scope="module")
def bundle(model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(model.folder, folder)
    return folder


def _scan() -> sitk.Image:
    """Smooth blobs in a grid that is finer than the plan in the plane, and mirrored."""
    noise_zyx = np.random.default_rng(0).normal(size=(12, 40, 44)).astype(np.float32)
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise_zyx), 2.5)
    image = sitk.Cast(sitk.RescaleIntensity(image, -100, 300), sitk.sitkInt16)
    image.SetSpacing((0.5, 0.5, 2.5))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    return image


def test_the_onnx_file_predicts_the_mean_of_the_ensemble_and_holds_its_plan(model: ModelFolder, tmp_path: Path) -> None:
    import onnxruntime

    path = tmp_path / "model.onnx"
    found = CliRunner().invoke(app, ["export", str(model.folder), str(path), "--format", "onnx"])
    assert (found.exit_code, found.stdout.strip()) == (0, str(path))
    models = load_ensemble(model.folder, CPU)
    window_bcdhw = example_window(models)
    with torch.no_grad():
        expected_brdhw = sum(own.network(window_bcdhw).sigmoid() for own in models) / 2
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (probability_brdhw,) = session.run([onnx_file.OUTPUT], {onnx_file.INPUT: window_bcdhw.numpy()})
    assert probability_brdhw == pytest.approx(expected_brdhw.numpy(), abs=1e-4)
    stored = {item.key: item.value for item in onnx.load(path).metadata_props}
    assert ModelSpec.model_validate(json.loads(stored[onnx_file.SPEC])) == models[0].spec
    assert "Research use only" in stored[onnx_file.USE]


def test_monais_runner_runs_the_bundle_without_hepar_and_finds_what_hepar_finds(
    model: ModelFolder, bundle: Path, tmp_path: Path
) -> None:
    image, scan = _scan(), tmp_path / "scan.nii.gz"
    sitk.WriteImage(image, str(scan))
    hidden = tmp_path / "no-hepar" / "hepar"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('the bundle must not need hepar')\n")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--meta_file", "configs/metadata.json", "--image", str(scan), "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(hidden.parent), "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    labels = sitk.ReadImage(str(tmp_path / "out" / "scan_labels.nii.gz"))
    found = segment(load_ensemble(model.folder, CPU), image, Modality.CT, PredictionSettings())
    assert labels.GetSize() == image.GetSize()
    assert labels.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-5)
    labels_zyx = sitk.GetArrayFromImage(labels)
    share = found.liver_zyx.mean()
    assert 0.02 < share < 0.98  # or agreement would mean nothing
    assert dice(found.liver_zyx, labels_zyx > 0) > 0.97
    assert dice(found.tumour_zyx, labels_zyx == 2) > 0.95


def test_a_bundle_is_a_model_that_names_its_windows(model: ModelFolder, bundle: Path, tmp_path: Path) -> None:
    with local_model(str(bundle)) as folder:
        assert load_ensemble(folder, CPU)[0].spec.plan == PLAN
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [16, 32, 32]
    assert "Research use only" in metadata["intended_use"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match=r"mine exists and is not an exported bundle: choose another folder"):
        export_bundle(model.folder, tmp_path / "mine")
    with pytest.raises(DataError, match=r"model cannot be written: its name must end in \.onnx"):
        export_onnx(model.folder, tmp_path / "model")

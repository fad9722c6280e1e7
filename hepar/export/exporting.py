"""Exports of a model folder: an ONNX file or a MONAI bundle."""

from __future__ import annotations

from pathlib import Path

import torch

from hepar.errors import DataError
from hepar.export.bundle import write_bundle
from hepar.export.onnx_file import write_onnx
from hepar.inference.model_folder import ModelFolder
from hepar.inference.prediction import load_ensemble
from hepar.runtime.artifacts import MANIFEST, read_any_manifest, read_manifest, write_artifact

BUNDLE_KIND = "monai bundle"
SUFFIX = ".onnx"
CPU = torch.device("cpu")


def export_onnx(model: Path, out: Path) -> None:
    """Write a model, or the ensemble of its members, as one ONNX file.

    Raises ArtifactError if `model` is not a whole model, DataError if `out` is not named `*.onnx`.
    """
    if out.suffix != SUFFIX:
        raise DataError(f"{out} cannot be written: its name must end in {SUFFIX}")
    write_onnx(load_ensemble(model, CPU), out)


def export_bundle(model: Path, out: Path) -> None:
    """Write a model as the folder of a MONAI bundle; an earlier bundle there is replaced.

    Raises ArtifactError if `model` is not a whole model, DataError if `out` is something else than a bundle.
    """
    if out.exists() and not ((out / MANIFEST).is_file() and read_any_manifest(out).kind == BUNDLE_KIND):
        raise DataError(f"{out} exists and is not an exported bundle: choose another folder")
    models = load_ensemble(model, CPU)
    parents = {ModelFolder.KIND: read_manifest(model, ModelFolder.KIND).hash}
    with write_artifact(out, BUNDLE_KIND, parents) as folder:
        write_bundle(models, model, folder)

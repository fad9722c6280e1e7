"""Opening a model to predict scans with: a folder, or a registered version."""

from __future__ import annotations

from pathlib import Path

from hepar.inference.model_folder import ModelFolder
from hepar.inference.prediction import load_ensemble
from hepar.inference.settings import PredictionSettings
from hepar.params import REGISTERED
from hepar.prediction.predicted_scan import Predictor
from hepar.runtime.artifacts import read_manifest
from hepar.runtime.device import pick_device, use_threads


def open_predictor(model: str, settings: PredictionSettings) -> Predictor:
    """The model of a folder, or of an address such as `models:/NAME@champion`, on the device of this process.

    torch computes on all cores from then on. Raises ArtifactError if there is no such model, or it is damaged.
    """
    use_threads(0)
    if not model.startswith(REGISTERED):
        return _loaded(Path(model), settings)
    from hepar.registry.model_registry import downloaded_model

    with downloaded_model(model) as folder:
        return _loaded(folder, settings)


def _loaded(folder: Path, settings: PredictionSettings) -> Predictor:
    models = load_ensemble(folder, pick_device())
    return Predictor(models, read_manifest(folder, ModelFolder.KIND).hash, settings)

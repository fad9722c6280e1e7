"""Opening a model to predict scans with: a folder, an exported bundle, or a registered version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hepar.errors import ArtifactError
from hepar.export.bundle import model_in
from hepar.inference.model_folder import ModelFolder
from hepar.inference.prediction import load_ensemble
from hepar.inference.settings import PredictionSettings
from hepar.params import REGISTERED
from hepar.prediction.predicted_scan import Predictor
from hepar.runtime.artifacts import read_manifest
from hepar.runtime.device import pick_device, use_threads
from hepar.runtime.journal import finish_replacing


def open_predictor(model: str, settings: PredictionSettings, whole: bool = False) -> Predictor:
    """The model of `local_model`, on the device of this process; torch computes on all cores from then on.

    Raises ArtifactError if there is no such model.
    """
    use_threads(0)
    with local_model(model) as folder:
        finish_replacing(folder)
        if not folder.exists():
            raise ArtifactError(
                f"{model} does not exist: --model takes a model folder, an exported bundle,"
                f" {REGISTERED}NAME@ALIAS or {REGISTERED}NAME/VERSION"
            )
        models, own = load_ensemble(folder, pick_device()), read_manifest(folder, ModelFolder.KIND)
        return Predictor(models, own.hash, settings, whole)


@contextmanager
def local_model(model: str) -> Iterator[Path]:
    """The model folder of a folder, an exported bundle, or an address such as `models:/NAME@champion`.

    Raises ArtifactError if the registry has no such model.
    """
    if not model.startswith(REGISTERED):
        yield model_in(Path(model))
        return
    from hepar.registry.model_registry import downloaded_model

    with downloaded_model(model) as folder:
        yield folder

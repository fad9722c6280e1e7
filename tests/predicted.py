"""Predicted scans made by a network that knows its phantom: liver above 25 HU, tumour above 200 HU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from toy_model import toy_spec

from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.inference.prediction import Model
from hepar.inference.settings import PredictionSettings
from hepar.params import NetworkParams
from hepar.prediction.predicted_scan import PredictedScan, Predictor, predict_scan
from hepar.prediction.scans import open_scans

WINDOW = (-100.0, 300.0)


class Thresholds(nn.Module):
    """Probability 1 of the liver above 25 HU and of the tumour above 200 HU, 0 elsewhere; windowed to -1…1."""

    def forward(self, image_bcdhw: Tensor) -> Tensor:
        hu_bcdhw = (image_bcdhw + 1) * (WINDOW[1] - WINDOW[0]) / 2 + WINDOW[0]
        return torch.cat([100 * (hu_bcdhw - 25), 100 * (hu_bcdhw - 200)], dim=1)


def predictor(spacing_zyx_mm: tuple[float, float, float] = (3.0, 0.8, 0.7), **spec: Any) -> Predictor:
    plan = PreprocessingPlan(spacing_zyx_mm=spacing_zyx_mm, window_hu=WINDOW, mr_percentiles=(2.0, 98.0))
    changed = toy_spec(NetworkParams(name="none", config={})).model_copy(update={"plan": plan, **spec})
    settings = PredictionSettings(min_lesion_ml=0.0)
    return Predictor([Model(Thresholds(), changed, torch.device("cpu"))], "0123456789abcdef" * 4, settings)


def predicted(source: Path, uneven: str = "refuse", **spec: Any) -> PredictedScan:
    """The only scan of a source, predicted on a plan of its own spacing."""
    with open_scans(str(source), uneven) as found:  # type: ignore[arg-type]
        (scan,) = found.scans
        with scan.fetched() as here:
            return predict_scan(predictor(**spec), here)

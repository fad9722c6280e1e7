"""The process that predicts uploads; here it runs in the process of the test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from dicom_files import Placement, phantom_voxels, write_series
from predicted import predictor

import hepar.prediction.opening
from hepar.cases import Modality
from hepar.params import Uneven
from hepar.service import predicting
from hepar.service.predicting import NotPredicted, Order, Predicted, Ready, Served, run_predictions

UNEVEN = Placement(heights_mm=[0, 3, 6, 9, 12, 15, 18, 22, 26, 30, 34, 38])


class Line:
    """The process's end of its connection: one order comes in, answers are kept, then the parent is gone."""

    def __init__(self, order: Order) -> None:
        self.orders, self.answers = [order], []

    def recv(self) -> Order:
        if not self.orders:
            raise EOFError
        return self.orders.pop()

    def send(self, answer: Any) -> None:
        self.answers.append(answer)


def answer_to(series: Path, job: Path, uneven: Uneven, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The last word of the process on a zip of a series."""
    monkeypatch.setattr(predicting, "_settle", lambda: None)
    monkeypatch.setattr(predicting, "_bound_memory", lambda _: None)
    monkeypatch.setattr(hepar.prediction.opening, "open_predictor", lambda *_: predictor())
    shutil.make_archive(str(job / "upload"), "zip", series)
    line = Line(Order(job, "upload.zip", Modality.CT))
    run_predictions(line, Served("model", uneven=uneven), "")  # type: ignore[arg-type]
    assert line.answers[0] == Ready()
    return line.answers[-1]


def test_uneven_slices_are_refused_unless_the_service_resamples_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = tmp_path / "ct"
    write_series(series, phantom_voxels(), UNEVEN)
    for name in ("refuse", "resample"):
        (tmp_path / name).mkdir()
    refused = answer_to(series, tmp_path / "refuse", "refuse", monkeypatch)
    assert isinstance(refused, NotPredicted)
    assert "slices are evenly spaced: 3.00 to 4.00 mm" in refused.sentence
    done = answer_to(series, tmp_path / "resample", "resample", monkeypatch)
    assert isinstance(done, Predicted)
    assert len(done.scans) == 1

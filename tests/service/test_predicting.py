"""The process that predicts uploads; here it runs in the process of the test."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_files import Placement, phantom_voxels, write_series
from full_disk import SmallDisk
from predicted import predictor

import hepar.prediction.opening
import hepar.prediction.scans
from hepar.cases import Modality
from hepar.errors import DataError, DiskFull
from hepar.imaging.modality import UnclearModality
from hepar.params import Uneven
from hepar.service import predicting
from hepar.service.jobs import DISK_FULL
from hepar.service.predicting import FAILED_SENTENCE, NotPredicted, Order, Predicted, Ready, Served, run_predictions

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


NO_MEMORY = "the scan needs more memory than there is"
ENDS: list[tuple[Exception, str]] = [
    (OSError(errno.ENOSPC, "No space left on device"), DISK_FULL),
    (DiskFull("images/1.nii.gz cannot be written: No space left on device"), DISK_FULL),
    (MemoryError(), NO_MEMORY),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), NO_MEMORY),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), NO_MEMORY),
    (DataError("1.nii.gz cannot be read: Failed to allocate memory for image."), NO_MEMORY),
    (DataError("the scan has no liver"), "the scan has no liver"),
    (
        UnclearModality("the upload may be CT or MR by its values, 0 to 199"),
        "the upload may be CT or MR by its values, 0 to 199: choose CT or MR above and upload it again",
    ),
    (OSError(errno.EIO, "Input/output error"), FAILED_SENTENCE),
    (RuntimeError("shapes differ"), FAILED_SENTENCE),
]


@pytest.mark.parametrize(("error", "sentence"), ENDS, ids=lambda value: type(value).__name__)
def test_an_error_is_said_in_the_words_of_the_page_and_told_from_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    (tmp_path / "ct").mkdir()
    monkeypatch.setattr(hepar.prediction.scans, "open_scans", fail)
    answer = answer_to(tmp_path / "ct", tmp_path, "refuse", monkeypatch)
    assert isinstance(answer, NotPredicted)
    assert answer.sentence == sentence
    assert bool(answer.trace) == (sentence == FAILED_SENTENCE)


def test_a_zip_that_fills_the_disk_while_it_is_unpacked_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "IM0001").write_bytes(bytes(2**20))
    with SmallDisk(tmp_path, mounted=False).room(100):
        answer = answer_to(tmp_path / "ct", tmp_path, "refuse", monkeypatch)
    assert answer == NotPredicted(DISK_FULL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct"]


def test_the_image_for_the_page_is_whole_or_the_disk_is_full(tmp_path: Path) -> None:
    noise_zyx = np.random.default_rng(2).integers(-3000, 500, (20, 60, 80)).astype(np.float32)
    predicted = SimpleNamespace(image=sitk.GetImageFromArray(noise_zyx), modality=Modality.CT)
    path = tmp_path / "images" / "1.nii.gz"
    with SmallDisk(tmp_path, mounted=False).room(30), pytest.raises(DiskFull):
        predicting._write_image(predicted, path)
    assert list(tmp_path.rglob("*.nii.gz")) == []
    predicting._write_image(predicted, path)
    written_zyx = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert np.array_equal(written_zyx, np.maximum(noise_zyx, -2048))

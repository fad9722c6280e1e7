"""The process that predicts uploads, one after the other: it alone opens them, and may crash or run out of memory."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hepar.cases import Modality
from hepar.errors import DataError, DiskFull, HeparError
from hepar.imaging.modality import UnclearModality
from hepar.inference.settings import PredictionSettings
from hepar.params import Uneven
from hepar.runtime import whole_files
from hepar.runtime.shortages import is_out_of_memory
from hepar.service.jobs import DISK_FULL
from hepar.service.uploads import UploadKind

RESULTS, IMAGES, UNPACKED, ARCHIVE = "results", "images", "unpacked", "results.zip"
TELL_SECONDS = 0.2
FAST_COMPRESSION = 1  # of a scan that the page shows
FAILED_SENTENCE = "the prediction failed because of an error in hepar; its log has the details"
CHOOSE_MODALITY = "choose CT or MR above and upload it again"


@dataclass(frozen=True)
class Served:
    """What uploads are predicted with.

    `model` is a folder or a registered version. If `whole`, all windows of a scan are predicted, else those that matter
    to its liver. `uneven` says what is done with tilted or unevenly spaced DICOM slices.
    """

    model: str
    whole: bool = False
    uneven: Uneven = "refuse"


@dataclass(frozen=True)
class Order:
    """A job for the process: its folder, the name of the upload in it, and the modality if the user gave one."""

    folder: Path
    upload: str
    modality: Modality | None


@dataclass(frozen=True)
class PredictionStep:
    """What the process is doing, how many of its steps are done, and how many windows of the scan at hand."""

    text: str
    done: int
    total: int
    windows_done: int = 0
    windows: int = 0  # as far as they are known

    @property
    def percent(self) -> int:
        """How much is done, by scans and windows."""
        return int(100 * (self.done + self.windows_done / max(self.windows, 1)) / max(self.total, 1))


@dataclass(frozen=True)
class Predicted:
    """The scans of an upload and what was left out of it, as JSON values."""

    scans: tuple[dict[str, Any], ...]
    left_out: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class NotPredicted:
    """Why there is no result, for the user; `trace` is that of a bug, for the log."""

    sentence: str
    trace: str = ""


@dataclass(frozen=True)
class Ready:
    """The model is loaded."""


def run_predictions(connection: Connection, served: Served, device: str) -> None:
    """Load a model, on a CUDA device if one is named, then work on orders until the parent ends.

    Each `Order` is answered by `PredictionStep`s, and by `Predicted` or `NotPredicted` at last.
    """
    _settle()
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before torch is imported
    from hepar.prediction.opening import open_predictor

    try:
        predictor = open_predictor(served.model, PredictionSettings(), served.whole)
    except HeparError as error:
        connection.send(NotPredicted(str(error)))
        return
    _bound_memory(predictor.models[0].device.type)
    connection.send(Ready())
    with suppress(EOFError, OSError):
        while True:
            order: Order = connection.recv()
            connection.send(_outcome(predictor, served.uneven, order, connection.send))


def _settle() -> None:
    """What libraries print about a file goes nowhere, since it may name a patient; nor does a dump of the memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())


def _bound_memory(device: str) -> None:
    """Let this process run out of memory before the machine does. CUDA maps more than it uses, so not there."""
    from hepar.ingest.workers import usable_bytes

    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (usable_bytes(), resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _outcome(
    predictor: Any, uneven: Uneven, order: Order, tell: Callable[[PredictionStep], None]
) -> Predicted | NotPredicted:
    try:
        return _predict(predictor, uneven, order, tell)
    except Exception as error:
        if sentence := _shortage(error):
            return NotPredicted(sentence)
        if isinstance(error, HeparError):
            return NotPredicted(_for_the_page(error, order.folder))
        return NotPredicted(FAILED_SENTENCE, traceback.format_exc())
    finally:
        shutil.rmtree(order.folder / UNPACKED, ignore_errors=True)
        (order.folder / order.upload).unlink(missing_ok=True)


def _shortage(error: Exception) -> str:
    """What the machine has too little of, in a sentence, if that is why an error came; empty if it is not."""
    if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in whole_files.FULL):
        return DISK_FULL
    return "the scan needs more memory than there is" if is_out_of_memory(error) else ""


def _predict(predictor: Any, uneven: Uneven, order: Order, tell: Callable[[PredictionStep], None]) -> Predicted:
    from hepar.prediction.scans import open_scans
    from hepar.service.unpacking import unpack_numbered

    tell(PredictionStep("reading the upload", 0, 1))
    source = order.folder / order.upload
    if source.suffix == UploadKind.ZIP:
        unpack_numbered(source, order.folder / UNPACKED)
        source = order.folder / UNPACKED
    with open_scans(str(source), uneven) as found:
        left_out = [{"name": item.name, "reason": _without_paths(item.reason, order.folder)} for item in found.left_out]
        scans: list[dict[str, Any]] = []
        for number, scan in enumerate(found.scans):
            step = PredictionStep(f"predicting {scan.name}", number, len(found.scans))
            tell(step)
            try:
                scans.append(_predict_one(predictor, scan, order, len(scans) + 1, _window_teller(step, tell)))
            except DataError as error:
                if len(found.scans) == 1:
                    raise
                left_out.append({"name": scan.name, "reason": _for_the_page(error, order.folder)})
        if not scans:
            reasons = "; ".join(f"{item['name']}: {item['reason']}" for item in left_out)
            raise DataError(f"no scan was predicted: {reasons}")
    _archive(order.folder, [scan["measurements"]["scan"]["name"] for scan in scans])
    return Predicted(tuple(scans), tuple(left_out))


def _window_teller(step: PredictionStep, tell: Callable[[PredictionStep], None]) -> Callable[[int, int], None]:
    """Tells how many windows of a scan are predicted, at most every `TELL_SECONDS`."""
    told = 0.0

    def on_window(done: int, windows: int) -> None:
        nonlocal told
        if done == windows or time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            tell(replace(step, windows_done=done, windows=windows))

    return on_window


def _predict_one(
    predictor: Any, scan: Any, order: Order, number: int, on_window: Callable[[int, int], None]
) -> dict[str, Any]:
    """Predict a scan and write its results and the image that the page shows."""
    from hepar.prediction.predicted_scan import predict_scan
    from hepar.prediction.writing import write_prediction

    with scan.fetched() as here:
        nameless = replace(here, source="", folder="")  # the place of the upload is nobody's business
        predicted = predict_scan(predictor, nameless, order.modality, on_window)
        folder = order.folder / RESULTS / str(number)
        written = write_prediction(predicted, folder)
    _write_image(predicted, order.folder / IMAGES / f"{number}.nii.gz")
    files = sorted(path.name for path in folder.iterdir())
    return {"number": number, "measurements": written.scan.measurements(), "files": files, "problem": written.problem}


def _write_image(predicted: Any, path: Path) -> None:
    """Write the scan for the page: HU as int16, intensities of MR as they are. Raises DiskFull."""
    import SimpleITK as sitk

    from hepar.imaging.volumes import write_image

    image = predicted.image
    if predicted.modality == Modality.CT:
        image = sitk.Cast(
            sitk.Round(sitk.Clamp(sitk.Cast(image, sitk.sitkFloat32), lowerBound=-2048, upperBound=16383)),
            sitk.sitkInt16,
        )
    write_image(image, path, level=FAST_COMPRESSION)


def _archive(folder: Path, names: list[str]) -> None:
    """Put all results into one zip, a folder a scan."""
    with zipfile.ZipFile(folder / ARCHIVE, "w", zipfile.ZIP_STORED) as archive:
        for number, name in enumerate(names, start=1):
            for path in sorted((folder / RESULTS / str(number)).iterdir()):
                archive.write(path, f"{name}/{path.name}")


def _for_the_page(error: HeparError, folder: Path) -> str:
    """The sentence of an error for somebody who sees no option and no path."""
    sentence = f"{error.finding}: {CHOOSE_MODALITY}" if isinstance(error, UnclearModality) else str(error)
    return _without_paths(sentence, folder)


def _without_paths(text: str, folder: Path) -> str:
    """A sentence without the folder of the job, which only the service knows."""
    for place in {str(folder), str(folder.resolve())}:
        text = text.replace(f"{place}/", "").replace(place, "the upload")
    return text

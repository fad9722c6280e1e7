"""Writing what a prediction found: all files of a scan at once, or none."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from hepar.cases import STRUCTURES
from hepar.errors import DataError
from hepar.imaging.volumes import to_image
from hepar.inference.model_folder import ModelFolder
from hepar.prediction.folder import SCAN, PredictionFolder, check_replaceable
from hepar.prediction.outputs import Output
from hepar.prediction.page import overview_lines, render_page
from hepar.prediction.pictures import ScanPictures
from hepar.prediction.predicted_scan import PredictedScan
from hepar.runtime.artifacts import write_artifact
from hepar.runtime.whole_files import whole_file


def write_prediction(
    predicted: PredictedScan, folder: Path, outputs: Collection[Output] = tuple(Output), by_lesion: bool = True
) -> str:
    """Write the chosen outputs of a scan to a folder, which is replaced if it is a prediction of the same scan.

    A DICOM SR refers to the DICOM-SEG, so it brings that along; without DICOM input both are left out. If not
    `by_lesion`, all tumours are one segment. Returns a sentence if DICOM objects that were asked for are missing since
    the headers of the scan allow none or nothing was found, else an empty text. Raises DataError if nothing else was
    asked for and the headers allow none, or if the folder is something else.
    """
    scan_hash = predicted.scan.hash()
    check_replaceable(folder, scan_hash)
    objects, problem = {Output.SEG, Output.SR} & set(outputs), ""
    if objects == set(outputs) and predicted.scan.stack is None:
        scan = predicted.scan.source or predicted.scan.name
        raise DataError(f"{scan} is not DICOM, so there is neither DICOM-SEG nor SR")
    parents = {ModelFolder.KIND: predicted.predictor.model_hash, SCAN: scan_hash}
    with write_artifact(folder, PredictionFolder.KIND, parents) as partial:
        written, measurements = PredictionFolder(partial), predicted.measurements()
        if Output.MASKS in outputs:
            written.save_masks(_masks(predicted))
        if Output.JSON in outputs:
            written.save_measurements(measurements)
        if Output.CSV in outputs:
            written.save_tables(measurements)
        if objects and predicted.scan.stack is not None:
            try:
                problem = _write_objects(predicted, written, by_lesion, Output.SR in outputs)
            except DataError as error:
                if objects == set(outputs):
                    raise
                problem = f"{error}; there is neither DICOM-SEG nor SR"
        if {Output.PICTURE, Output.PAGE} & set(outputs):
            pictures = ScanPictures.of(predicted)
            overview = pictures.overview(overview_lines(predicted))
            if Output.PICTURE in outputs:
                written.save_picture(overview)
            if Output.PAGE in outputs:
                written.save_page(render_page(predicted, pictures, overview))
    return problem


def _masks(predicted: PredictedScan) -> dict[int, Any]:
    found = predicted.found
    masks_zyx = (found.liver_zyx, found.tumour_zyx)
    return {
        structure: to_image(mask_zyx, found.geometry)
        for structure, mask_zyx in enumerate(masks_zyx)
        if STRUCTURES[structure] in found.taught
    }


def _write_objects(predicted: PredictedScan, written: PredictionFolder, by_lesion: bool, with_report: bool) -> str:
    """Write the DICOM-SEG, and the SR `with_report`. Returns why there is no DICOM-SEG, if there is none."""
    from hepar.prediction.dicom_report import make_report
    from hepar.prediction.dicom_segmentation import make_segmentation, make_segments, read_sources

    sources, segments = read_sources(predicted), make_segments(predicted, by_lesion)
    segmentation = make_segmentation(predicted, segments, sources) if segments else None
    objects = {written.SEG: segmentation}
    if with_report:
        objects[written.SR] = make_report(predicted, sources, segments, segmentation)
    for name, made in objects.items():
        if made is not None:
            with whole_file(written.folder / name) as partial:
                made.save_as(partial)
    return "" if segments else f"{predicted.scan.name}: nothing was found, so there is no DICOM-SEG"

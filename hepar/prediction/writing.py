"""Writing what a prediction found: all files of a scan at once, or none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hepar.cases import STRUCTURES
from hepar.errors import DataError
from hepar.imaging.volumes import to_image
from hepar.inference.model_folder import ModelFolder
from hepar.prediction.dicom_objects import DicomObjects, make_objects
from hepar.prediction.folder import SCAN, PredictionFolder, check_replaceable
from hepar.prediction.outputs import Output
from hepar.prediction.page import overview_lines, render_page
from hepar.prediction.pictures import ScanPictures
from hepar.prediction.predicted_scan import PredictedScan
from hepar.runtime.artifacts import write_artifact
from hepar.runtime.whole_files import whole_file


@dataclass(frozen=True)
class Written:
    """The scan with the warnings that came up in writing, and why a DICOM object is missing, if one is."""

    scan: PredictedScan
    problem: str = ""


def write_prediction(
    predicted: PredictedScan, folder: Path, outputs: Collection[Output] = tuple(Output), by_lesion: bool = True
) -> Written:
    """Write the chosen outputs of a scan to a folder, which is replaced if it is a prediction of the same scan.

    A DICOM SR refers to the DICOM-SEG, so it brings that along; without DICOM input both are left out. If not
    `by_lesion`, all tumours are one segment. An object that the headers of the scan do not allow is left out, which is
    a warning in all other outputs. Raises DataError if nothing else was asked for and the headers allow none, or if the
    folder is something else.
    """
    scan_hash = predicted.scan.hash()
    check_replaceable(folder, scan_hash)
    wanted = {Output.SEG, Output.SR} & set(outputs)
    objects = DicomObjects({}, (), nothing_found=False)
    if wanted and predicted.scan.stack is not None:
        objects = make_objects(predicted, by_lesion, Output.SR in outputs)
        predicted = replace(predicted, warnings=(*predicted.warnings, *objects.warnings()))
    if wanted == set(outputs) and not objects.by_name and not objects.nothing_found:
        scan = predicted.scan.source or predicted.scan.name
        raise DataError("; ".join(objects.missing) or f"{scan} is not DICOM, so there is neither DICOM-SEG nor SR")
    parents = {ModelFolder.KIND: predicted.predictor.model_hash, SCAN: scan_hash}
    with write_artifact(folder, PredictionFolder.KIND, parents) as partial:
        written, measurements = PredictionFolder(partial), predicted.measurements()
        if Output.MASKS in outputs:
            written.save_masks(_masks(predicted))
        if Output.JSON in outputs:
            written.save_measurements(measurements)
        if Output.CSV in outputs:
            written.save_tables(measurements)
        for name, made in objects.by_name.items():
            with whole_file(partial / name) as path:
                made.save_as(path)
        if {Output.PICTURE, Output.PAGE} & set(outputs):
            pictures = ScanPictures.of(predicted)
            overview = pictures.overview(overview_lines(predicted))
            if Output.PICTURE in outputs:
                written.save_picture(overview)
            if Output.PAGE in outputs:
                written.save_page(render_page(predicted, pictures, overview))
    nothing = f"{predicted.scan.name}: nothing was found, so there is no DICOM-SEG" if objects.nothing_found else ""
    return Written(predicted, "; ".join(objects.missing) or nothing)


def _masks(predicted: PredictedScan) -> dict[int, Any]:
    found = predicted.found
    masks_zyx = (found.liver_zyx, found.tumour_zyx)
    return {
        structure: to_image(mask_zyx, found.geometry)
        for structure, mask_zyx in enumerate(masks_zyx)
        if STRUCTURES[structure] in found.taught
    }

"""Draws docs/images/clinic-*.png: what `hepar predict` writes, of a phantom whose own masks stand in for a model's.

Needs Chromium on the PATH. The liver is cut at the foot end, so that the page shows a warning.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from hepar.cases import Modality
from hepar.imaging.modality import guess_evidence
from hepar.imaging.preprocessing import PreprocessingPlan
from hepar.imaging.volumes import Geometry, to_image
from hepar.inference.model_folder import ModelSpec
from hepar.inference.prediction import Model, Segmentation
from hepar.inference.settings import PredictionSettings
from hepar.ingest.sources.source import VolumeFile
from hepar.params import NetworkParams
from hepar.phantoms.phantom import make_phantom
from hepar.prediction.folder import PredictionFolder
from hepar.prediction.measurements import measure
from hepar.prediction.out_of_distribution import check_scan
from hepar.prediction.outputs import Output
from hepar.prediction.predicted_scan import PredictedScan, Predictor
from hepar.prediction.scans import Scan
from hepar.prediction.writing import write_prediction

IMAGES = Path(__file__).parent / "images"
SEED, SEQUENCE, TUMOURS = 70, "portal-venous", 3
SIZE_ZYX, SPACING_ZYX_MM = (88, 256, 256), (3.0, 1.4, 1.4)
CUT = 32  # slices at the foot end
DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
LEARNED_LIVER = (0.1, 0.25)  # mean and SD of a preprocessed median
CONFIDENCE = 0.9
WIDTH, COLOURS = 1200, 256
OPTIONS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
LOADING_MS = 300_000  # without a GPU


def main() -> None:
    """Write the outputs of the phantom to a temporary folder, and picture the overview and the page."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        written = PredictionFolder(Path(temporary) / "phantom-ct")
        write_prediction(phantom_scan(), written.folder, (Output.PICTURE, Output.PAGE))
        save((written.folder / written.PICTURE).read_bytes(), "clinic-overview.png")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=OPTIONS)
            page = browser.new_page(viewport={"width": WIDTH, "height": 800})
            page.set_default_timeout(LOADING_MS)
            page.goto((written.folder / written.PAGE).as_uri())
            page.wait_for_selector("#view[data-shown]")
            save(page.screenshot(full_page=True), "clinic-page.png")
            browser.close()


def phantom_scan() -> PredictedScan:
    """A phantom as a predicted scan."""
    phantom = make_phantom(SEED, "CT", SEQUENCE, SIZE_ZYX, SPACING_ZYX_MM, TUMOURS)
    image_zyx, liver_zyx, tumour_zyx = phantom.image_zyx[CUT:], phantom.liver_zyx[CUT:], phantom.tumour_zyx[CUT:]
    grid = Geometry((len(image_zyx), *SIZE_ZYX[1:]), SPACING_ZYX_MM, (-180.0, -180.0, -130.0), DIRECTION)
    image, probability_rzyx = to_image(image_zyx, grid), np.stack([liver_zyx, tumour_zyx]) * np.float32(CONFIDENCE)
    found = Segmentation(liver_zyx, tumour_zyx, probability_rzyx, grid, ("liver", "tumour"), 0.0)
    plan = PreprocessingPlan(spacing_zyx_mm=SPACING_ZYX_MM, window_hu=(-45.0, 160.0), mr_percentiles=(2.0, 98.0))
    spec = ModelSpec(
        network=NetworkParams(name="none", config={}),
        plan=plan,
        patch_zyx=(32, 64, 64),
        modalities=(Modality.CT,),
        liver_intensity={Modality.CT: LEARNED_LIVER},
        origin={},
    )
    predictor = Predictor([Model(torch.nn.Identity(), spec, torch.device("cpu"))], "0" * 64, PredictionSettings())
    measured = measure(found, image_zyx, Modality.CT)
    warnings = check_scan(image, Modality.CT, found, measured, spec)
    scan = Scan("phantom-ct", VolumeFile(Path(__file__)))  # any file: by its content a result is known as the scan's
    return PredictedScan(
        scan,
        image,
        Modality.CT,
        f"intensities: {guess_evidence(image, Modality.CT)}",
        found,
        measured,
        warnings,
        predictor,
    )


def save(png: bytes, name: str) -> None:
    """Save a picture with as many colours as a palette has, so that it is small."""
    with Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()

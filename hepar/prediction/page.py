"""One self-contained HTML page of a predicted scan, with nothing from elsewhere; without scripts it has pictures."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from hepar.evaluation.research_use import RESEARCH_USE
from hepar.prediction.pictures import ScanPictures
from hepar.prediction.predicted_scan import PredictedScan
from hepar.viewer.embedding import EmbeddedViewer, embed_viewer
from hepar.viewer.reduced_scan import reduce_scan

LAYERS = (
    {"name": "liver", "label": "liver", "colour": "green", "visible": True, "key": "m"},
    {"name": "tumour", "label": "tumours", "colour": "orange", "visible": True, "key": "t"},
)
MAX_PICTURES = 20  # of the largest lesions
NOTHING = "–"


def overview_lines(predicted: PredictedScan) -> list[str]:
    """What stands below the overview."""
    measured = predicted.measured
    volumes = f"liver {_number(measured.liver_ml, 0, 'ml')}, tumours {_number(measured.tumour_ml, 1, 'ml')}"
    count = NOTHING if measured.tumour_ml is None else len(measured.lesions)
    burden = f"burden {_number(measured.burden_percent, 1, '%')}, lesions {count}"
    lines = [f"{predicted.scan.name} ({predicted.modality}): {volumes}, {burden}", predicted.predictor.description]
    if predicted.warnings:
        warned, first = len(predicted.warnings), predicted.warnings[0].message
        lines.append(f"1 warning: {first}" if warned == 1 else f"{warned} warnings, the first: {first}")
    return lines


def render_page(predicted: PredictedScan, pictures: ScanPictures, overview: bytes) -> str:
    """The page: warnings, the viewer or else the overview, volumes, and the lesions with their pictures."""
    environment = Environment(
        loader=PackageLoader("hepar.prediction"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = _number
    lesions = sorted(predicted.measured.lesions, key=lambda lesion: -lesion.diameters.longest.length_mm)
    return environment.get_template("page.html.j2").render(
        use=RESEARCH_USE,
        predicted=predicted,
        facts=predicted.measurements(),
        overview=_address(overview),
        viewer=_viewer(predicted, pictures),
        lesions=predicted.measured.lesions,
        knows_livers=predicted.modality in predicted.predictor.models[0].spec.liver_intensity,
        pictures=[(lesion, _address(pictures.lesion(lesion))) for lesion in lesions[:MAX_PICTURES]],
    )


def _viewer(predicted: PredictedScan, pictures: ScanPictures) -> EmbeddedViewer:
    """The viewer of the masks of what the model was taught."""
    masks_zyx = {"liver": pictures.liver_zyx, "tumour": pictures.tumour_zyx}
    taught = {name: mask_zyx for name, mask_zyx in masks_zyx.items() if name in predicted.found.taught}
    reduced = reduce_scan(pictures.image, predicted.modality, taught)
    shown = [layer for layer in LAYERS if layer["name"] in taught]
    return embed_viewer(shown, [reduced.facts(predicted.scan.name, predicted.modality)])


def _address(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _number(value: float | None, digits: int, unit: str = "") -> str:
    """The number with a minus sign, not a hyphen; none for a value that rounds to 0. A small volume is no zero."""
    if value is None:
        return NOTHING
    if digits and 0 < value < 0.5 * 0.1**digits:
        return f"<{0.1**digits:.{digits}f} {unit}".strip()
    return f"{value:z.{digits}f} {unit}".strip().replace("-", "−", 1 if value < 0 else 0)

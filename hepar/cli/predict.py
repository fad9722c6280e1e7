"""The command that segments a scan with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hepar.cases import Modality
from hepar.cli.models import PANEL
from hepar.cli.options import UNIVERSAL, UniversalModel
from hepar.errors import DataError
from hepar.inference.defaults import OVERLAP, VARIANTS
from hepar.inference.settings import Axis, PredictionSettings

OF_MODEL = "the model's own"

predict_app = typer.Typer()


@predict_app.command(rich_help_panel=PANEL)
def predict(
    image: Annotated[Path, typer.Argument(help="A scan in any format that SimpleITK reads.")],
    out: Annotated[Path, typer.Option(help="Label map to write: 0 background, 1 liver, 2 tumour.")],
    model: UniversalModel = UNIVERSAL,
    modality: Annotated[
        Modality | None,
        typer.Option(
            case_sensitive=False, help="Modality of the scan.", show_default="guessed where the values leave no doubt"
        ),
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0, max=0.9, help="Overlap of neighbouring windows, as a fraction.")
    ] = OVERLAP,
    variants: Annotated[
        int, typer.Option(min=1, help="Test-time variants of size and contrast to average, the plain one included.")
    ] = VARIANTS,
    mirror: Annotated[
        list[Axis] | None,
        typer.Option(help="Average with the scan mirrored along this axis of the patient; repeatable."),
    ] = None,
    tumour_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Probability that a tumour voxel exceeds.", show_default=OF_MODEL),
    ] = None,
    min_lesion_ml: Annotated[
        float | None,
        typer.Option(min=0, help="Predicted tumours smaller than this are dropped.", show_default=OF_MODEL),
    ] = None,
) -> None:
    """Segment liver and tumours of one scan on its own grid, and print their volumes and each lesion."""
    from hepar.imaging.modality import guess_modality
    from hepar.imaging.volumes import Geometry, check_writable, read_image, to_image, write_image
    from hepar.inference.prediction import load_ensemble, segment
    from hepar.runtime.device import pick_device, use_threads

    check_writable(out)
    if out.exists() and image.exists() and out.samefile(image):
        raise DataError(f"{out} is the scan itself: choose another file for the labels")
    use_threads(0)
    scan = read_image(image)
    kind = modality or guess_modality(scan, image)
    settings = PredictionSettings(overlap, variants, tuple(mirror or ()), tumour_threshold, min_lesion_ml)
    found = segment(load_ensemble(model, pick_device()), scan, kind, settings)
    write_image(to_image(found.labels_zyx, Geometry.of(scan)), out)
    print(json.dumps({"labels": str(out), "modality": str(kind), **found.rounded()}))

"""Commands for a model: predict with it, import published weights, promote a registered version or roll back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hepar.cases import Modality
from hepar.cli.options import PARAMS, UNIVERSAL, ParamsFile, UniversalModel
from hepar.errors import DataError
from hepar.inference.defaults import OVERLAP, VARIANTS
from hepar.inference.settings import Axis, PredictionSettings

PANEL = "Models"
OF_PARAMS = "that of the params file"
OF_MODEL = "the model's own"

models_app = typer.Typer()


@models_app.command(rich_help_panel=PANEL)
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


@models_app.command(rich_help_panel=PANEL)
def import_weights(
    checkpoint: Annotated[Path, typer.Argument(help="A published MedFormer checkpoint: .pt, .pth or .npz.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    params: ParamsFile = PARAMS,
    spacing: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Training spacing along z, y, x in millimetres.", show_default=OF_PARAMS),
    ] = None,
    patch: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Training patch along z, y, x in voxels.", show_default=OF_PARAMS),
    ] = None,
    window: Annotated[
        tuple[float, float] | None, typer.Option(help="Training window in HU.", show_default=OF_PARAMS)
    ] = None,
) -> None:
    """Import a published MedFormer checkpoint as a model folder; the params file defines network and preprocessing.

    params/full.yaml has the published setting.
    """
    import hepar.inference.import_weights
    from hepar.errors import ParamsError
    from hepar.imaging.preprocessing import make_preprocessing_plan
    from hepar.params import PreprocessingParams, load_params, read_section

    p = load_params(params)
    given = {"spacing_zyx_mm": spacing, "window_hu": window}
    given = {key: value for key, value in given.items() if value is not None}
    preprocessing = read_section(PreprocessingParams, p.preprocessing.model_dump() | given)
    if preprocessing.spacing_zyx_mm is None:
        raise ParamsError(f"{params}: preprocessing.spacing_zyx_mm is null: set it, or pass --spacing")
    plan = make_preprocessing_plan((), preprocessing)
    patch_zyx = patch or p.train_universal.training.patch_zyx
    hepar.inference.import_weights.run(checkpoint, out, p.network, plan, patch_zyx)
    print(out)


@models_app.command(rich_help_panel=PANEL)
def promote(
    version: Annotated[str, typer.Argument(help="Version number in the registry.")],
    params: ParamsFile = PARAMS,
    force: Annotated[bool, typer.Option(help="Promote even if a gate fails.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the decision and its reasons.")] = False,
) -> None:
    """Make a registered version the champion if it passes the gates; exits with code 1 if not."""
    import hepar.registry.champion
    from hepar.params import load_params

    decision = hepar.registry.champion.promote(version, load_params(params).register_model, force, dry_run)
    promoted = "would become champion" if dry_run else "champion"
    print("; ".join([f"version {version}: {promoted if decision.promote else 'not promoted'}", *decision.reasons]))
    if not decision.promote:
        raise typer.Exit(1)


@models_app.command(rich_help_panel=PANEL)
def rollback(params: ParamsFile = PARAMS) -> None:
    """Make the champion that the last promotion replaced the champion again."""
    import hepar.registry.champion
    from hepar.params import load_params

    done = hepar.registry.champion.rollback(load_params(params).register_model)
    print(
        f"version {done.restored}: champion again" + (f"; it replaces version {done.replaced}" if done.replaced else "")
    )

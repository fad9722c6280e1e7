"""Commands for a model: import published weights, export, promote a registered version or roll back."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hepar.cli.options import PARAMS, ParamsFile, ScoredCohort, scored_cohort

PANEL = "Models"
OF_PARAMS = "that of the params file"

models_app = typer.Typer()


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
    version: Annotated[
        str,
        typer.Argument(
            help="Version number in the registry, or a folder in which MODEL.yaml names it; digits are a number."
        ),
    ],
    cohort: ScoredCohort = None,
    params: ParamsFile = PARAMS,
    force: Annotated[bool, typer.Option(help="Promote even if a gate fails or nothing can be compared.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the decision and its reasons, and change no alias and no tag. Scores of cases that had to be"
            " scored anew are kept in MLflow all the same.",
        ),
    ] = False,
) -> None:
    """Make a registered version the champion if it passes the gates; exits with code 1 if not."""
    import hepar.registry.champion
    from hepar.params import load_register_params

    section, folder = load_register_params(params), scored_cohort(cohort)
    if version.isdecimal():
        version = str(int(version))
    elif Path(version).is_dir():
        version = _pointed_version(Path(version), section.model_name)
    decision = hepar.registry.champion.promote(version, section, force, dry_run, folder)
    if decision.reasons == (hepar.registry.champion.ALREADY_CHAMPION,):
        print(f"version {version} is the champion already; nothing {'would change' if dry_run else 'changed'}")
        return
    promoted = "would become champion" if dry_run else "champion"
    print("; ".join([f"version {version}: {promoted if decision.promote else 'not promoted'}", *decision.remarks]))
    if not decision.promote:
        raise typer.Exit(1)


def _pointed_version(folder: Path, model: str) -> str:
    from hepar.errors import DataError
    from hepar.retraining.run_report import pointed_version, pointers_file

    if not (version := pointed_version(folder, model)):
        raise DataError(f"{pointers_file(folder, model)} does not exist: give the number of a version")
    return version


@models_app.command(rich_help_panel=PANEL)
def rollback(params: ParamsFile = PARAMS) -> None:
    """Make the champion that the last promotion replaced the champion again."""
    import hepar.registry.champion
    from hepar.params import load_register_params

    done = hepar.registry.champion.rollback(load_register_params(params))
    print(
        f"version {done.restored}: champion again" + (f"; it replaces version {done.replaced}" if done.replaced else "")
    )


class ExportFormat(StrEnum):
    """What a model is exported as."""

    ONNX = "onnx"
    BUNDLE = "bundle"


@models_app.command(rich_help_panel=PANEL)
def export(
    model: Annotated[str, typer.Argument(help="Model folder, or a registered version: models:/NAME@ALIAS.")],
    out: Annotated[Path, typer.Argument(help="A file NAME.onnx, or a folder for the bundle.")],
    format_: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="onnx: the network as one file, with the preprocessing plan as metadata. bundle: a MONAI bundle, which"
            " MONAI's runner and hepar predict --model run.",
        ),
    ] = ExportFormat.BUNDLE,
) -> None:
    """Export a model for other programs. Research use only."""
    from hepar.export.exporting import export_bundle, export_onnx
    from hepar.prediction.opening import local_model

    with local_model(model) as folder:
        (export_onnx if format_ == ExportFormat.ONNX else export_bundle)(folder, out)
    print(out)

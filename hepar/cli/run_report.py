"""The command `report-run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hepar.cli.options import PARAMS, ParamsFile
from hepar.errors import DataError

PANEL = "Models"
NOTHING_NEW = 3  # the exit code if there is nothing to report
VERSIONS = Path("versions")  # the folder of pointers in a repository

run_report_app = typer.Typer()


@run_report_app.command(rich_help_panel=PANEL)
def report_run(
    version: Annotated[
        str, typer.Argument(help="Version number in the registry.", show_default="the newest version")
    ] = "",
    message: Annotated[
        Path | None,
        typer.Option(help="JSON that a run sent at its end; one that failed is reported instead of a version."),
    ] = None,
    pointers: Annotated[
        Path, typer.Option(help="Folder of MODEL.yaml, which names the last version that was reported.")
    ] = VERSIONS,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("build/report"),
    params: ParamsFile = PARAMS,
) -> None:
    """Report how a run ended: the version that it registered beside the champion it met, or why it failed.

    Writes report.md, title.txt, pointers.yaml and forest.png. Exit code 3 if the newest version is reported already.
    """
    from hepar.evaluation.summary import Bootstrap
    from hepar.params import load_register_params
    from hepar.retraining.run_report import describe_run, newest_version, no_version, pointed_version, read_failure

    section = load_register_params(params)
    if message is not None and (failure := read_failure(_json(message))) is not None:
        failure.write(out)
        print(f"{failure.title}: {out}")
        return
    number = version or newest_version(section.model_name)
    if not number:
        print(no_version(section.model_name))
        raise typer.Exit(NOTHING_NEW)
    if not version and pointed_version(pointers, section.model_name) == number:
        print(f"version {number} of {section.model_name} is reported already")
        raise typer.Exit(NOTHING_NEW)
    bootstrap = Bootstrap(section.gates.bootstrap_seed, section.gates.bootstrap_resamples)
    report = describe_run(section.model_name, number, bootstrap)
    report.write(out)
    print(f"{report.title}: {out}")


def _json(path: Path) -> object:
    try:
        found: object = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"--message is {path}, which cannot be read as JSON: {type(error).__name__}") from None
    return found

"""Commands for any artifact: verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hepar.cli.messages import print_message
from hepar.errors import ArtifactError

PANEL = "Data and settings"

artifacts_app = typer.Typer()


@artifacts_app.command(rich_help_panel=PANEL)
def verify(
    folder: Annotated[Path, typer.Argument(help="A cohort, model, pool, report or other folder that a stage wrote.")],
) -> None:
    """Hash every file of an artifact and list what is missing or damaged; exits with code 2 if anything is."""
    from hepar.runtime.artifacts import read_any_manifest
    from hepar.runtime.verification import find_damage

    manifest, damaged = read_any_manifest(folder), 0
    for damage in find_damage(folder, manifest, deep=True):
        damaged += 1
        print_message(f"{folder}: {damage}")
    if damaged:
        raise ArtifactError(f"{folder} is damaged: {damaged} of {len(manifest.files)} files")
    print(f"{folder}: {manifest.kind} {manifest.hash[:12]}, all {len(manifest.files)} files as sealed")

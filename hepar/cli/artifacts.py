"""Commands for any artifact: verify it, fetch what it has in the store."""

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
    from hepar.runtime.stored_files import is_stored
    from hepar.runtime.verification import find_damage

    manifest, damaged = read_any_manifest(folder), 0
    for damage in find_damage(folder, manifest, deep=True):
        damaged += 1
        print_message(f"{folder}: {damage}")
    if damaged:
        raise ArtifactError(f"{folder} is damaged: {damaged} of {len(manifest.files)} files")
    absent = sum(is_stored(folder, name) for name in manifest.files)
    stored = f"; {absent} more are in the store" if absent else ""
    here = len(manifest.files) - absent
    print(f"{folder}: {manifest.kind} {manifest.hash[:12]}, all {here} files as sealed{stored}")


@artifacts_app.command(rich_help_panel=PANEL)
def fetch(
    folder: Annotated[Path, typer.Argument(help="A cohort, pseudo-labels, pool or report that a pipeline handed on.")],
) -> None:
    """Fetch the files that an artifact has in the store (HEPAR_STORE), so that the folder is whole."""
    from hepar.runtime.artifacts import read_any_manifest
    from hepar.runtime.fetching import complete

    read_any_manifest(folder)
    print(f"{folder}: {complete(folder)} files fetched")

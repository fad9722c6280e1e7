"""The commands `hepar pool …`. Versions are kept by whatever announces itself as `hepar.pool_versions`."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated, Any

import typer

from hepar.cases import Cohort, Modality
from hepar.cli.options import (
    COHORT,
    POOL,
    TEACHER_CT,
    TEACHER_MR,
    CohortFolder,
    CtTeacher,
    MrTeacher,
    PoolFolder,
    TableFormat,
    print_table,
)
from hepar.runtime.artifacts import read_manifest

pool_app = typer.Typer(
    help="Versions of the pool, what changed between them, and what must hold of each.", no_args_is_help=True
)
Remote = Annotated[
    str,
    typer.Option(
        help="Where versions are kept: a folder or s3://BUCKET/PREFIX.",
        envvar="HEPAR_POOL_REMOTE",
        show_default="that of the DVC repository here",
    ),
]
REVISION = "A version, a pool folder, models:/NAME@ALIAS, or a git revision whose pool.dvc or dvc.lock names one."


def _versions() -> Any:
    return importlib.metadata.entry_points(group="hepar.pool_versions")["dvc"].load()


@pool_app.command()
def push(pool: PoolFolder = POOL, remote: Remote = "") -> None:
    """Push the content of a pool to a DVC remote, and print its version."""
    print(_versions().push(pool, remote))


@pool_app.command()
def pull(
    version: Annotated[str, typer.Argument(help="The version, models:/NAME@ALIAS, or a git revision that names one.")],
    pool: PoolFolder = POOL,
    remote: Remote = "",
) -> None:
    """Bring exactly that version of a pool to a folder."""
    _versions().pull(version, pool, remote)
    print(pool)


@pool_app.command()
def diff(
    old: Annotated[str, typer.Argument(help=REVISION)],
    new: Annotated[str, typer.Argument(help=REVISION)],
    remote: Remote = "",
    format: Annotated[TableFormat, typer.Option(help="How to print it.")] = TableFormat.TABLE,
) -> None:
    """List the cases that were added, removed or relabelled, with the Dice between old and new masks."""
    from hepar.pool.diff import changes, changes_frame, pairs
    from hepar.pool.table import IMAGE, LABELS

    versions = _versions()
    with versions.opened(old, remote) as before, versions.opened(new, remote) as after:
        for side, opened in enumerate((before, after)):
            differing = [pair[side] for pair in pairs(before.pool, after.pool)]
            opened.fetch([f"{entry.file}/{name}" for entry in differing for name in (IMAGE, LABELS)])
        frame = changes_frame(changes(before.pool, after.pool))
    if frame.empty and format == TableFormat.TABLE:
        print("no case differs")
    else:
        print_table(frame, format)


@pool_app.command()
def audit(
    pool: PoolFolder = POOL,
    cohort: CohortFolder = COHORT,
    teacher_ct: CtTeacher = TEACHER_CT,
    teacher_mr: MrTeacher = TEACHER_MR,
    only: Annotated[list[str] | None, typer.Option(help="Only this audit; may be given several times.")] = None,
) -> None:
    """Check what must hold of every pool; exits with code 1 where something does not."""
    from hepar.pool.audit import Subject, rule
    from hepar.pool.audit import audit as check
    from hepar.pool.table import Pool

    made_from, here = read_manifest(pool, "pool").parents["cohort"], read_manifest(cohort, "cohort").hash
    if made_from != here:
        print(f"{pool} was assembled from cohort {made_from[:12]}, it is checked against {here[:12]}", file=sys.stderr)
    teachers = {Modality.CT: teacher_ct, Modality.MR: teacher_mr}
    there = {modality: folder for modality, folder in teachers.items() if folder.is_dir()}
    found = check(Subject(Pool.load(pool), Cohort.load(cohort), there), only or ())
    for name, findings in found.items():
        print(f"{name}: {'holds' if not findings else f'{len(findings)} cases'}. {rule(name)}")
        for finding in findings:
            print(f"  case {finding.case_id}: {finding.what}")
    if any(found.values()):
        raise typer.Exit(1)

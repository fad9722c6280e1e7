"""The commands `hepar pool …`. Versions come from the entry point `hepar.pool_versions`: hepar imports no DVC."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from hepar.cases import Cohort, Modality
from hepar.cli.entry_points import load_entry_point
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
)
from hepar.cli.tables import print_frame
from hepar.runtime.artifacts import describe_mismatch, read_manifest
from hepar.runtime.environment import STORE_VARIABLE
from hepar.runtime.verification import verify_artifact

pool_app = typer.Typer(help="Version, compare and audit pools.", no_args_is_help=True)
Remote = Annotated[
    str,
    typer.Option(
        help="DVC remote that holds the versions: a folder or s3://BUCKET/PREFIX.",
        envvar=STORE_VARIABLE,
        show_default="default remote of the DVC repository",
    ),
]
REVISION = "Version, pool folder, models:/NAME@ALIAS, or git revision with a pool in pool.dvc or dvc.lock."


def pool_versions() -> Any:
    """The module that keeps the versions of pools, behind the entry point: hepar imports no DVC.

    Raises HeparError if it is not installed.
    """
    return load_entry_point("hepar.pool_versions", "dvc")


@pool_app.command()
def push(pool: PoolFolder = POOL, remote: Remote = "") -> None:
    """Push a pool to a DVC remote and print its version."""
    print(pool_versions().push(pool, remote))


@pool_app.command()
def pull(
    version: Annotated[str, typer.Argument(help="Version, models:/NAME@ALIAS, or git revision with a pool.")],
    pool: PoolFolder = POOL,
    remote: Remote = "",
) -> None:
    """Pull exactly this version of a pool into a folder."""
    pool_versions().pull(version, pool, remote)
    print(pool)


@pool_app.command()
def diff(
    old: Annotated[str, typer.Argument(help=REVISION)],
    new: Annotated[str, typer.Argument(help=REVISION)],
    remote: Remote = "",
    format: Annotated[TableFormat, typer.Option(help="Output format.")] = TableFormat.TABLE,
) -> None:
    """List cases that were added, removed, relabelled or changed, with the Dice of old and new targets."""
    from hepar.pool.arrays import PreprocessedArrays
    from hepar.pool.diff import diff_frame, diff_pools, differing_entries

    versions = pool_versions()
    with versions.open_pool(old, remote) as before, versions.open_pool(new, remote) as after:
        for side, opened in enumerate((before, after)):
            folders = [pair[side].arrays.folder for pair in differing_entries(before.pool, after.pool)]
            opened.fetch([f"{folder}/{name}" for folder in folders for name in PreprocessedArrays.FILES])
        frame = diff_frame(diff_pools(before.pool, after.pool))
    if frame.empty and format == TableFormat.TABLE:
        print("no differences")
    else:
        print_frame(frame, format)


@pool_app.command()
def audit(
    pool: PoolFolder = POOL,
    cohort: CohortFolder = COHORT,
    teacher_ct: CtTeacher = TEACHER_CT,
    teacher_mr: MrTeacher = TEACHER_MR,
    only: Annotated[list[str] | None, typer.Option(help="Run only this audit; repeatable.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file of pool, cohort and teachers first.")
    ] = False,
) -> None:
    """Audit a pool; exits with code 1 if it breaks a rule."""
    from hepar.inference.model_folder import ModelFolder
    from hepar.pool.audit import AuditContext, audit_rule, run_audits
    from hepar.pool.table import Pool

    made, given = read_manifest(pool, Pool.KIND), read_manifest(cohort, Cohort.KIND)
    if problem := describe_mismatch(pool, made, cohort, given):
        print(problem, file=sys.stderr)
    folders = {Modality.CT: teacher_ct, Modality.MR: teacher_mr}
    teachers = {modality: folder for modality, folder in folders.items() if folder.is_dir()}
    if verify:
        kinds = {pool: Pool.KIND, cohort: Cohort.KIND, **dict.fromkeys(teachers.values(), ModelFolder.KIND)}
        for folder, kind in kinds.items():
            verify_artifact(folder, kind, deep=True)
    found = run_audits(AuditContext(Pool.load(pool), Cohort.load(cohort), teachers), only or ())
    for name, violations in found.items():
        outcome = f"{len(violations)} violations" if violations else "passed"
        print(f"{name}: {outcome}. {audit_rule(name)}")
        for violation in violations:
            print(f"  case {violation.case_id}: {violation.problem}")
    if any(found.values()):
        raise typer.Exit(1)

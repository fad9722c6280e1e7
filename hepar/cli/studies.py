"""The command that runs a study: several arms at one budget, over seeds and folds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hepar.cli.entry_points import load_entry_point
from hepar.cli.evaluation import PANEL
from hepar.cli.options import SOURCE_HELP
from hepar.errors import ParamsError

STUDIES = "hepar.studies"  # the entry point group of ways to run a study

studies_app = typer.Typer()


@studies_app.command(rich_help_panel=PANEL)
def study(
    file: Annotated[Path, typer.Argument(help="The study, such as params/studies/modalities.yaml.")],
    source: Annotated[str | None, typer.Option(help=SOURCE_HELP)] = None,
    out: Annotated[
        Path, typer.Option(help="Where steps and reports are written; studies of one folder share their steps.")
    ] = Path("runs/studies"),
    jobs: Annotated[
        int, typer.Option(min=1, help="How many steps run at once; each has the threads of its params.")
    ] = 1,
    cluster: Annotated[
        Path | None,
        typer.Option(
            help="Run nothing here; compile the study to this pipeline for Kubeflow (.yaml). Not with --dry-run."
        ),
    ] = None,
    gather: Annotated[
        bool,
        typer.Option(
            "--gather", help="Run nothing here; report on what a cluster has finished, from HEPAR_STORE. With --source."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run nothing; list the steps and who shares them.")
    ] = False,
) -> None:
    """Train and score several arms at one budget, and say which claims about them hold.

    Arms share the steps whose inputs are equal. Finished steps are not run again: repeat the command to resume.
    """
    if dry_run and (cluster is not None or gather):
        raise ParamsError("--dry-run lists the steps of a run on this machine: leave out --cluster and --gather")
    if jobs > 1 and (cluster is not None or gather):
        raise ParamsError("--jobs is how many steps run at once on this machine: leave out --cluster and --gather")
    if cluster is not None and gather:
        raise ParamsError("--gather reports on a pipeline that has run: leave out --cluster")
    if gather:
        load_entry_point(STUDIES, "gather")(file, out, source)
    elif cluster is not None:
        load_entry_point(STUDIES, "cluster")(file, cluster, source)
    else:
        load_entry_point(STUDIES, "local")(file, out, source, dry_run, jobs)

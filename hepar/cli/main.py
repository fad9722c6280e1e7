"""The command `hepar`: all groups of commands, `--version`, and errors printed as one sentence.

Commands import what they run inside their functions, so that `hepar --help` starts fast.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from typer.exceptions import TyperException

from hepar import __version__
from hepar.cli.artifacts import artifacts_app
from hepar.cli.cluster import cluster_app
from hepar.cli.cohorts import cohorts_app
from hepar.cli.evaluation import evaluation_app
from hepar.cli.gates import PANEL, gates_app
from hepar.cli.lineage import lineage_app
from hepar.cli.messages import print_message
from hepar.cli.models import models_app
from hepar.cli.pool import pool_app
from hepar.cli.predict import predict_app
from hepar.cli.retraining import retraining_app
from hepar.cli.run_report import run_report_app
from hepar.cli.service import service_app
from hepar.cli.stages import stages_app
from hepar.cli.studies import studies_app
from hepar.cli.webhooks import webhooks_app
from hepar.errors import HeparError, Preempted
from hepar.runtime.redaction import redact

# disk full, file too large for the quota, not writable
USER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)

app = typer.Typer(
    help="Train one model that segments liver and liver tumours in CT and MR from partially labelled data. The stages"
    " run in this order: ingest, train-liver (CT, MR), pseudo-label, assemble-pool, train-universal, evaluate,"
    " register; 'run' runs them all.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for group in (
    stages_app,
    cohorts_app,
    artifacts_app,
    predict_app,
    service_app,
    models_app,
    lineage_app,
    retraining_app,
    run_report_app,
    evaluation_app,
    studies_app,
    cluster_app,
    gates_app,
):
    app.add_typer(group)
app.add_typer(pool_app, name="pool", rich_help_panel=PANEL)
app.add_typer(webhooks_app, name="webhook", rich_help_panel="Models")


@app.callback(invoke_without_command=True)
def _main(show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if show_version:
        print(f"hepar {__version__}")
        raise typer.Exit


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print an error that the user can fix as one sentence, and exit with code 2, or 75 if the command can resume."""
    try:
        yield
    except HeparError as error:
        print_message(str(error))
        sys.exit(os.EX_TEMPFAIL if isinstance(error, Preempted) else 2)
    except OSError as error:
        if error.errno not in USER_ERRNOS:
            raise
        print_message(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}")
        sys.exit(2)


def _run() -> None:
    """Run the command that is given. A mistake in its options is a sentence too; no command at all shows the help."""
    try:
        sys.exit(app(prog_name="hepar", standalone_mode=False))
    except (typer.Abort, EOFError):
        print_message("stopped")
        sys.exit(1)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            print(error.format_message(), file=sys.stderr)
        else:
            message = error.format_message().replace("Value error, ", "").rstrip(".")  # as pydantic begins them
            print_message(
                f"{message[:1].lower()}{message[1:]}" + (f"; see {context.command_path} --help" if context else "")
            )
        sys.exit(error.exit_code)


def main() -> None:
    """The entry point of the command line. The traceback of a bug is printed without secrets."""
    try:
        with errors_as_sentences():
            _run()
    except Exception:
        print(redact(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)

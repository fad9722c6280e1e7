"""The commands that hand work to a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from hepar.cli.entry_points import load_entry_point
from hepar.cli.options import PARAMS, ParamsFile
from hepar.errors import ParamsError

CLUSTER = "hepar.cluster"  # the entry point group of what these commands do
PANEL = "Cluster"
PIPELINE_FILE = "build/two_stage.yaml"  # written by `make compile`
# the namespace of runs, and the Kubernetes account of their steps; the runners of retraining have no options for them
NAMESPACE_VARIABLE, ACCOUNT_VARIABLE = "HEPAR_KFP_NAMESPACE", "HEPAR_KFP_SERVICE_ACCOUNT"

cluster_app = typer.Typer()


@dataclass(frozen=True)
class RunRequest:
    """What `hepar submit` was asked for; an empty endpoint is that of KFP's own settings."""

    package: Path
    overrides: dict[str, Any]
    name: str
    endpoint: str
    namespace: str
    service_account: str
    wait: bool
    dry_run: bool


@dataclass(frozen=True)
class TrainJobRequest:
    """What `hepar trainjob` was asked for; `out` is None for standard output."""

    params: Path
    nodes: int
    claim: str
    name: str
    namespace: str
    runtime: str
    service_account: str
    out: Path | None


@cluster_app.command(rich_help_panel=PANEL)
def submit(
    package: Annotated[Path, typer.Argument(help="The compiled pipeline, written by 'make compile'.")] = Path(
        PIPELINE_FILE
    ),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A param to change, as evaluate.overlap=0.75."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of the run, instead of the key over image, params, source and champion.")
    ] = "",
    endpoint: Annotated[str, typer.Option(envvar="KF_PIPELINES_ENDPOINT", help="Address of KFP.")] = "",
    namespace: Annotated[
        str, typer.Option(envvar=NAMESPACE_VARIABLE, help="Namespace of the run, where KFP has several users.")
    ] = "",
    service_account: Annotated[
        str, typer.Option(envvar=ACCOUNT_VARIABLE, help="Kubernetes account of the steps.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit with 0 only if it succeeded.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print name and changed inputs; start nothing.")] = False,
) -> None:
    """Start a compiled pipeline on Kubeflow Pipelines, once: a run of the same state is not started again."""
    request = RunRequest(package, _overrides(changes or []), name, endpoint, namespace, service_account, wait, dry_run)
    if not load_entry_point(CLUSTER, "submit")(request):
        raise typer.Exit(1)


@cluster_app.command(rich_help_panel=PANEL)
def trainjob(
    claim: Annotated[
        str, typer.Option(help="Claim of a volume that all pods can mount, with a working directory of 'hepar run'.")
    ],
    nodes: Annotated[int, typer.Option(min=1, help="Machines that train together.")] = 2,
    name: Annotated[str, typer.Option(help="Name of the TrainJob.")] = "hepar-train-universal",
    namespace: Annotated[str, typer.Option(help="Namespace of the TrainJob.")] = "hepar-runs",
    runtime: Annotated[str, typer.Option(help="ClusterTrainingRuntime for torch.")] = "torch-distributed",
    service_account: Annotated[str, typer.Option(help="Kubernetes account of the pods.")] = "",
    out: Annotated[Path | None, typer.Option(help="File to write, instead of standard output.")] = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Write 'train-universal' on several machines as a TrainJob of Kubeflow Trainer 2, for 'kubectl create -f'."""
    request = TrainJobRequest(params, nodes, claim, name, namespace, runtime, service_account, out)
    load_entry_point(CLUSTER, "trainjob")(request)


def _overrides(changes: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` as pairs; a value is read as in a params file. Raises ParamsError for anything else."""
    found: dict[str, Any] = {}
    for change in changes:
        key, mark, text = change.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if not key or not mark:
            raise ParamsError(f"--set is {change!r} but must be KEY=VALUE")
        found[key] = value
    return found

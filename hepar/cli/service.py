"""Commands for prediction as a service: the upload page with its API, and the listener of an Orthanc server."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from hepar.cli.models import PANEL
from hepar.cli.options import UNIVERSAL
from hepar.inference.settings import PredictionSettings
from hepar.service.limits import ServiceLimits

GIB = 2**30
DEFAULT = ServiceLimits()
ModelOption = Annotated[
    str,
    typer.Option("--model", help="Model folder, or a registered version: models:/NAME@ALIAS or models:/NAME/VERSION."),
]

service_app = typer.Typer()


@service_app.command(rich_help_panel=PANEL)
def serve(
    model: ModelOption = str(UNIVERSAL),
    host: Annotated[
        str, typer.Option(help="Address to listen on; put TLS in front of any but 127.0.0.1.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 0,
    queue: Annotated[int, typer.Option(min=1, help="Jobs that may wait or run at a time.")] = DEFAULT.waiting,
    keep_minutes: Annotated[
        float, typer.Option(min=0.05, help="Minutes until results are deleted.")
    ] = DEFAULT.kept_seconds / 60,
    max_upload_gib: Annotated[float, typer.Option(min=0.001, help="Largest upload, in GiB.")] = DEFAULT.upload_bytes
    / GIB,
    timeout_minutes: Annotated[
        float, typer.Option(min=0.05, help="Minutes that a prediction may take.")
    ] = DEFAULT.prediction_seconds / 60,
) -> None:
    """Serve a page and an API that predict uploaded scans. Research use only.

    The printed address holds the token; HEPAR_SERVE_TOKEN sets one.
    """
    from hepar.service.server import Address, serve_predictions

    limits = replace(
        DEFAULT,
        waiting=queue,
        kept_seconds=60 * keep_minutes,
        upload_bytes=int(max_upload_gib * GIB),
        prediction_seconds=60 * timeout_minutes,
    )

    def ready(address: str) -> None:
        print(f"Open {address} in a browser.")
        print("Press Ctrl-C to stop, which deletes all uploads and results.", flush=True)

    serve_predictions(model, PredictionSettings(), Address(host, port), limits, ready)

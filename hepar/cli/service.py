"""Commands for prediction as a service: the upload page with its API, and the listener of an Orthanc server."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from hepar.cli.messages import print_message
from hepar.cli.models import PANEL
from hepar.cli.options import UNIVERSAL, Uneven, UnevenSlices, Whole
from hepar.errors import StorageError
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
    uneven_slices: Uneven = UnevenSlices.REFUSE,
    whole: Whole = False,
) -> None:
    """Serve a page and an API that predict uploaded scans. Research use only.

    The printed address holds the token, unless HEPAR_SERVE_TOKEN sets one.
    """
    from hepar.service.predicting import Served
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

    serve_predictions(Served(model, whole, uneven_slices.value), Address(host, port), limits, ready)


@service_app.command(rich_help_panel=PANEL)
def listen(
    orthanc: Annotated[str, typer.Argument(help="Address of Orthanc, such as http://localhost:8042.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results, and for how far it has read.")],
    model: ModelOption = str(UNIVERSAL),
    dicomweb: Annotated[str, typer.Option(help="Path of Orthanc's DICOMweb.")] = "dicom-web",
    every_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="At the first start, predict also what is there already.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Look once and stop.")] = False,
    uneven_slices: Uneven = UnevenSlices.REFUSE,
    whole: Whole = False,
) -> None:
    """Predict each CT and MR series that arrives in Orthanc, and store DICOM-SEG and SR beside it. Research use only.

    Prints a line of JSON a scan. Stopped and started again, it goes on where it was.
    """
    from hepar.prediction.opening import open_predictor
    from hepar.runtime.device import catch_sigterm
    from hepar.service.listening import FeedPlace, Listener
    from hepar.service.orthanc import OrthancServer

    server = OrthancServer(orthanc, dicomweb)
    place = FeedPlace.load(out, server.last, from_start)
    predictor = open_predictor(model, PredictionSettings(), whole)
    listener = Listener(server, predictor, out, place, print_message, _print_json, uneven_slices.value)
    stopped = Event()
    with suppress(KeyboardInterrupt), catch_sigterm(stopped.set):
        while True:
            try:
                listener.look()
            except StorageError as error:
                if once:
                    raise
                print_message(str(error))
            if once or stopped.wait(every_seconds):
                return


def _print_json(found: dict[str, Any]) -> None:
    """Print one line at once, for a program that reads it."""
    print(json.dumps(found), flush=True)

"""Running the service: the processes that predict, the queue, and the web server, until it is interrupted."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Event, Thread

import uvicorn
from fastapi import FastAPI

from hepar.errors import DataError, HeparError
from hepar.runtime.device import catch_sigterm
from hepar.runtime.scratch import scratch_folder
from hepar.service.access import TOKEN_VARIABLE, service_token
from hepar.service.app import make_service
from hepar.service.connections import PromptProtocol
from hepar.service.jobs import Jobs
from hepar.service.lane import Lane, PredictionProcess
from hepar.service.limits import ServiceLimits
from hepar.service.metrics import ServiceMetrics
from hepar.service.predicting import Served

SWEEP_SECONDS = 5.0
GRACE_SECONDS = 5
CONNECTIONS = 200  # at a time; more are answered by 503
DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Address:
    """Where the service listens; port 0 picks a free one."""

    host: str = "127.0.0.1"
    port: int = 0

    def __str__(self) -> str:
        """As URLs have it: IPv6 in brackets."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def serve_predictions(served: Served, address: Address, limits: ServiceLimits, ready: Callable[[str], None]) -> None:
    """Serve until interrupted; `ready` receives the address of the page once the model is loaded.

    The address has the token if it was drawn here, and else the name of the variable that sets it, which may be secret.
    Uploads and results are deleted at the end. Raises DataError if the model cannot be loaded or the address is taken.
    """
    token, is_new = service_token()
    with _listening(address) as listener, scratch_folder("serve") as root:
        jobs = Jobs(root, limits)
        metrics = ServiceMetrics(jobs)
        lanes = [Lane(jobs, PredictionProcess(served, device), metrics.ended) for device in visible_devices()]
        with _running(jobs, lanes):
            shown = token if is_new else f"${TOKEN_VARIABLE}"
            ready(f"http://{replace(address, port=listener.getsockname()[1])}/?token={shown}")
            server = web_server(make_service(jobs, lanes, metrics, token))
            with suppress(KeyboardInterrupt), catch_sigterm():  # which uvicorn raises again once it has stopped
                server.run(sockets=[listener])


def web_server(app: FastAPI) -> uvicorn.Server:
    """The web server of an application."""
    configuration = uvicorn.Config(
        app,
        http=PromptProtocol,
        log_config=None,  # a log of requests would show tokens
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(configuration)


def visible_devices() -> list[str]:
    """The CUDA devices of this process by their names in CUDA_VISIBLE_DEVICES; one empty name, the CPU, without any."""
    given = os.environ.get(DEVICES_VARIABLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()] or [""]
    import pynvml

    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return [""]
    return [str(number) for number in range(count)] or [""]


@contextmanager
def _listening(address: Address) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except (OSError, OverflowError):
            raise DataError(f"{address} is not available: choose another --host or --port") from None
        listener.listen()
        yield listener


@contextmanager
def _running(jobs: Jobs, lanes: list[Lane]) -> Iterator[None]:
    """Load the models, all at once, and let the lanes work. Raises the error of a model that cannot be loaded."""
    stopped = Event()
    sweeper = Thread(target=_sweep, args=(jobs, stopped), daemon=True)
    try:
        with ThreadPoolExecutor(len(lanes)) as pool:
            for started in [pool.submit(lane.process.start) for lane in lanes]:
                started.result()
    except HeparError:
        for lane in lanes:
            lane.process.end()
        raise
    for thread in (*lanes, sweeper):
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        jobs.close()
        for thread in (*lanes, sweeper):
            thread.join()


def _sweep(jobs: Jobs, stopped: Event) -> None:
    while not stopped.wait(SWEEP_SECONDS):
        jobs.sweep()

"""The service in this process, on a free port of loopback; nothing predicts unless lanes do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hepar.service.app import make_service
from hepar.service.jobs import Jobs
from hepar.service.lane import Lane
from hepar.service.metrics import ServiceMetrics
from hepar.service.server import web_server


@contextmanager
def served_jobs(jobs: Jobs, token: str, lanes: Sequence[Lane] = ()) -> Iterator[str]:
    """The address of a service of these jobs."""
    app = make_service(jobs, list(lanes), ServiceMetrics(jobs), token)
    server = web_server(app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

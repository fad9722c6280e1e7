"""A receiver of MLflow's webhooks on loopback, which reads messages as a deployment would."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Condition

from loopback import served

from hepar.registry.webhooks import WebhookRefused, read_message


@dataclass
class Receiver:
    """What arrived: the versions that became champion, and why messages were refused."""

    url: str
    versions: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    changed: Condition = field(default_factory=Condition)

    def wait_for(self, count: int, seconds: float = 120) -> list[str]:
        """The versions, in the order of their numbers, as soon as there are so many of them."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.versions) >= count, seconds)
            assert self.refused == []
            return sorted(self.versions)


@contextmanager
def receiver(secret: str) -> Iterator[Receiver]:
    """A receiver that knows the secret, for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with made.changed:
                try:
                    found = read_message(dict(self.headers), body, secret, time.time)
                    status = 204
                    if found is not None:
                        made.versions.append(found.version)
                except WebhookRefused as error:
                    made.refused.append(str(error))
                    status = 403
                made.changed.notify_all()
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with served(Handler) as address:
        made = Receiver(f"{address}/champion")
        yield made

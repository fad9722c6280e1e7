"""A server on loopback that keeps the JSON that is posted to it, for notifications."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Inbox:
    """What was posted, in `bodies`; each is answered with `status`."""

    def __init__(self) -> None:
        self.bodies, self.status = list[Any](), 200
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                inbox.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(inbox.status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/s3cret-path"


@contextmanager
def opened_inbox() -> Iterator[Inbox]:
    """An inbox that answers until the context ends."""
    inbox = Inbox()
    Thread(target=inbox.server.serve_forever, daemon=True).start()
    try:
        yield inbox
    finally:
        inbox.server.shutdown()
        inbox.server.server_close()

"""A proxy before an S3 server that counts the bytes of each object, in both directions."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOP = ("connection", "transfer-encoding")  # headers of one connection, not of the message


@dataclass
class Traffic:
    """Bytes of bodies by the path of the object, since the last `take`."""

    sent: Counter[str] = field(default_factory=Counter)
    fetched: Counter[str] = field(default_factory=Counter)

    def take(self) -> Traffic:
        """What was counted, which is then forgotten."""
        taken = Traffic(self.sent, self.fetched)
        self.sent, self.fetched = Counter(), Counter()
        return taken


@contextmanager
def counting_proxy(server: str) -> Iterator[tuple[str, Traffic]]:
    """The address of a proxy before `server`, and what passes through it."""
    traffic, target = Traffic(), urlsplit(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            path = urlsplit(self.path).path
            body = self._read_body()
            upstream = http.client.HTTPConnection(str(target.hostname), target.port, timeout=60)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in (*HOP, "content-length", "expect"):
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (*HOP, "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)
            if self.command == "PUT":
                traffic.sent[path] += len(body)
            elif self.command == "GET":
                traffic.fetched[path] += len(content)

        def _read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, format: str, *args: object) -> None:
            pass

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", traffic
    finally:
        proxy.shutdown()
        proxy.server_close()

"""`hepar submit` where something before KFP redirects: an ingress, a proxy, a page to log in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest
from cluster.kfp_stand_in import PREFIX, KfpStandIn
from loopback import served

from hepar.cli.cluster import RunRequest
from hepar.errors import StorageError
from pipelines.kfp_server import TOKEN_VARIABLE, KfpServer
from pipelines.submission import submit_run

LOGIN, PAGE = "/login", b"<!doctype html><title>Who are you?</title>"


class Ingress:
    """It redirects what is below `PREFIX` to `target`, its own address if that is empty, and has a page at `LOGIN`."""

    def __init__(self, status: int, target: str, login: bool) -> None:
        self.status, self.target, self.login = status, target, login
        self.address = ""
        self.asked: list[str] = []  # method and path of each request

    def location(self, path: str) -> str:
        return LOGIN if self.login else f"{self.target}{path}"


@contextmanager
def ingress(status: int = 302, target: str = "", login: bool = False) -> Iterator[Ingress]:
    """An Ingress on a free port of loopback."""
    played = Ingress(status, target, login)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.play()

        def do_POST(self) -> None:
            self.play()

        def play(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            played.asked.append(f"{self.command} {self.path}")
            page = b"" if self.path.startswith(PREFIX) else PAGE
            self.send_response(200 if page else played.status)
            if not page:
                self.send_header("Location", played.location(self.path))
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *words: object) -> None:
            pass

    with served(Handler) as played.address:
        yield played


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_kfp_is_followed(
    kfp: KfpStandIn, request_: RunRequest, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with ingress(status, kfp.address) as between:
        assert submit_run(replace(request_, endpoint=between.address, wait=True))
    assert [len(made) for made in (kfp.runs, kfp.experiments, kfp.pipelines, kfp.versions)] == [1, 1, 1, 1]
    assert f"POST {PREFIX}/runs" in between.asked  # with its body
    assert "trying again" not in capsys.readouterr().err


def test_an_endless_redirect_is_given_up_at_once(request_: RunRequest, capsys: pytest.CaptureFixture[str]) -> None:
    with ingress() as endless, pytest.raises(StorageError) as raised:
        submit_run(replace(request_, endpoint=endless.address))
    assert str(raised.value) == f"{endless.address} cannot be reached: too many redirects"
    assert endless.asked == [f"GET {PREFIX}/healthz"] * 4  # once, and three redirects
    assert "trying again" not in capsys.readouterr().err


def test_a_page_to_log_in_is_no_answer(kfp: KfpStandIn, request_: RunRequest) -> None:
    with ingress(login=True) as closed:
        complaint = rf"^{closed.address} answers with a page, not as KFP does: .* {TOKEN_VARIABLE}"
        with pytest.raises(StorageError, match=complaint):
            submit_run(replace(request_, endpoint=closed.address))
        closed.login, closed.target = False, kfp.address
        server = KfpServer(closed.address)
        closed.login = True  # as when a session ends
        with pytest.raises(StorageError, match=complaint):
            server.run("run-1")


def test_a_token_that_a_redirect_drops_is_not_blamed(
    kfp: KfpStandIn, request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp.token = "sesame-and-more"
    monkeypatch.setenv(TOKEN_VARIABLE, kfp.token)
    dropped = pytest.raises(StorageError, match=r"answers 401 to its health: .* a redirect .* drops it$")
    with ingress(308, kfp.address) as between, dropped:
        submit_run(replace(request_, endpoint=between.address))

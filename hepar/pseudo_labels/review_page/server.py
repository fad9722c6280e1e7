"""The server of the review page: on the loopback interface, for pages of its own origin, with a token.

Every request must carry the token (in the address, or in the cookie that the first visit sets), name the loopback host,
and not come from a page of another origin. Files are looked up by case and name, never by path.
"""

from __future__ import annotations

import getpass
import hmac
import logging
import secrets
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, request, send_file
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from hepar import viewer
from hepar.errors import DataError, HeparError
from hepar.pseudo_labels.review_page.queue import as_json
from hepar.pseudo_labels.review_page.session import ReviewSession

HOST = "127.0.0.1"
COOKIE = "hepar_review"
STATIC = Path(__file__).parent / "static"
PAGES = {
    "": STATIC / "index.html",
    "review.js": STATIC / "review.js",
    "review.css": STATIC / "review.css",
    **viewer.FILES,
}
MAX_UPLOAD_BYTES = 2**30


def make_app(session: ReviewSession, token: str) -> Flask:
    """The Flask application of a session; it saves each decision before it answers."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_UPLOAD_BYTES
    _secure(app, token)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        return _json({"error": error.description}, error.code or 500)

    @app.errorhandler(HeparError)
    def hepar_error(error: HeparError) -> Response:
        return _json({"error": str(error)}, 422)

    @app.get("/", defaults={"name": ""})
    @app.get("/<name>")
    def page(name: str) -> Response:
        return send_file(PAGES[name]) if name in PAGES else abort(404, f"there is no page {name}")

    @app.get("/api/cases")
    def cases() -> Response:
        return _json(session.describe_all())

    @app.get("/files/<case_id>/<name>")
    def file(case_id: str, name: str) -> Response:
        return send_file(session.file(case_id, name).resolve(), mimetype="application/gzip")

    @app.post("/api/cases/<case_id>/<decision>")
    def decide(case_id: str, decision: str) -> Response:
        return _json(session.decide(case_id, decision))

    @app.post("/api/cases/<case_id>/mask")
    def correct(case_id: str) -> Response:
        upload = request.files.get("mask")
        if upload is None:
            abort(400, "the upload has no file named mask")
        return _json(session.correct(case_id, upload))

    return app


def _secure(app: Flask, token: str) -> None:
    """Check every request, and set the headers and the cookie of every answer."""

    @app.before_request
    def check() -> None:
        _check_request(token)

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.update(viewer.SECURITY_HEADERS)
        if hmac.compare_digest(request.args.get("token", "").encode(), token.encode()):
            response.set_cookie(_cookie(), token, httponly=True, samesite="Strict")
        return response


def _check_request(token: str) -> None:
    host = request.host.rsplit(":", 1)[0]
    if host not in (HOST, "localhost"):
        abort(403, f"this page is served to {HOST} only")
    given = request.args.get("token") or request.cookies.get(_cookie(), "")
    if not hmac.compare_digest(given.encode(), token.encode()):
        abort(403, "the token is missing or wrong: open the address that `hepar review` printed")
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{request.host}":
        abort(403, "requests from another origin are refused")
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        abort(403, "requests from another origin are refused")


def _cookie() -> str:
    """The cookie's name, with the port: browsers share cookies between the ports of a host."""
    return f"{COOKIE}_{request.host.rpartition(':')[2]}"


def _json(value: Any, status: int = 200) -> Response:
    return Response(as_json(value), status, mimetype="application/json")


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container whose user has no name
        raise DataError("the user of this process has no name: set --who") from None


def serve(
    cohort: Path, pseudo: Path, reviews: Path, port: int = 0, who: str = "", ready: Callable[[str], None] = print
) -> None:
    """Serve the page until interrupted; `ready` receives its address with the token. Port 0 picks a free port.

    Raises ArtifactError if `cohort` or `pseudo` is not such an artifact, DataError if the port is taken.
    """
    token = secrets.token_urlsafe(24)
    app = make_app(ReviewSession(cohort, pseudo, reviews, who or _user_name()), token)
    try:
        with redirect_stderr(StringIO()):  # werkzeug prints a message of its own if the port is taken
            server = make_server(HOST, port, app, threaded=True)
    except (OSError, SystemExit):
        raise DataError(f"port {port} is not available: choose another --port") from None
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its request log would show the token
    with suppress(KeyboardInterrupt):
        ready(f"http://{HOST}:{server.server_port}/?token={token}")
        server.serve_forever()
    server.server_close()

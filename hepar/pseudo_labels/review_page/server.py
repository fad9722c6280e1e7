"""The server of the review page: on loopback, for whoever has the token, for pages of its own origin.

Every request has to carry the token (in the address, or in the cookie that the first visit sets), to name the loopback
host, and not to come from a page of another origin. Files are looked up by case and name, never by path.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask, Response, abort, request, send_file
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from hepar.errors import DataError, HeparError
from hepar.imaging.volumes import Geometry, canonical, read_header, read_image, to_array, write_image
from hepar.pseudo_labels.review_page.queue import KIND, Waiting, as_json, describe, read_queue, read_reviews
from hepar.pseudo_labels.reviews import MASKS, Decision, Review, append, now
from hepar.runtime.artifacts import read_manifest

HOST = "127.0.0.1"
COOKIE = "hepar_review"
STATIC = Path(__file__).parent / "static"
PAGES = {"": "index.html", "review.js": "review.js", "review.css": "review.css", "niivue.js": "vendor/niivue.umd.js"}
MAX_UPLOAD = 2**30
FILE_NAME = re.compile(r"^([a-z]+)\.nii\.gz$")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src blob:; img-src 'self' data: blob:;"
        " connect-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(cohort: Path, pseudo: Path, reviews: Path, token: str, who: str) -> Flask:
    """The application; decisions go to the folder `reviews` at once. Raises ArtifactError where an input is none."""
    queue, drawn = read_queue(cohort, pseudo), read_manifest(pseudo, KIND).hash
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_UPLOAD

    def waiting(case_id: str) -> Waiting:
        if read_manifest(pseudo, KIND).hash != drawn:
            abort(409, "the pseudo-livers were drawn anew meanwhile: end `hepar review` and start it again")
        return queue[case_id] if case_id in queue else abort(404, f"case {case_id} has no pseudo-liver")

    def decided(item: Waiting, decision: Decision, mask_sha256: str = "") -> Response:
        so_far = read_reviews(reviews)  # nothing is added to a list that cannot be read
        earlier = so_far.of(item.case, item.row["mask_sha256"])
        if decision == Decision.ACCEPT and earlier is not None and earlier.decision == Decision.CORRECT:
            decision, mask_sha256 = Decision.CORRECT, earlier.mask_sha256  # that mask is on the screen
        append(
            reviews,
            Review(
                case_id=item.case.case_id,
                decision=decision,
                who=who,
                when=now(),
                image_sha256=item.case.image_sha256,
                judged_sha256=item.row["mask_sha256"],
                mask_sha256=mask_sha256,
            ),
        )
        return _json(describe(item, read_reviews(reviews)))

    @app.before_request
    def guard() -> None:
        _guard(token)

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.update(HEADERS)
        if hmac.compare_digest(request.args.get("token", "").encode(), token.encode()):
            response.set_cookie(_cookie(), token, httponly=True, samesite="Strict")
        return response

    @app.errorhandler(HTTPException)
    def say(error: HTTPException) -> Response:
        return _json({"error": error.description}, error.code or 500)

    @app.errorhandler(HeparError)
    def refuse(error: HeparError) -> Response:
        return _json({"error": str(error)}, 422)

    @app.get("/", defaults={"name": ""})
    @app.get("/<name>")
    def page(name: str) -> Response:
        return send_file(STATIC / PAGES[name]) if name in PAGES else abort(404, "there is no such page")

    @app.get("/api/cases")
    def cases() -> Response:
        so_far = read_reviews(reviews)
        return _json([describe(item, so_far) for item in queue.values()])

    @app.get("/files/<case_id>/<name>")
    def file(case_id: str, name: str) -> Response:
        item, found = waiting(case_id), FILE_NAME.match(name)
        if found and found[1] == "corrected":
            so_far = read_reviews(reviews)
            review = so_far.of(item.case, item.row["mask_sha256"])
            if review is not None and review.mask_sha256:
                return send_file(so_far.corrected_mask(review).resolve(), mimetype="application/gzip")
        path = item.files.get(found[1]) if found else None
        return send_file(path.resolve(), mimetype="application/gzip") if path else abort(404, "there is no such file")

    @app.post("/api/cases/<case_id>/<word>")
    def decide(case_id: str, word: str) -> Response:
        if word not in (Decision.ACCEPT, Decision.REJECT):
            abort(404, f"{word} is no decision")
        return decided(waiting(case_id), Decision(word))

    @app.post("/api/cases/<case_id>/mask")
    def correct(case_id: str) -> Response:
        item, uploaded = waiting(case_id), request.files.get("mask")
        if uploaded is None:
            abort(400, "the upload has no file named mask")
        with tempfile.TemporaryDirectory(prefix="hepar-") as scratch:
            ending = ".nii" if (uploaded.filename or "").lower().endswith(".nii") else ".nii.gz"
            path = Path(scratch) / f"mask{ending}"
            uploaded.save(path)
            try:
                digest = keep_mask(item, path, reviews / MASKS)
            except DataError as error:
                raise DataError(str(error).replace(str(path), uploaded.filename or "the upload")) from None
            return decided(item, Decision.CORRECT, digest)

    return app


def _cookie() -> str:
    """The cookie's name, which tells servers on other ports apart: to a browser they are one host."""
    return f"{COOKIE}_{request.host.rpartition(':')[2]}"


def _guard(token: str) -> None:
    host = request.host.rsplit(":", 1)[0]
    if host not in (HOST, "localhost"):
        abort(403, "this page answers on loopback alone")
    given = request.args.get("token") or request.cookies.get(_cookie(), "")
    if not hmac.compare_digest(given.encode(), token.encode()):
        abort(403, "the token is missing or wrong: open the address that `hepar review` has printed")
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{request.host}":
        abort(403, "this page talks to its own origin alone")
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        abort(403, "this page talks to its own origin alone")


def _json(value: Any, status: int = 200) -> Response:
    return Response(as_json(value), status, mimetype="application/json")


def keep_mask(item: Waiting, uploaded: Path, folder: Path) -> str:
    """Check a corrected mask and keep it by its content, compressed: its SHA-256.

    Its axes may be in another order or direction than the image's, as some tools leave them. Raises DataError where it
    cannot be read, is not on the image's grid, holds other values than 0 and 1, or is empty.
    """
    name, wanted = item.case.case_id, Geometry.of(read_image(item.files["image"]))
    size = read_header(uploaded).GetSize()
    if sorted(size) != sorted(wanted.size_zyx):  # before its voxels take memory
        raise DataError(f"case {name}: the mask is {_times(size)} but the image is {_times(wanted.size_zyx[::-1])}")
    mask = canonical(read_image(uploaded))
    own = Geometry.of(mask)
    if not np.allclose(own.direction, wanted.direction, atol=1e-3):
        raise DataError(f"case {name}: the mask's axes have another direction than the image's: it was turned")
    if not own.agrees_with(wanted):
        raise DataError(
            f"case {name}: the mask has spacing {own.spacing_zyx_mm} zyx and origin {own.origin_xyz_mm}, but the image"
            f" has {wanted.spacing_zyx_mm} and {wanted.origin_xyz_mm}"
        )
    array = to_array(mask)
    if strange := sorted(set(np.unique(array).tolist()) - {0, 1}):
        raise DataError(f"case {name}: a mask holds 0 and 1 only, this one has {strange[0]:g}")
    if not array.any():
        raise DataError(f"case {name}: the mask is empty; reject the pseudo-liver instead")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{os.getpid()}-{secrets.token_hex(4)}.nii.gz"
    write_image(mask, partial)
    with partial.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    partial.replace(folder / f"{digest}.nii.gz")
    return digest


def _times(size_xyz: tuple[int, ...]) -> str:
    return "×".join(map(str, size_xyz))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # as in a container whose user has no name
        raise DataError("the user of this process has no name: give --who") from None


def serve(
    cohort: Path, pseudo: Path, reviews: Path, port: int = 0, who: str = "", ready: Callable[[str], None] = print
) -> None:
    """Serve the page until it is interrupted; `ready` hears its address, token and all. Port 0 takes a free one.

    Raises ArtifactError where an input is none, DataError where the port is taken.
    """
    token = secrets.token_urlsafe(24)
    app = make_app(cohort, pseudo, reviews, token, who or _user())
    try:
        with redirect_stderr(StringIO()):  # of a port that is taken werkzeug says more than we do
            server = make_server(HOST, port, app, threaded=True)
    except (OSError, SystemExit):
        raise DataError(f"port {port} cannot be taken: another program may have it, give another --port") from None
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its lines would show the token
    ready(f"http://{HOST}:{server.server_port}/?token={token}")
    with suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()

"""Who may use the service: whoever has its token, from no page of another origin."""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hepar import viewer
from hepar.errors import ParamsError

TOKEN_VARIABLE = "HEPAR_SERVE_TOKEN"
MIN_TOKEN = 20  # characters
COOKIE = "hepar_serve"
OPEN_PATHS = ("/healthz", "/readyz")


def service_token() -> tuple[str, bool]:
    """The token of the environment, else a new one, and whether it is new. Raises ParamsError if it is too short."""
    given = os.environ.get(TOKEN_VARIABLE, "")
    if given and len(given) < MIN_TOKEN:
        raise ParamsError(f"{TOKEN_VARIABLE} has {len(given)} characters but must have at least {MIN_TOKEN}")
    return given or secrets.token_urlsafe(24), not given


class Access:
    """ASGI middleware: refuses strangers, and sets the headers and the cookie of every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        hardened = self._hardened(request, send)
        if problem := self._problem(request):
            status, sentence = problem
            await JSONResponse({"error": sentence}, status)(scope, receive, hardened)
            return
        await self.app(scope, receive, hardened)

    def _hardened(self, request: Request, send: Send) -> Callable[[Message], Awaitable[None]]:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in viewer.SECURITY_HEADERS.items():
                    headers.setdefault(name, value)  # a page may have a stricter policy
                if self._is_token(request.query_params.get("token", "")):
                    headers.append("Set-Cookie", f"{_cookie(request)}={self.token}; HttpOnly; Path=/; SameSite=Strict")
            await send(message)

        return sending

    def _problem(self, request: Request) -> tuple[int, str] | None:
        """The status and sentence of a refusal; None if a request may pass."""
        if request.url.path in OPEN_PATHS:
            return None
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = bearer.strip()
        else:  # that of a login before the service, if there is one
            given = request.query_params.get("token") or request.cookies.get(_cookie(request), "")
        if not self._is_token(given):
            return 401, "the token is missing or wrong: send it as Authorization: Bearer TOKEN, or open /?token=TOKEN"
        origin = request.headers.get("Origin")
        if origin is not None and _host(origin) != request.headers.get("Host"):
            return 403, "requests from another origin are refused"
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return 403, "requests from another origin are refused"
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def _host(origin: str) -> str:
    """Host and port of an origin; empty if it has none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _cookie(request: Request) -> str:
    """The cookie's name, with the port: browsers share cookies between the ports of a host."""
    return f"{COOKIE}_{request.url.port or 0}"

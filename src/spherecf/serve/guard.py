"""Checks before every request, and error responses of one sentence."""

import logging
import math
import secrets
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spherecf.errors import InputError, StorageError
from spherecf.serve.access import Access, Limits, RateLimiter

LOG = logging.getLogger("spherecf.serve")
_SENTENCES = {404: "There is no such page.", 405: "This method is not allowed here."}


def install(app: FastAPI) -> None:
    """Answer every error of the application as ``{"error": sentence}``."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(InputError, _input)
    app.add_exception_handler(StorageError, _storage)
    app.add_exception_handler(ClientDisconnect, _disconnected)


async def _refused(request: Request, error: Any) -> JSONResponse:
    said = str(error.detail)  # the status in words where nobody said more
    unsaid = said == HTTPStatus(error.status_code).phrase
    answer = problem(error.status_code, _SENTENCES.get(error.status_code, said) if unsaid else said)
    answer.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # the framework names those of one handler only
        verbs = request.app.openapi()["paths"].get(request.url.path)
        answer.headers.update({"Allow": ", ".join(verbs).upper()} if verbs else {})
    return answer


async def _invalid(request: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body"))
    return problem(422, f"{where or 'the request'}: {first['msg']}.")


async def _input(request: Request, error: Exception) -> JSONResponse:
    return problem(422, str(error))


async def _storage(request: Request, error: Exception) -> JSONResponse:
    LOG.error("the gallery failed: %s", error)
    return problem(503, "The gallery cannot be read or written at the moment.", retry_after=30.0)


async def _disconnected(request: Request, error: Exception) -> JSONResponse:
    return problem(400, "The connection was closed before all photos had arrived.")


def unexpected(path: str, error: Exception) -> JSONResponse:
    """The response to an unexpected error, with a reference to the details in the log."""
    reference = secrets.token_hex(4)
    LOG.error("unexpected error %s at %s", reference, path, exc_info=error)
    return problem(500, f"Internal error. The service's log has details under {reference}.")


def problem(status: int, sentence: str, *, retry_after: float = 0.0) -> JSONResponse:
    """An error response of one sentence."""
    headers = {"Retry-After": str(math.ceil(retry_after))} if retry_after else {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": sentence}, status, headers)


POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Guard:
    """Check framing, host name, origin, rate, token and pending requests, in this order; add headers.

    Args:
        app: the application to guard.
        open_paths: paths that need no token (the page and its files); all others do, even unknown ones.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, open_paths: frozenset[str]) -> None:
        self._app, self._access, self._limits, self._open = app, access, limits, open_paths
        self._limiter = RateLimiter(limits.requests_per_minute / 60, limits.burst)
        self._pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # no web sockets
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refuse(scope)
        if refused is not None:
            await refused(scope, receive, with_headers)
            return
        counted = scope["method"] == "POST"
        if counted and self._pending >= self._limits.max_pending:
            busy = "The service is busy. Try again in a moment."
            await problem(503, busy, retry_after=2.0)(scope, receive, with_headers)
            return
        self._pending += counted
        try:
            await self._app(scope, receive, with_headers)
        except Exception as error:
            answer = unexpected(scope["path"], error)
            if not begun:
                await answer(scope, receive, with_headers)
        finally:
            self._pending -= counted

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers and "content-length" in headers:
            # A proxy may end this request elsewhere than we do, and take its rest for another caller's.
            answer = problem(
                400, "Both Content-Length and Transfer-Encoding were sent: expected one of them."
            )
            answer.headers["Connection"] = "close"
            return answer
        if len(headers.getlist("host")) != 1 or not self._access.knows_host(headers["host"]):
            return problem(
                421,
                "This host name is not allowed; start the service with --allow-host to add it.",
            )
        if scope["path"] in self._open:
            return None
        if not self._access.same_origin(headers):
            return problem(403, "Requests from pages of other sites are not allowed.")
        wait = self._limiter.wait((scope.get("client") or ("unknown", 0))[0])
        if wait:
            return problem(429, f"Too many requests. Try again in {math.ceil(wait)} s.", retry_after=wait)
        if not self._access.knows_token(headers):
            return problem(
                401,
                "The access token is missing or wrong. Send the token that the service printed at "
                "its start as the header Authorization: Bearer TOKEN.",
            )
        return None

"""What every request passes first, and the one sentence that answers whatever goes wrong."""

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
from spherecf.serve.access import Access, Buckets, Limits

LOG = logging.getLogger("spherecf.serve")
_SENTENCES = {404: "There is nothing at this address.", 405: "This address does not take that method."}


def install(app: FastAPI) -> None:
    """Have every error of the application answered in the shape ``{"error": sentence}``."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(InputError, _input)
    app.add_exception_handler(StorageError, _storage)
    app.add_exception_handler(ClientDisconnect, _gone)


async def _refused(request: Request, error: Any) -> JSONResponse:
    answer = problem(error.status_code, _SENTENCES.get(error.status_code, str(error.detail)))
    answer.headers.update(error.headers or {})
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


async def _gone(request: Request, error: Exception) -> JSONResponse:
    return problem(400, "The connection was closed before the photos had arrived.")


def unexpected(path: str, error: Exception) -> JSONResponse:
    """The answer to an error that nobody foresaw; the log has more, under the reference that both name."""
    reference = secrets.token_hex(4)
    LOG.error("unexpected error %s at %s", reference, path, exc_info=error)
    return problem(500, f"Something went wrong in the service. Its log has more under {reference}.")


def problem(status: int, sentence: str, *, retry_after: float = 0.0) -> JSONResponse:
    """An answer that says what is wrong, in one sentence."""
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
    """Names, origins, rate, token and number of requests at once, in this order; headers on every answer.

    Args:
        app: what is guarded.
        open_paths: what needs no token: the page and its files. Everything else does, known or not.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, open_paths: frozenset[str]) -> None:
        self._app, self._access, self._limits, self._open = app, access, limits, open_paths
        self._buckets = Buckets(limits.requests_per_minute / 60, limits.burst)
        self._pending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:  # there are no web sockets here
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
            busy = "The service is busy with other photos. Try again in a moment."
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
        if len(headers.getlist("host")) != 1 or not self._access.knows_host(headers["host"]):
            return problem(
                421,
                "This service does not answer under that host name; start it with --allow-host to add one.",
            )
        if scope["path"] in self._open:
            return None
        if not self._access.same_origin(headers):
            return problem(403, "Requests from pages of other sites are refused.")
        wait = self._buckets.wait((scope.get("client") or ("unknown", 0))[0])
        if wait:
            return problem(429, f"Too many requests. Try again in {math.ceil(wait)} s.", retry_after=wait)
        if not self._access.knows_token(headers):
            return problem(
                401,
                "The access token is missing or wrong. Send it as the header Authorization: Bearer TOKEN; it "
                "was printed when the service started.",
            )
        return None

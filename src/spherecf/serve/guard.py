"""Checks of every request, and error responses as one sentence."""

import logging
import math
import secrets
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spherecf.errors import InputError, StorageError
from spherecf.serve.access import Access, Limits, RateLimiter

LOG = logging.getLogger("spherecf.serve")
_MESSAGES = {404: "There is no such page.", 405: "This method is not allowed for this page."}


def install(app: FastAPI) -> None:
    """Make the application answer every error with ``{"error": sentence}``."""
    app.add_exception_handler(HTTPException, _handle_http_error)
    app.add_exception_handler(InputError, _handle_input_error)
    app.add_exception_handler(StorageError, _handle_storage_error)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)


async def _handle_http_error(request: Request, error: Any) -> JSONResponse:
    message, status = str(error.detail), error.status_code
    if message == HTTPStatus(status).phrase:  # the default of the framework
        message = _MESSAGES.get(status, message)
    response = problem(status, message)
    response.headers.update(error.headers or {})
    if status == HTTPStatus.METHOD_NOT_ALLOWED:  # the framework lists only the methods of one handler
        methods = request.app.openapi()["paths"].get(request.url.path)
        response.headers.update({"Allow": ", ".join(methods).upper()} if methods else {})
    return response


async def _handle_input_error(request: Request, error: Exception) -> JSONResponse:
    return problem(422, str(error))


async def _handle_storage_error(request: Request, error: Exception) -> JSONResponse:
    LOG.error("the gallery failed: %s", error)
    return problem(503, "The gallery cannot be read or written at the moment.", retry_after=30.0)


async def _handle_disconnect(request: Request, error: Exception) -> JSONResponse:
    return problem(400, "The connection was closed before all photos had arrived.")


def unexpected(path: str, error: Exception) -> JSONResponse:
    """Log an unexpected error, and return a response with a reference to the log entry."""
    reference = secrets.token_hex(4)
    LOG.error("unexpected error %s at %s", reference, path, exc_info=error)
    return problem(500, f"Internal error. The log of the service has the details under {reference}.")


def problem(status: int, sentence: str, *, retry_after: float = 0.0) -> JSONResponse:
    """Error response of one sentence.

    Args:
        status: HTTP status.
        sentence: what is wrong, and what to do.
        retry_after: value of the Retry-After header, in seconds; 0 for none.
    """
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
    """ASGI middleware that checks every request and adds security headers to every response.

    It checks framing, host name, origin, rate, token and pending requests, in this order. HEAD is answered as
    GET without the body, which the framework does not do.

    Args:
        app: application to protect.
        access: accepted token and host names.
        limits: limits on rates and pending requests.
        public_paths: paths that need no token, such as the page and its files. All others do, even paths that
            do not exist.
    """

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, public_paths: frozenset[str]) -> None:
        self._app, self._access, self._limits, self._public_paths = app, access, limits, public_paths
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
        response_started, is_head = False, scope["method"] == "HEAD"

        async def send_with_headers(message: Message) -> None:
            nonlocal response_started
            if message["type"] == "http.response.start":
                response_started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        refusal = self._check(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        is_post = scope["method"] == "POST"
        if is_post and self._pending >= self._limits.max_pending:
            message = "The service is busy. Try again in a moment."
            await problem(503, message, retry_after=2.0)(scope, receive, send_with_headers)
            return
        self._pending += is_post
        try:
            await self._app({**scope, "method": "GET"} if is_head else scope, receive, send_with_headers)
        except Exception as error:
            response = unexpected(scope["path"], error)
            if not response_started:
                await response(scope, receive, send_with_headers)
        finally:
            self._pending -= is_post

    def _check(self, scope: Scope) -> JSONResponse | None:
        """The error response for a request that is not allowed; None if it is."""
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers and "content-length" in headers:
            # Request smuggling: a proxy may see another end of this request, and send us its rest as the
            # request of another client.
            response = problem(
                400, "Both Content-Length and Transfer-Encoding were sent: expected only one of them."
            )
            response.headers["Connection"] = "close"
            return response
        if len(headers.getlist("host")) != 1 or not self._access.allows_host(headers["host"]):
            return problem(
                421,
                "This host name is not allowed; to allow it, start the service with --allow-host.",
            )
        if scope["path"] in self._public_paths:
            return None
        if not self._access.same_origin(headers):
            return problem(403, "Requests from pages of other sites are not allowed.")
        wait_seconds = self._limiter.wait((scope.get("client") or ("unknown", 0))[0])
        if wait_seconds:
            message = f"Too many requests. Try again in {math.ceil(wait_seconds)} s."
            return problem(429, message, retry_after=wait_seconds)
        if not self._access.accepts_token(headers):
            return problem(
                401,
                "The access token is missing or wrong. Send the token that the service printed at start-up "
                "in the header Authorization: Bearer TOKEN.",
            )
        return None

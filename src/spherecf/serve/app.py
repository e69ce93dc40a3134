"""The application, its static files and the server process."""

import asyncio
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from spherecf.common.version import __version__
from spherecf.errors import InputError, StorageError
from spherecf.serve.access import Access, Limits
from spherecf.serve.guard import Guard, install
from spherecf.serve.routes import gallery_routes, open_routes, photo_routes
from spherecf.serve.worker import Assessor, Worker

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/service.js": ("service.js", "text/javascript; charset=utf-8"),
    "/faces.js": ("faces.js", "text/javascript; charset=utf-8"),
    "/views.js": ("views.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def static_routes() -> APIRouter:
    """One route per file in `FILES`. The files are read once."""
    router = APIRouter(include_in_schema=False)
    for path, (name, content_type) in FILES.items():
        content = files("spherecf.serve").joinpath("page", name).read_bytes()
        router.add_api_route(path, _static_handler(content, content_type), methods=["GET"])
    return router


def _static_handler(content: bytes, content_type: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, headers={"Content-Type": content_type, "Cache-Control": "no-cache"})

    return send


REQUEST_SECONDS = 10.0
MAX_CONNECTIONS = 512


class PromptProtocol(H11Protocol):
    """uvicorn's HTTP protocol with limits on idle and slow connections.

    A connection is closed after `REQUEST_SECONDS` without a request in progress, even if bytes of a header,
    or of a body that has already been answered, keep arriving. (uvicorn's own timeout starts only after the
    first response and is reset by every byte.) The same limit applies to clients that do not read their
    response. New connections beyond `MAX_CONNECTIONS` are closed at once. Data that is not HTTP gets one
    error response.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._update_deadline()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        super().data_received(data)
        self._update_deadline()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when bytes are not valid HTTP, possibly after a request has begun."""
        unanswered = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        if self.cycle is not None:  # otherwise its response to the invalid bytes is logged as an error
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if unanswered:
            super().send_400_response(msg)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Called by asyncio when the client has more than 64 KiB to read."""
        super().pause_writing()
        self._update_deadline()

    def resume_writing(self) -> None:
        """Called by asyncio when the client has read most of them."""
        super().resume_writing()
        self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def _update_deadline(self) -> None:
        """Start the deadline if no request is in progress; cancel it otherwise."""
        busy = self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused
        if busy and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif not busy and self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)


def listen(app: Any, host: str, port: int, trusted_proxies: Sequence[str] = ()) -> None:
    """Serve an application on one address until interrupted; see `spherecf.serve.run`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets created with IPPROTO_TCP. Without it, the second packet of a
    # response waits 40 ms for the client to acknowledge the first.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise StorageError(
                f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port"
            ) from error
        config = uvicorn.Config(
            app,
            log_level="error",  # warnings are caused by clients that send invalid HTTP, and could fill a disk
            access_log=False,  # requests are private
            # Trust only the given proxies: any other client could claim any address to evade its rate limit.
            proxy_headers=bool(trusted_proxies),
            forwarded_allow_ips=list(trusted_proxies),
            http=PromptProtocol,
            server_header=False,
            ws="none",
            timeout_keep_alive=10,
            timeout_graceful_shutdown=10,
            limit_concurrency=256,
            h11_max_incomplete_event_size=32_768,
        )
        server = uvicorn.Server(config)
        with _handled(signal.SIGTERM, server.handle_exit):
            server.run(sockets=[listener])


@contextmanager
def _handled(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle a signal until the end of the block.

    uvicorn shuts down on SIGTERM, and then raises the signal again. The default handler would then end the
    process before the caller can close the gallery.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


OPENAPI = "/api/openapi.json"
PUBLIC_PATHS = frozenset({*FILES, "/docs", OPENAPI, "/api/health"})
_DESCRIPTION = (
    "Assess and compare photos, build templates, and identify people. All responses are JSON; errors are "
    '`{"error": "one sentence"}`. Photos are processed in memory and never stored.'
)

# FastAPI's own /docs pages load scripts from other servers.
_DOCS = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SphereCF: API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/style.css"></head>
<body><main><h1>API</h1><p>The OpenAPI description of all routes is at <a href="{OPENAPI}">{OPENAPI}</a>.
All routes except <code>/api/health</code> need the header <code>Authorization: Bearer TOKEN</code>.</p>
<p>spherecf {__version__}. <a href="/">Back to the photos</a></p></main></body></html>
"""


def make_app(
    assessor: Assessor, gallery: Any, *, token: str, hosts: tuple[str, ...], limits: Limits
) -> FastAPI:
    """Create the application; see `spherecf.serve.create_app`."""
    if assessor.model.calibration is None:
        raise InputError(
            "the service needs a calibrated model; calibrate it with `spherecf evaluate calibration --save`"
        )
    if gallery is not None:
        gallery.require(assessor.model.fingerprint())
    worker = Worker(assessor, gallery, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    app = FastAPI(
        title="SphereCF",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url=OPENAPI,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.worker = worker
    app.include_router(static_routes())
    app.include_router(open_routes)
    app.include_router(photo_routes)
    app.include_router(gallery_routes)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS)

    install(app)
    app.add_middleware(Guard, access=Access(token, hosts), limits=limits, public_paths=PUBLIC_PATHS)
    return app

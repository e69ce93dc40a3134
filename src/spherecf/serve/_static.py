"""The page and its files, by a table: a path that is not in it does not exist."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

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
    """One route for each line of the table; the files are read once, now."""
    router = APIRouter(include_in_schema=False)
    for path, (name, kind) in FILES.items():
        content = files("spherecf.serve").joinpath("page", name).read_bytes()
        router.add_api_route(path, _sender(content, kind), methods=["GET"])
    return router


def _sender(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, headers={"Content-Type": kind, "Cache-Control": "no-cache"})

    return send

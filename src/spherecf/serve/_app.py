"""The application, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from spherecf.common.version import __version__
from spherecf.errors import InputError
from spherecf.serve._access import Access
from spherecf.serve._desk import Assessor, Desk
from spherecf.serve._docs import docs_page
from spherecf.serve._gallery_routes import gallery_routes
from spherecf.serve._guard import Guard
from spherecf.serve._limits import Limits
from spherecf.serve._problems import install
from spherecf.serve._routes import open_routes, photo_routes
from spherecf.serve._static import FILES, static_routes

OPENAPI = "/api/openapi.json"
OPEN = frozenset({*FILES, "/docs", OPENAPI, "/api/health"})
_ABOUT = (
    'Send photos, get decisions. Every answer is JSON; errors are `{"error": "one sentence"}`. '
    "Photos are looked at in memory and forgotten."
)


def make_app(
    assessor: Assessor, gallery: Any, *, token: str, hosts: tuple[str, ...], limits: Limits
) -> FastAPI:
    """See `spherecf.serve.create_app`."""
    if assessor.model.calibration is None:
        raise InputError(
            "the service needs a calibrated model; calibrate this one with "
            "`spherecf evaluate calibration --save`"
        )
    desk = Desk(assessor, gallery, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        desk.start()
        yield
        desk.stop()

    app = FastAPI(
        title="SphereCF",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        openapi_url=OPENAPI,
        docs_url=None,  # these two fetch their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk = desk
    app.include_router(static_routes())
    app.include_router(open_routes)
    app.include_router(photo_routes)
    app.include_router(gallery_routes)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    install(app)
    app.add_middleware(Guard, access=Access(token, hosts), limits=limits, open_paths=OPEN)
    return app

"""Whatever goes wrong is answered by one sentence, and never by a stack trace."""

import logging
import math
import secrets
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from spherecf.errors import InputError, StorageError

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

"""The service: the photo verbs over HTTP, and one web page on them.

`create_app` needs the extra ``serve``; importing this room does not.
"""

from typing import TYPE_CHECKING, Any

from spherecf.errors import MissingDependencyError
from spherecf.serve.access import Limits, choose_token, hosts_of

if TYPE_CHECKING:
    from spherecf.gallery import Gallery
    from spherecf.photos import FaceAssessor

__all__ = ["Limits", "choose_token", "create_app", "hosts_of", "run"]

_EXTRA = 'the service needs fastapi, uvicorn and python-multipart: pip install "spherecf[serve]"'


def create_app(
    assessor: "FaceAssessor",
    gallery: "Gallery | None" = None,
    *,
    token: str = "",
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]"),
    limits: Limits | None = None,
) -> Any:
    """The service as a FastAPI application, for `run` or for any ASGI server.

    Args:
        assessor: what looks at the photos; its model must be calibrated.
        gallery: an open gallery of that model; None: the gallery's addresses answer that there is none. It is
            not closed here.
        token: what callers must send as ``Authorization: Bearer``; "" asks for none.
        hosts: names and addresses under which the service may be called (the Host header, without port);
            others are refused, so that no web page can reach it under a name of its own (DNS rebinding).
            "*" stands for every address in numbers.
        limits: how much, how often, how many at once.

    Raises:
        MissingDependencyError: the extra ``serve`` is not installed.
        InputError: a token that is too short, or a model without calibration.

    Example:
        >>> from spherecf.photos import FaceAssessor
        >>> app = create_app(FaceAssessor(), token="a-token-of-16-characters-or-more")
        >>> app.title
        'SphereCF'
    """
    try:
        from spherecf.serve.app import make_app
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_EXTRA) from error
    return make_app(assessor, gallery, token=token, hosts=hosts, limits=limits or Limits())


def run(app: Any, host: str, port: int) -> None:
    """Serve until interrupted; log lines on stderr, none per request.

    Raises:
        MissingDependencyError: the extra ``serve`` is not installed.
        StorageError: nobody may listen at this address, or somebody already does.

    Example:
        >>> import socket
        >>> with socket.create_server(("127.0.0.1", 0)) as taken:
        ...     run(None, *taken.getsockname())
        Traceback (most recent call last):
            ...
        spherecf.errors.StorageError: cannot listen at 127.0.0.1, port ...
    """
    try:
        from spherecf.serve.app import listen
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_EXTRA) from error
    listen(app, host, port)

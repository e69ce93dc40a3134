"""The photo commands and the gallery as an HTTP service with a web page.

`create_app` needs the extra ``serve``; importing this room does not.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spherecf.errors import MissingDependencyError as MissingDependencyError
from spherecf.serve.access import Limits, check_network, choose_token as choose_token, hosts_of as hosts_of

if TYPE_CHECKING:
    from spherecf.gallery import Gallery
    from spherecf.photos import FaceAssessor

# Names imported `as` themselves serve other rooms of this package; they are no part of its public interface.
__all__ = [
    "Limits",
    "create_app",
    "run",
]

_EXTRA = (
    'the service needs fastapi, uvicorn and python-multipart; install them with pip install "spherecf[serve]"'
)


def create_app(
    assessor: "FaceAssessor",
    gallery: "Gallery | None" = None,
    *,
    token: str = "",
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]"),
    limits: Limits | None = None,
) -> Any:
    """Create the service as a FastAPI application, for `run` or any ASGI server.

    Args:
        assessor: assesses the photos; its model must be calibrated.
        gallery: an open gallery of that model; without one the gallery's routes answer with an error. The
            caller closes it.
        token: access token that clients must send as ``Authorization: Bearer``; "" for none.
        hosts: accepted host names and addresses (the Host header, without port); others are rejected, which
            prevents DNS rebinding. "*" accepts every numeric address.
        limits: bounds on sizes and rates.

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


def run(app: Any, host: str, port: int, *, trusted_proxies: Sequence[str] = ()) -> None:
    """Serve until interrupted; errors are logged to stderr, requests are not.

    Args:
        app: from `create_app`.
        host: address to listen on.
        port: of it.
        trusted_proxies: addresses or networks of reverse proxies whose ``X-Forwarded-For`` names the client
            that rates are limited for; headers of anybody else are ignored.

    Raises:
        MissingDependencyError: the extra ``serve`` is not installed.
        StorageError: the address is not available or already in use.
        InputError: a trusted proxy that is no address or network.

    Example:
        >>> import socket
        >>> with socket.create_server(("127.0.0.1", 0)) as taken:
        ...     run(None, *taken.getsockname())
        Traceback (most recent call last):
            ...
        spherecf.errors.StorageError: cannot listen on 127.0.0.1, port ...
    """
    try:
        from spherecf.serve.app import listen
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_EXTRA) from error
    for proxy in trusted_proxies:
        check_network(proxy)
    listen(app, host, port, trusted_proxies)

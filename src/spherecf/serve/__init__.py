"""HTTP service with a web page for the photo commands and the gallery.

`create_app` and `run` need the extra ``serve``; importing this package does not.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spherecf.errors import MissingDependencyError as MissingDependencyError
from spherecf.serve.access import Limits, check_network, choose_token as choose_token, hosts_of as hosts_of

if TYPE_CHECKING:
    from spherecf.gallery import Gallery
    from spherecf.photos import FaceAssessor

# Names imported `as` themselves are used by the commands; they are not public.
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
        assessor: assessor of the photos. Its model must be calibrated.
        gallery: open gallery of the same model, which the caller closes. Without a gallery, the gallery
            routes return an error.
        token: access token that clients must send as ``Authorization: Bearer``; "" requires no token.
        hosts: host names and addresses to accept in the Host header, without port. Others are rejected, which
            prevents DNS rebinding. "*" accepts every numeric address.
        limits: limits on sizes and rates.

    Raises:
        MissingDependencyError: the extra ``serve`` is not installed.
        InputError: the token is too short, or the model is not calibrated.
        ModelError: the gallery belongs to another model.

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
    """Serve the application until SIGTERM, or until Ctrl-C, which raises `KeyboardInterrupt`.

    Errors are logged to stderr; requests are not logged.

    Args:
        app: application from `create_app`.
        host: address to listen on.
        port: port to listen on.
        trusted_proxies: addresses or networks of reverse proxies whose ``X-Forwarded-For`` header is trusted
            to name the client, for the rate limit. The header is ignored for all other clients.

    Raises:
        MissingDependencyError: the extra ``serve`` is not installed.
        StorageError: the address is not available or already in use.
        InputError: a trusted proxy is not an address or a network.

    Example:
        >>> import socket
        >>> with socket.create_server(("127.0.0.1", 0)) as occupied:
        ...     run(None, *occupied.getsockname())
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

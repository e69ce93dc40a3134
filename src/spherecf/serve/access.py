"""Access control: tokens, host names, origins, limits and request rates."""

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from spherecf.errors import InputError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class Access:
    """Token and host names that the service accepts; see `spherecf.serve.create_app`.

    Raises:
        InputError: the token is shorter than 16 characters, or contains spaces or non-ASCII characters.

    Example:
        >>> access = Access("", ("localhost",))
        >>> access.allows_host("localhost:8080"), access.allows_host("evil.example")
        (True, False)
    """

    token: str
    hosts: tuple[str, ...]

    def __post_init__(self) -> None:
        well_formed = self.token.isascii() and self.token.isprintable() and " " not in self.token
        if self.token and (len(self.token) < _MIN_TOKEN_LENGTH or not well_formed):
            raise InputError(
                f"token: expected at least {_MIN_TOKEN_LENGTH} ASCII characters without spaces; leave it out "
                "to use a random token"
            )

    def allows_host(self, header: str) -> bool:
        """Whether the Host header is allowed. Other names that resolve to this address are not."""
        name = _without_port(header)
        return name in self.hosts or ("*" in self.hosts and _is_address(name))

    def same_origin(self, headers: Mapping[str, str]) -> bool:
        """False for requests from a page of another origin.

        Checks the headers Sec-Fetch-Site and Origin, which only browsers send.
        """
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()

    def accepts_token(self, headers: Mapping[str, str]) -> bool:
        """Whether the request has the right token, compared in constant time."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        equal = hmac.compare_digest(token.strip().encode(), self.token.encode())
        return not self.token or (scheme.lower() == "bearer" and equal)


def check_network(text: str) -> None:
    """Check that a text is an IP address or a network.

    Raises:
        InputError: the text is neither.

    Example:
        >>> check_network("192.0.2.0/24")
    """
    try:
        ip_network(text)
    except ValueError as error:
        raise InputError(
            f"{text!r}: expected an IP address or a network such as 10.0.0.0/8 ({error})"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether a listening address accepts connections from this machine only.

    Example:
        >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "192.0.2.1")]
        [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def choose_token(host: str, given: str, without: bool) -> str:
    """Choose the token to require: the given token, a random token, or "" for no token.

    Args:
        host: address to listen on.
        given: token from the user; "" chooses a random token.
        without: require no token, which is allowed on loopback addresses only.

    Raises:
        InputError: ``without`` is used with a token, or with an address that is not loopback.

    Example:
        >>> choose_token("127.0.0.1", "", without=True), len(choose_token("192.0.2.1", "", without=False))
        ('', 43)
    """
    if without and given:
        raise InputError("--token and --no-token cannot be used together")
    if without and not is_loopback(host):
        raise InputError(
            f"--no-token is allowed only with a loopback address such as 127.0.0.1, not with {host}"
        )
    return "" if without else given or secrets.token_urlsafe(32)


def hosts_of(host: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Host names to accept when listening on ``host``.

    Args:
        host: address to listen on.
        more: additional host names, e.g. of a reverse proxy; ports are ignored.

    Example:
        >>> hosts_of("127.0.0.1", ("Faces.example:8443",))
        ('localhost', '127.0.0.1', '[::1]', 'faces.example')
    """
    names = LOOPBACK if is_loopback(host) else (*LOOPBACK, "*") if host in ("0.0.0.0", "::") else (host,)
    additional = tuple(map(_without_port, more))
    url_host = f"[{host}]" if ":" in host and host != "::" else host.lower()
    return tuple(dict.fromkeys((*names, *additional, url_host)))


def _without_port(header: str) -> str:
    name, colon, port = header.lower().rpartition(":")
    return (
        name
        if colon and port.isdigit() and not (name.startswith("[") and "]" not in name)
        else header.lower()
    )


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    They bound the memory to ``max_pending * max_request_bytes`` plus the photos being assessed.

    Args:
        max_files: maximum number of photos in a request.
        max_file_bytes: maximum size of a photo, in bytes.
        max_request_bytes: maximum size of a request body, in bytes; checked while it arrives.
        max_pending: maximum number of concurrent requests with photos; others get status 503.
        requests_per_minute: sustained rate of requests per client.
        burst: number of requests that a client may send at once.
        upload_seconds: time limit for receiving a request body, in seconds.
        work_seconds: time limit for answering a request, in seconds.

    Raises:
        InputError: a limit is not positive.

    Example:
        >>> Limits(max_files=0)
        Traceback (most recent call last):
            ...
        spherecf.errors.InputError: max_files: expected a positive number, got 0
    """

    max_files: int = 20
    max_file_bytes: int = 25_000_000
    max_request_bytes: int = 64_000_000
    max_pending: int = 8
    requests_per_minute: float = 120.0
    burst: int = 40
    upload_seconds: float = 60.0
    work_seconds: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InputError(f"{field.name}: expected a positive number, got {getattr(self, field.name)}")


_MAX_CLIENTS = 10_000  # beyond this, the client with the oldest request is forgotten


class RateLimiter:
    """Limits the request rate of each client with a token bucket.

    A bucket starts with ``burst`` tokens and gains ``per_second`` tokens per second; each request takes one.
    Addresses in the same IPv6 network (/64) count as one client, since they usually belong to one household.

    Example:
        >>> now = 0.0
        >>> limiter = RateLimiter(per_second=0.5, burst=2, clock=lambda: now)
        >>> [limiter.wait("192.0.2.1") for _ in range(3)]
        [0.0, 0.0, 2.0]
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = per_second, float(burst), clock
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Take a token for a request of the client.

        Returns:
            0.0 if the request is allowed; otherwise the seconds until the next request is allowed.
        """
        network, now = _network(client), self._clock()
        tokens, last = self._tokens.pop(network, (self._burst, now))
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        granted = tokens >= 1
        self._tokens[network] = (tokens - granted, now)
        if len(self._tokens) > _MAX_CLIENTS:
            self._tokens.popitem(last=False)
        return 0.0 if granted else (1 - tokens) / self._rate


def _network(client: str) -> str:
    try:
        address = ip_address(client)
    except ValueError:
        return client
    return str(ip_network((address, 64), strict=False)) if address.version == 6 else client

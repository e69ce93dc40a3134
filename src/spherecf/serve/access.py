"""Who may call, and how much: token, host names, origins, limits and rates."""

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
_SHORTEST = 16


@dataclass(frozen=True)
class Access:
    """Token and names of the service. See `spherecf.serve.create_app` for both.

    Raises:
        InputError: a token shorter than 16 characters, or with blanks or letters beyond ASCII.

    Example:
        >>> access = Access("", ("localhost",))
        >>> access.knows_host("localhost:8080"), access.knows_host("evil.example")
        (True, False)
    """

    token: str
    hosts: tuple[str, ...]

    def __post_init__(self) -> None:
        plain = self.token.isascii() and self.token.isprintable() and " " not in self.token
        if self.token and (len(self.token) < _SHORTEST or not plain):
            raise InputError(
                f"token: expected at least {_SHORTEST} ASCII characters without blanks; leave it out and a "
                "random one is made"
            )

    def knows_host(self, header: str) -> bool:
        """Does this Host header name us? A name that somebody else made point here does not."""
        name = _without_port(header)
        return name in self.hosts or ("*" in self.hosts and _is_address(name))

    def same_origin(self, headers: Mapping[str, str]) -> bool:
        """False for what a page of another origin sent. Programs send neither of the two headers."""
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()

    def knows_token(self, headers: Mapping[str, str]) -> bool:
        """Compared in constant time."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        fits = hmac.compare_digest(given.strip().encode(), self.token.encode())
        return not self.token or (scheme.lower() == "bearer" and fits)


def is_loopback(host: str) -> bool:
    """Does an address that is listened at reach only this machine?

    Example:
        >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "192.0.2.1")]
        [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def choose_token(host: str, given: str, without: bool) -> str:
    """The token to ask for: the one given, a random one, or none where only this machine can call.

    Raises:
        InputError: none wanted beyond loopback, or both given and not wanted.

    Example:
        >>> choose_token("127.0.0.1", "", without=True), len(choose_token("192.0.2.1", "", without=False))
        ('', 43)
    """
    if without and given:
        raise InputError("--token and --no-token exclude each other")
    if without and not is_loopback(host):
        raise InputError(f"--no-token: only with a loopback address such as 127.0.0.1, not with {host}")
    return "" if without else given or secrets.token_urlsafe(32)


def hosts_of(host: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The Host names to accept when listening at ``host``, with more of them from a reverse proxy.

    Example:
        >>> hosts_of("127.0.0.1", ("Faces.example:8443",))
        ('localhost', '127.0.0.1', '[::1]', 'faces.example')
    """
    own = LOOPBACK if is_loopback(host) else (*LOOPBACK, "*") if host in ("0.0.0.0", "::") else (host,)
    bare = tuple(map(_without_port, more))
    return tuple(dict.fromkeys((*own, *bare, f"[{host}]" if ":" in host and host != "::" else host.lower())))


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
    """Bounds of one service. Memory stays below ``max_pending * max_request_bytes`` plus the photos at work.

    Args:
        max_files: photos in one request.
        max_file_bytes: of one photo.
        max_request_bytes: of one request's body, counted while it arrives.
        max_pending: requests with photos in hand at once; one more is told to come again.
        requests_per_minute: of one client in the long run.
        burst: of one client at once.
        upload_seconds: in which a body must have arrived.
        work_seconds: in which an answer must be found.

    Raises:
        InputError: a bound that is not positive.

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
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise InputError(f"{one.name}: expected a positive number, got {getattr(self, one.name)}")


_REMEMBERED = 10_000  # clients; beyond it the one that was silent longest is forgotten


class Buckets:
    """One bucket per client: ``burst`` tokens at first, ``per_second`` more as time passes, one per request.

    Addresses of one IPv6 network (/64) are one client: it usually belongs to one household.

    Example:
        >>> now = 0.0
        >>> buckets = Buckets(per_second=0.5, burst=2, clock=lambda: now)
        >>> [buckets.wait("192.0.2.1") for _ in range(3)]
        [0.0, 0.0, 2.0]
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = per_second, float(burst), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Seconds until this client may ask again: 0.0 if it may now, and then a token is taken."""
        name, now = _network(client), self._clock()
        tokens, then = self._left.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        granted = tokens >= 1
        self._left[name] = (tokens - granted, now)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        return 0.0 if granted else (1 - tokens) / self._rate


def _network(client: str) -> str:
    try:
        address = ip_address(client)
    except ValueError:
        return client
    return str(ip_network((address, 64), strict=False)) if address.version == 6 else client

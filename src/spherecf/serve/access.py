"""Access control: token, host names, origins, limits and request rates."""

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
_MIN_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """Token and host names of the service, see `spherecf.serve.create_app`.

    Raises:
        InputError: the token is shorter than 16 characters, or has blanks or characters outside ASCII.

    Example:
        >>> access = Access("", ("localhost",))
        >>> access.knows_host("localhost:8080"), access.knows_host("evil.example")
        (True, False)
    """

    token: str
    hosts: tuple[str, ...]

    def __post_init__(self) -> None:
        plain = self.token.isascii() and self.token.isprintable() and " " not in self.token
        if self.token and (len(self.token) < _MIN_TOKEN or not plain):
            raise InputError(
                f"token: expected at least {_MIN_TOKEN} ASCII characters without blanks; leave it out for a "
                "random one"
            )

    def knows_host(self, header: str) -> bool:
        """Whether the Host header is allowed; other names that resolve to this address are not."""
        name = _without_port(header)
        return name in self.hosts or ("*" in self.hosts and _is_address(name))

    def same_origin(self, headers: Mapping[str, str]) -> bool:
        """False for requests from a page of another origin. Programs send neither of the two headers."""
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()

    def knows_token(self, headers: Mapping[str, str]) -> bool:
        """Whether the token is right; compared in constant time."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        equal = hmac.compare_digest(given.strip().encode(), self.token.encode())
        return not self.token or (scheme.lower() == "bearer" and equal)


def check_network(text: str) -> None:
    """Refuse what is neither an IP address nor a network.

    Raises:
        InputError: neither.

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
    """Whether a listening address accepts this machine only.

    Example:
        >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "192.0.2.1")]
        [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def choose_token(host: str, given: str, without: bool) -> str:
    """The token to require: the given one, a random one, or none if only this machine can connect.

    Raises:
        InputError: no token on an address that is not loopback, or a token together with ``without``.

    Example:
        >>> choose_token("127.0.0.1", "", without=True), len(choose_token("192.0.2.1", "", without=False))
        ('', 43)
    """
    if without and given:
        raise InputError("--token and --no-token exclude each other")
    if without and not is_loopback(host):
        raise InputError(
            f"--no-token is allowed only with a loopback address such as 127.0.0.1, not with {host}"
        )
    return "" if without else given or secrets.token_urlsafe(32)


def hosts_of(host: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The host names to accept when listening on ``host``, plus those of a reverse proxy.

    Example:
        >>> hosts_of("127.0.0.1", ("Faces.example:8443",))
        ('localhost', '127.0.0.1', '[::1]', 'faces.example')
    """
    names = LOOPBACK if is_loopback(host) else (*LOOPBACK, "*") if host in ("0.0.0.0", "::") else (host,)
    proxies = tuple(map(_without_port, more))
    return tuple(
        dict.fromkeys((*names, *proxies, f"[{host}]" if ":" in host and host != "::" else host.lower()))
    )


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
    """Bounds of one service. They limit memory to ``max_pending * max_request_bytes`` and the current photos.

    Args:
        max_files: photos in one request.
        max_file_bytes: size of one photo.
        max_request_bytes: size of one request body, counted while it arrives.
        max_pending: requests with photos at the same time; further ones are answered with 503.
        requests_per_minute: sustained rate per client.
        burst: requests that one client may send at once.
        upload_seconds: time limit for receiving a body.
        work_seconds: time limit for an answer.

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
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise InputError(f"{field.name}: expected a positive number, got {getattr(self, field.name)}")


_MAX_CLIENTS = 10_000  # the least recent one is dropped


class RateLimiter:
    """A token bucket per client: ``burst`` tokens at first, ``per_second`` more over time, one per request.

    Addresses in one IPv6 network (/64) count as one client, as they usually belong to one household.

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
        """Seconds until this client may send a request; 0.0 if it may now, which takes a token."""
        name, now = _network(client), self._clock()
        tokens, last = self._tokens.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        granted = tokens >= 1
        self._tokens[name] = (tokens - granted, now)
        if len(self._tokens) > _MAX_CLIENTS:
            self._tokens.popitem(last=False)
        return 0.0 if granted else (1 - tokens) / self._rate


def _network(client: str) -> str:
    try:
        address = ip_address(client)
    except ValueError:
        return client
    return str(ip_network((address, 64), strict=False)) if address.version == 6 else client

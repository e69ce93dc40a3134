"""Who may call: the token, the names of this service, and pages of other origins."""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
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

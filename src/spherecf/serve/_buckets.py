"""Token buckets: how often one client may ask."""

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address, ip_network

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

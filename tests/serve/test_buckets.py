"""The rate limit of each client."""

import pytest

from spherecf.serve import access as access_module
from spherecf.serve.access import RateLimiter


class FakeClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_followed_by_a_steady_rate() -> None:
    clock = FakeClock()
    limiter = RateLimiter(2.0, 3, clock)
    assert [limiter.wait("a") for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert limiter.wait("b") == 0  # other clients are not delayed
    n_granted = 0
    for _ in range(100):  # ten seconds in steps of 0.1 s: only the steady rate is granted
        clock.now += 0.1
        n_granted += limiter.wait("a") == 0
    assert 19 <= n_granted <= 20
    clock.now += 1e6
    # A long pause allows no more than one burst.
    assert [limiter.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]


def test_addresses_of_one_ipv6_network_share_a_limit() -> None:
    limiter = RateLimiter(1.0, 1, FakeClock())
    assert [limiter.wait(f"2001:db8::{i}") for i in (1, 2)] == [0, 1]
    assert limiter.wait("2001:db8:0:1::1") == 0
    assert [limiter.wait(f"192.0.2.{i}") for i in (1, 2)] == [0, 0]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "_MAX_CLIENTS", 10)
    limiter = RateLimiter(1.0, 1, FakeClock())
    for i in range(1000):
        assert limiter.wait(f"client {i}") == 0
    assert len(limiter._tokens) == 10 and limiter.wait("client 999") == 1

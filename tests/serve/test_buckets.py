"""How often one client may ask."""

import pytest

from spherecf.serve import access as access_module
from spherecf.serve.access import RateLimiter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_a_steady_rate() -> None:
    clock = Clock()
    buckets = RateLimiter(2.0, 3, clock)
    assert [buckets.wait("a") for _ in range(5)] == [0, 0, 0, 0.5, 0.5]
    assert buckets.wait("b") == 0  # others are not held up
    granted = 0
    for _ in range(100):  # ten seconds in tenths: the rate, whoever presses
        clock.now += 0.1
        granted += buckets.wait("a") == 0
    assert 19 <= granted <= 20
    clock.now += 1e6
    assert [buckets.wait("a") for _ in range(4)] == [
        0,
        0,
        0,
        0.5,
    ]  # a long silence saves no more than a burst


def test_addresses_of_one_network_share() -> None:
    buckets = RateLimiter(1.0, 1, Clock())
    assert [buckets.wait(f"2001:db8::{i}") for i in (1, 2)] == [0, 1]
    assert buckets.wait("2001:db8:0:1::1") == 0
    assert [buckets.wait(f"192.0.2.{i}") for i in (1, 2)] == [0, 0]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "_MAX_CLIENTS", 10)
    buckets = RateLimiter(1.0, 1, Clock())
    for i in range(1000):
        assert buckets.wait(f"client {i}") == 0
    assert len(buckets._tokens) == 10 and buckets.wait("client 999") == 1

"""Exact search against scoring everything."""

import numpy as np
import pytest
from tests.reference.gallery import brute_force

from spherecf.gallery.mirror import Mirror
from spherecf.gallery.search import search

RADIUS = 64.0
KAPPAS = {
    "ordinary": lambda rng, n: rng.uniform(100, 900, n),
    "equal": lambda rng, n: np.full(n, 300.0),
    "huge and tiny": lambda rng, n: rng.choice([1e-6, 1.0, 300.0, 1e6, 1e9], n),
    "any size": lambda rng, n: 10 ** rng.uniform(-8, 8, n),
    "zeros": lambda rng, n: rng.choice([0.0, 0.0, 50.0], n),
}


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    mu = rng.standard_normal((n, dim))
    return (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32)


def mirror_of(mu: np.ndarray, kappa: np.ndarray) -> Mirror:
    mirror = Mirror(mu.shape[1])
    keys = [f"{i:05d}" for i in range(len(mu))]
    mirror.extend(keys, keys, mu, kappa.astype(np.float32), np.ones(len(mu)), np.ones(len(mu)))
    return mirror


def check(mirror: Mirror, mu: np.ndarray, kappa: np.ndarray, top: int) -> None:
    for hits, probe, own in zip(search(mirror, mu, kappa, top, RADIUS), mu, kappa):
        keys, scores = brute_force(mirror, probe, own, top, RADIUS)
        assert mirror.keys[hits.rows].tolist() == keys
        np.testing.assert_allclose(hits.scores, scores, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("name", KAPPAS)
@pytest.mark.parametrize("dim", [3, 64])
def test_finds_what_scoring_everything_finds(name: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.gallery.mirror._BIN_ROWS", 64)
    rng = np.random.default_rng(0)
    mu, kappa = unit(rng, 1500, dim), KAPPAS[name](rng, 1500)
    mirror = mirror_of(mu, kappa)
    probes = np.concatenate([mu[:3], unit(rng, 5, dim), -mu[:1]])
    for own in (0.0, 1e-3, 200.0, 1e5, 1e9):
        check(mirror, probes, np.full(len(probes), own), 7)
    check(mirror, probes[:2], np.array([200.0, 500.0]), 1)
    check(mirror, probes[:2], np.array([200.0, 500.0]), 5000)


def test_ties_go_by_key() -> None:
    mu = np.repeat(np.eye(4, dtype=np.float32)[:1], 300, 0)
    check(mirror_of(mu, np.full(300, 100.0)), mu[:1], np.array([50.0]), 5)


def test_newcomers_and_removals_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.gallery.mirror._BIN_ROWS", 32)
    rng = np.random.default_rng(1)
    mu, kappa = unit(rng, 400, 16), rng.uniform(1, 1000, 400)
    mirror = mirror_of(mu, kappa)
    check(mirror, mu[:2], np.array([300.0, 20.0]), 5)
    best = mirror.keys[search(mirror, mu[:1], np.array([300.0]), 1, RADIUS)[0].rows[0]]
    assert mirror.drop(str(best)) and not mirror.drop(str(best))
    mirror.put("new", "New", mu[1], 77.0, 1, 1)
    mirror.put("00002", "Again", mu[0], 900.0, 1, 1)
    check(mirror, mu[:2], np.array([300.0, 20.0]), 5)
    assert len(mirror) == 400


def test_an_empty_gallery_and_one_emptied_have_no_hits() -> None:
    probe = np.eye(3, dtype=np.float32)[:1]
    mirror = Mirror(3)
    assert not len(search(mirror, probe, np.ones(1), 3, RADIUS)[0].rows)
    mirror.put("a", "A", probe[0], 1.0, 1, 1)
    mirror.drop("a")
    assert not len(search(mirror, probe, np.ones(1), 3, RADIUS)[0].rows)


def test_few_are_scored_where_kappa_tells_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.gallery.mirror._BIN_ROWS", 128)
    rng = np.random.default_rng(2)
    mu, kappa = unit(rng, 8000, 64), rng.uniform(300, 600, 8000)
    mirror = mirror_of(mu, kappa)
    assert search(mirror, mu[:1], np.array([400.0]), 1, RADIUS)[0].scored < 50

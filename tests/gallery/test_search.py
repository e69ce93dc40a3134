"""Exact search against scoring everything."""

import numpy as np
import pytest
from tests.reference.gallery import brute_force

import spherecf.gallery.index as index_module
import spherecf.gallery.search as search_module
from spherecf.gallery.index import Index, quantise
from spherecf.gallery.rows import Template
from spherecf.gallery.search import Hits, search
from spherecf.gallery.store import Store

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


FACTS = {"warnings": [], "sources": [], "enrolled": "", "changed": "", "medium": "", "source": ""}


class World:
    """A gallery in memory and its index."""

    def __init__(self, mu: np.ndarray, kappa: np.ndarray) -> None:
        self.store = Store(":memory:", mu.shape[1])
        self.store.create({})
        self.put(mu, kappa, [f"{i:05d}" for i in range(len(mu))])
        self.index = Index(self.store, mu.shape[1])

    def put(self, mu: np.ndarray, kappa: np.ndarray, names: list[str]) -> list[int]:
        return self.store.insert(
            [Template(name, name, one, float(k), 1, 1, FACTS) for name, one, k in zip(names, mu, kappa)]
        )

    def search(self, mu: np.ndarray, kappa: np.ndarray, top: int) -> list[Hits]:
        return search(self.index, self.store, mu, kappa, top, RADIUS)

    def check(self, mu: np.ndarray, kappa: np.ndarray, top: int) -> None:
        for hits, probe, own in zip(self.search(mu, kappa, top), mu, kappa):
            ids, scores = brute_force(self.store, probe, own, top, RADIUS)
            assert [hit.id for hit in hits.best] == ids
            np.testing.assert_allclose([-h.negative_score for h in hits.best], scores, rtol=1e-12, atol=1e-9)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups, bins and chunks so small that some hundred rows have many."""
    for name, size in (("SUB", 8), ("BIN", 64), ("_CHUNK", 192), ("_TAIL", 32)):
        monkeypatch.setattr(index_module, name, size)
    monkeypatch.setattr(search_module, "SUB", 8)
    monkeypatch.setattr(search_module, "_GROUPS", 40)
    monkeypatch.setattr(search_module, "_PAIRS", 100)


@pytest.mark.parametrize("name", KAPPAS)
@pytest.mark.parametrize("dim", [3, 64])
@pytest.mark.usefixtures("small")
def test_finds_what_scoring_everything_finds(name: str, dim: int) -> None:
    rng = np.random.default_rng(0)
    mu, kappa = unit(rng, 1500, dim), KAPPAS[name](rng, 1500)
    world = World(mu, kappa)
    probes = np.concatenate([mu[:3], unit(rng, 5, dim), -mu[:1]])
    for own in (0.0, 1e-3, 200.0, 1e5, 1e9):
        world.check(probes, np.full(len(probes), own), 7)
    world.check(probes[:2], np.array([200.0, 500.0]), 1)
    world.check(probes[:2], np.array([200.0, 500.0]), 5000)


def test_ties_go_by_id() -> None:
    mu = np.repeat(np.eye(4, dtype=np.float32)[:1], 300, 0)
    World(mu, np.full(300, 100.0)).check(mu[:1], np.array([50.0]), 5)


@pytest.mark.usefixtures("small")
def test_newcomers_and_removals_count_at_once() -> None:
    rng = np.random.default_rng(1)
    mu, kappa = unit(rng, 400, 16), rng.uniform(1, 1000, 400)
    world = World(mu, kappa)
    world.check(mu[:2], np.array([300.0, 20.0]), 5)
    best = world.search(mu[:1], np.array([300.0]), 1)[0].best[0].identity
    world.index.drop(np.array([world.store.find(best).row]))
    world.store.remove(best)
    rows = world.put(mu[1:2], np.array([77.0]), ["new"])
    world.index.add(np.array(rows), mu[1:2], np.array([77.0]))
    world.check(mu[:2], np.array([300.0, 20.0]), 5)
    assert len(world.index) == 400
    world.store.remove("00007")
    world.put(mu[:40], kappa[:40] / 2, [f"late {i}" for i in range(40)])
    world.index.follow()
    world.check(mu[:2], np.array([300.0, 20.0]), 5)
    assert len(world.index) == 439


def test_an_empty_gallery_and_one_emptied_have_no_hits() -> None:
    probe = np.eye(3, dtype=np.float32)[:1]
    world = World(np.empty((0, 3), np.float32), np.empty(0))
    assert not world.search(probe, np.ones(1), 3)[0].best
    world.put(probe, np.ones(1), ["a"])
    world.index.follow()
    assert len(world.search(probe, np.ones(1), 3)[0].best) == 1
    world.store.remove("a")
    world.index.follow()
    assert not world.search(probe, np.ones(1), 3)[0].best


@pytest.mark.usefixtures("small")
def test_few_are_scored_where_kappa_tells_little() -> None:
    rng = np.random.default_rng(2)
    mu, kappa = unit(rng, 8000, 64), rng.uniform(300, 600, 8000)
    assert World(mu, kappa).search(mu[:1], np.array([400.0]), 1)[0].scored < 50


@pytest.mark.parametrize("dim", [1, 3, 512])
def test_the_bound_on_the_error_of_codes_holds(dim: int) -> None:
    rng = np.random.default_rng(3)
    mu = np.concatenate([unit(rng, 500, dim), np.eye(dim, dtype=np.float32)[:1]])
    codes, scale, error = quantise(mu)
    rest = mu.astype(np.float64) - scale[:, None].astype(np.float64) * codes
    assert (np.linalg.norm(rest, axis=1) <= error).all() and (error < 0.015).all()

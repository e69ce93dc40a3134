"""Exact search, compared with brute force."""

import numpy as np
import pytest
from tests.reference.gallery import brute_force

import spherecf.gallery.index as index_module
import spherecf.gallery.search as search_module
from spherecf.common.sealing import Key
from spherecf.gallery.index import Index, quantise
from spherecf.gallery.rows import Template
from spherecf.gallery.sealed import SealedStore
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


class MemoryGallery:
    """A store in memory and its index."""

    def __init__(self, mu: np.ndarray, kappa: np.ndarray, key: Key | None = None) -> None:
        dim = mu.shape[1]
        self.store = Store(":memory:", dim) if key is None else SealedStore(":memory:", dim, key)
        self.store.create({})
        self.put(mu, kappa, [f"{i:05d}" for i in range(len(mu))])
        self.index = Index(self.store, mu.shape[1])

    def put(self, mu: np.ndarray, kappa: np.ndarray, names: list[str]) -> list[int]:
        rows = zip(names, mu, kappa)
        return self.store.insert([Template(name, name, m, float(k), 1, 1, FACTS) for name, m, k in rows])

    def search(self, mu: np.ndarray, kappa: np.ndarray, top: int) -> list[Hits]:
        return search(self.index, self.store, mu, kappa, top, RADIUS)

    def check(self, mu: np.ndarray, kappa: np.ndarray, top: int) -> None:
        for hits, probe, probe_kappa in zip(self.search(mu, kappa, top), mu, kappa):
            ids, scores = brute_force(self.store, probe, probe_kappa, top, RADIUS)
            assert [hit.id for hit in hits.best] == ids
            actual = [-hit.negative_score for hit in hits.best]
            np.testing.assert_allclose(actual, scores, rtol=1e-12, atol=1e-9)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make groups, bins and chunks so small that a few hundred rows fill many of them."""
    for name, size in (("SUB", 8), ("BIN", 64), ("_CHUNK", 192), ("_TAIL", 32)):
        monkeypatch.setattr(index_module, name, size)
    monkeypatch.setattr(search_module, "SUB", 8)
    monkeypatch.setattr(search_module, "_GROUPS", 40)
    monkeypatch.setattr(search_module, "_PAIRS", 100)


@pytest.mark.parametrize("name", KAPPAS)
@pytest.mark.parametrize("dim", [3, 64])
@pytest.mark.usefixtures("small")
def test_search_matches_brute_force(name: str, dim: int) -> None:
    rng = np.random.default_rng(0)
    mu, kappa = unit(rng, 1500, dim), KAPPAS[name](rng, 1500)
    gallery = MemoryGallery(mu, kappa)
    probes = np.concatenate([mu[:3], unit(rng, 5, dim), -mu[:1]])
    for probe_kappa in (0.0, 1e-3, 200.0, 1e5, 1e9):
        gallery.check(probes, np.full(len(probes), probe_kappa), 7)
    gallery.check(probes[:2], np.array([200.0, 500.0]), 1)
    gallery.check(probes[:2], np.array([200.0, 500.0]), 5000)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("key", [None, Key(bytes(32), "a test")])
def test_a_probe_with_kappa_0_is_answered_with_the_first_ids(key: Key | None) -> None:
    rng = np.random.default_rng(4)
    mu, kappa = unit(rng, 600, 64), KAPPAS["any size"](rng, 600)
    gallery = MemoryGallery(mu, kappa, key)
    gallery.store.remove("00001")
    gallery.index.follow()
    gallery.check(mu[:3], np.array([0.0, 300.0, 0.0]), 4)
    (hits,) = gallery.search(mu[:1], np.zeros(1), 4)
    assert [hit.id for hit in hits.best] == ["00000", "00002", "00003", "00004"] and hits.scored == 4
    cosines = np.clip(mu[[0, 2, 3, 4]].astype(np.float64) @ mu[0], -1, 1)
    np.testing.assert_allclose([hit.cosine for hit in hits.best], cosines, rtol=0, atol=1e-12)
    assert [hit.kappa for hit in hits.best] == kappa[[0, 2, 3, 4]].tolist()


def test_ties_are_ordered_by_id() -> None:
    mu = np.repeat(np.eye(4, dtype=np.float32)[:1], 300, 0)
    MemoryGallery(mu, np.full(300, 100.0)).check(mu[:1], np.array([50.0]), 5)


@pytest.mark.usefixtures("small")
def test_enrolments_and_removals_take_effect_at_once() -> None:
    rng = np.random.default_rng(1)
    mu, kappa = unit(rng, 400, 16), rng.uniform(1, 1000, 400)
    gallery = MemoryGallery(mu, kappa)
    gallery.check(mu[:2], np.array([300.0, 20.0]), 5)
    best = gallery.search(mu[:1], np.array([300.0]), 1)[0].best[0].identity
    gallery.index.drop(np.array([gallery.store.find(best).row]))
    gallery.store.remove(best)
    rows = gallery.put(mu[1:2], np.array([77.0]), ["new"])
    gallery.index.add(np.array(rows), mu[1:2], np.array([77.0]))
    gallery.check(mu[:2], np.array([300.0, 20.0]), 5)
    assert len(gallery.index) == 400
    gallery.store.remove("00007")
    gallery.put(mu[:40], kappa[:40] / 2, [f"late {i}" for i in range(40)])
    gallery.index.follow()
    gallery.check(mu[:2], np.array([300.0, 20.0]), 5)
    assert len(gallery.index) == 439


def test_empty_galleries_have_no_hits() -> None:
    probe = np.eye(3, dtype=np.float32)[:1]
    gallery = MemoryGallery(np.empty((0, 3), np.float32), np.empty(0))
    assert not gallery.search(probe, np.ones(1), 3)[0].best
    gallery.put(probe, np.ones(1), ["a"])
    gallery.index.follow()
    assert len(gallery.search(probe, np.ones(1), 3)[0].best) == 1
    gallery.store.remove("a")
    gallery.index.follow()
    assert not gallery.search(probe, np.ones(1), 3)[0].best


@pytest.mark.usefixtures("small")
def test_few_rows_are_scored_if_kappas_are_similar() -> None:
    rng = np.random.default_rng(2)
    mu, kappa = unit(rng, 8000, 64), rng.uniform(300, 600, 8000)
    assert MemoryGallery(mu, kappa).search(mu[:1], np.array([400.0]), 1)[0].scored < 50


@pytest.mark.parametrize("dim", [1, 3, 512])
def test_quantisation_errors_are_within_their_bound(dim: int) -> None:
    rng = np.random.default_rng(3)
    mu = np.concatenate([unit(rng, 500, dim), np.eye(dim, dtype=np.float32)[:1]])
    codes, scale, error = quantise(mu)
    residual = mu.astype(np.float64) - scale[:, None].astype(np.float64) * codes
    assert (np.linalg.norm(residual, axis=1) <= error).all() and (error < 0.015).all()

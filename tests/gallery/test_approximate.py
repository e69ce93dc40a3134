import numpy as np
import pytest
from tests.gallery.test_search import mirror_of

from spherecf.gallery.search import Finder

pytest.importorskip("faiss", reason='no faiss: pip install "spherecf[gallery]"')


def test_finds_most_and_scores_them_right_and_sees_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.gallery.search.MIN_APPROXIMATE", 100)
    monkeypatch.setattr("spherecf.gallery.search._NEAR", 20)
    rng = np.random.default_rng(0)
    mu = rng.standard_normal((3000, 16)).astype(np.float32)
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    mirror = mirror_of(mu, rng.uniform(200, 400, 3000))
    finder = Finder(mirror, 64.0, None, None)
    agree = 0
    for probe in mu[:40]:
        exact, near = finder.find(probe, 300.0, 1), finder.find(probe, 300.0, 1, exact=False)
        assert near.scored <= 21
        if near.rows[0] == exact.rows[0]:
            agree += 1
            assert near.scores[0] == pytest.approx(exact.scores[0], rel=1e-12)
    assert agree >= 36
    gone = str(mirror.keys[finder.find(mu[0], 300.0, 1).rows[0]])
    mirror.drop(gone)
    mirror.put("new", "New", mu[0], 300.0, 1, 1)
    assert mirror.keys[finder.find(mu[0], 300.0, 1, exact=False).rows[0]] == "new"

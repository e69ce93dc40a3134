import numpy as np
import pytest

from spherecf.audit import labels as labels_module
from spherecf.audit.labels import blocks, class_means, own_cosines
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError


def drawn(count: int = 60, dim: int = 5, seed: int = 0) -> Embeddings:
    rng = np.random.default_rng(seed)
    mu = rng.standard_normal((count, dim))
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    labels = rng.integers(-1, 12, count)
    return Embeddings(
        mu=mu, log_kappa=np.zeros(count), keys=list(map(str, range(count))), labels=labels,
        identities=[f"p{number}" for number in range(15)],
    )  # fmt: skip


def test_means_and_leave_one_out_cosines_agree_with_the_obvious_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_ROWS", 7)  # several blocks, that cut identities apart
    e = drawn()
    prototypes, own = class_means(e)
    cosines = own_cosines(e, prototypes, own)
    assert e.labels is not None and prototypes.labels.tolist() == sorted(set(e.labels.tolist()) - {-1})
    for place, label in enumerate(prototypes.labels):
        total = e.mu[e.labels == label].sum(0)
        np.testing.assert_allclose(prototypes.mu[place], total / np.linalg.norm(total), atol=1e-6)
        assert prototypes.names[place] == f"p{label}"
    for row, label in enumerate(e.labels):
        others = np.flatnonzero((e.labels == label) & (np.arange(len(e)) != row))
        if label < 0 or not len(others):
            assert np.isnan(cosines[row])
            continue
        rest = e.mu[others].sum(0)
        assert cosines[row] == pytest.approx(e.mu[row] @ rest / np.linalg.norm(rest), abs=1e-5)


def test_without_identities_there_is_nothing_to_do() -> None:
    e = drawn()
    e.labels = None
    with pytest.raises(InputError, match="no identities"):
        class_means(e)


def test_blocks_cover_all_rows_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_CELLS", 100)
    parts = list(blocks(35, 9))
    assert all((part.stop - part.start) * 9 <= 100 for part in parts)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(35))

import numpy as np
import pytest

from spherecf.audit import labels as labels_module
from spherecf.audit.labels import blocks, class_means, own_cosines
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError


def random_embeddings(count: int = 60, dim: int = 5, seed: int = 0) -> Embeddings:
    rng = np.random.default_rng(seed)
    mu = rng.standard_normal((count, dim))
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    labels = rng.integers(-1, 12, count)
    return Embeddings(
        mu=mu, log_kappa=np.zeros(count), keys=list(map(str, range(count))), labels=labels,
        identities=[f"p{number}" for number in range(15)],
    )  # fmt: skip


def test_means_and_leave_one_out_cosines_equal_direct_calculations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_ROWS", 7)  # several blocks, with identities across their borders
    e = random_embeddings()
    prototypes, prototype_rows = class_means(e)
    cosines = own_cosines(e, prototypes, prototype_rows)
    assert e.labels is not None and prototypes.labels.tolist() == sorted(set(e.labels.tolist()) - {-1})
    for position, label in enumerate(prototypes.labels):
        total = e.mu[e.labels == label].sum(0)
        np.testing.assert_allclose(prototypes.mu[position], total / np.linalg.norm(total), atol=1e-6)
        assert prototypes.names[position] == f"p{label}"
    for row, label in enumerate(e.labels):
        companions = np.flatnonzero((e.labels == label) & (np.arange(len(e)) != row))
        if label < 0 or not len(companions):
            assert np.isnan(cosines[row])
            continue
        companion_sum = e.mu[companions].sum(0)
        assert cosines[row] == pytest.approx(
            e.mu[row] @ companion_sum / np.linalg.norm(companion_sum), abs=1e-5
        )


def test_embeddings_without_identities_are_refused() -> None:
    e = random_embeddings()
    e.labels = None
    with pytest.raises(InputError, match="no identities"):
        class_means(e)


def test_blocks_cover_all_rows_and_respect_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "_CELLS", 100)
    parts = list(blocks(35, 9))
    assert all((part.stop - part.start) * 9 <= 100 for part in parts)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(35))

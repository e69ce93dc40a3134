from pathlib import Path

import numpy as np
import pytest

from spherecf.audit import find_suspects
from spherecf.audit.checks import embed_directions
from spherecf.data import RecordFile
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.models import FrozenBackbone


def people(identities: int = 40, images: int = 12, spread: float = 0.08, seed: int = 0) -> Embeddings:
    """Well separated people in 64 dimensions."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((identities, 64))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    labels = np.repeat(np.arange(identities), images)
    mu = means[labels] + spread * rng.standard_normal((len(labels), 64))
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    keys = [f"{label}/{row}" for row, label in enumerate(labels)]
    return Embeddings(
        mu=mu,
        log_kappa=np.zeros(len(mu)),
        keys=keys,
        labels=labels,
        identities=list(map(str, range(identities))),
    )


def mislabel(e: Embeddings, count: int, seed: int = 0, least: int = 2) -> list[int]:
    """File ``count`` images under another identity with as many images; the rows."""
    assert e.labels is not None
    rng = np.random.default_rng(seed)
    counts = np.bincount(e.labels)
    rows = rng.choice(np.flatnonzero(counts[e.labels] >= least), count, replace=False)
    able = np.flatnonzero(counts >= least)
    for row in rows:
        e.labels[row] = rng.choice(able[able != e.labels[row]])
    return sorted(rows.tolist())


def test_planted_labels_are_found_and_nothing_else() -> None:
    e = people()
    rows = mislabel(e, 10)
    found = find_suspects(e)
    assert sorted(e.keys.index(item.key) for item in found.suspects) == rows
    assert found.judged == len(e)
    for item in found.suspects:
        assert item.other == item.key.split("/")[0] and item.identity != item.other
    gaps = [item.other_cosine - item.own_cosine for item in found.suspects]
    assert gaps == sorted(gaps, reverse=True)


def test_a_clean_set_has_no_suspects() -> None:
    assert find_suspects(people()).suspects == []


def test_thresholds_are_the_stated_quantiles() -> None:
    e = people(10, 6, 0.1)
    found = find_suspects(e, fmr=0.05, fpir=0.1).thresholds
    assert e.labels is not None
    means = np.stack([e.mu[e.labels == label].sum(0) for label in range(10)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = e.mu @ means.T
    others = [np.delete(row, label) for row, label in zip(cosines, e.labels)]
    assert found.images == 60 and found.comparisons == 540
    assert found.own == pytest.approx(np.quantile(np.concatenate(others), 0.95), abs=1e-5)
    assert found.other == pytest.approx(np.quantile([row.max() for row in others], 0.9), abs=1e-5)


def test_images_alone_in_their_identity_are_not_judged() -> None:
    e = people()
    assert e.labels is not None
    e.labels[:12] = np.where(np.arange(12) == 0, 0, -1)
    found = find_suspects(e)
    assert found.judged == len(e) - 12 and found.suspects == []


def test_what_cannot_be_judged_is_refused() -> None:
    e = people(3, 1)
    with pytest.raises(InputError, match="no identity has two images"):
        find_suspects(e)
    with pytest.raises(InputError, match="at least two identities"):
        find_suspects(people(1, 4))
    with pytest.raises(InputError, match="0 < fmr < 1"):
        find_suspects(people(), fmr=0.0)


@pytest.mark.slow
def test_wrong_labels_in_lfw_are_found(shared: Path) -> None:
    """20 images of people with five filed under another such person, among LFW's own few errors."""
    source = RecordFile(shared / "data" / "lfw")
    counts = np.bincount(source.labels)
    part = source.subset(np.flatnonzero(counts[source.labels] == 5))
    e = embed_directions(FrozenBackbone.default(), part)
    planted = {e.keys[row] for row in mislabel(e, 20, least=5)}
    found = {item.key for item in find_suspects(e).suspects}
    assert len(planted & found) >= 18
    assert len(planted & found) >= 0.6 * len(found), "suspects that were not planted should be few"

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
    """Embeddings of well separated people in 64 dimensions."""
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


def mislabel(e: Embeddings, count: int, seed: int = 0, min_images: int = 2) -> list[int]:
    """Move ``count`` images to other identities with ``min_images`` or more images; returns their rows."""
    assert e.labels is not None
    rng = np.random.default_rng(seed)
    counts = np.bincount(e.labels)
    rows = rng.choice(np.flatnonzero(counts[e.labels] >= min_images), count, replace=False)
    candidates = np.flatnonzero(counts >= min_images)
    for row in rows:
        e.labels[row] = rng.choice(candidates[candidates != e.labels[row]])
    return sorted(rows.tolist())


def test_exactly_the_planted_wrong_labels_are_found() -> None:
    e = people()
    rows = mislabel(e, 10)
    result = find_suspects(e)
    assert sorted(e.keys.index(item.key) for item in result.suspects) == rows
    assert result.judged == len(e)
    for item in result.suspects:
        assert item.other == item.key.split("/")[0] and item.identity != item.other
    gaps = [item.other_cosine - item.own_cosine for item in result.suspects]
    assert gaps == sorted(gaps, reverse=True)


def test_a_clean_set_has_no_suspects() -> None:
    assert find_suspects(people()).suspects == []


def test_thresholds_are_the_stated_quantiles() -> None:
    e = people(10, 6, 0.1)
    thresholds = find_suspects(e, fmr=0.05, fpir=0.1).thresholds
    assert e.labels is not None
    means = np.stack([e.mu[e.labels == label].sum(0) for label in range(10)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = e.mu @ means.T
    other_cosines = [np.delete(row, label) for row, label in zip(cosines, e.labels)]
    assert thresholds.images == 60 and thresholds.comparisons == 540
    assert thresholds.own == pytest.approx(np.quantile(np.concatenate(other_cosines), 0.95), abs=1e-5)
    assert thresholds.other == pytest.approx(np.quantile([row.max() for row in other_cosines], 0.9), abs=1e-5)


def test_single_images_of_an_identity_are_not_checked() -> None:
    e = people()
    assert e.labels is not None
    e.labels[:12] = np.where(np.arange(12) == 0, 0, -1)
    result = find_suspects(e)
    assert result.judged == len(e) - 12 and result.suspects == []


def test_sets_that_cannot_be_checked_are_refused() -> None:
    e = people(3, 1)
    with pytest.raises(InputError, match="no identity has two images"):
        find_suspects(e)
    with pytest.raises(InputError, match="at least two identities"):
        find_suspects(people(1, 4))
    with pytest.raises(InputError, match="0 < fmr < 1"):
        find_suspects(people(), fmr=0.0)


@pytest.mark.slow
def test_wrong_labels_in_lfw_are_found(shared: Path) -> None:
    """People with five images each: 20 images are mislabelled, and LFW has few errors of its own."""
    source = RecordFile(shared / "data" / "lfw")
    counts = np.bincount(source.labels)
    part = source.subset(np.flatnonzero(counts[source.labels] == 5))
    e = embed_directions(FrozenBackbone.default(), part)
    planted = {e.keys[row] for row in mislabel(e, 20, min_images=5)}
    suspects = {item.key for item in find_suspects(e).suspects}
    assert len(planted & suspects) >= 18
    assert len(planted & suspects) >= 0.6 * len(suspects), "suspects that were not planted should be few"

"""Synthetic template sets: structure of IJB-C, reproducibility, evaluation at one per cent of its size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.template_sets import SyntheticTemplates, synthetic_templates

from spherecf.errors import InputError
from spherecf.evaluation import ScoreSplit, tmr_at_fmr
from spherecf.scoring import mutual_likelihood_score, pool_templates, score_template_pairs
from spherecf.vmf import mean_resultant_length


@pytest.fixture(scope="module")
def dataset() -> SyntheticTemplates:
    return synthetic_templates(0.01, dim=64)


def test_set_has_the_structure_of_ijb_c(dataset: SyntheticTemplates) -> None:
    g1, g2 = dataset.galleries.values()
    subject_of = dict(zip(dataset.ids.tolist(), dataset.subjects.tolist()))
    assert (g1.size, g2.size, dataset.probes.size, len(dataset.mu)) == (18, 17, 196, 4694)
    enrolled = [subject_of[t] for t in [*g1.tolist(), *g2.tolist()]]
    assert sorted(enrolled) == list(range(35))  # every subject is in exactly one gallery
    assert np.array_equal(np.sort(np.concatenate([g1, g2, dataset.probes])), dataset.ids)
    assert np.array_equal(np.unique(dataset.templates), dataset.ids)
    assert (np.diff(dataset.ids) > 0).all() and dataset.kappa.max() / dataset.kappa.min() > 20
    sizes = np.bincount(np.searchsorted(dataset.ids, dataset.templates))
    assert sizes.min() == 1 and sizes.max() > 50
    for medium in np.unique(dataset.media)[:50]:
        assert np.unique(dataset.templates[dataset.media == medium]).size == 1


def test_pairs_follow_the_protocol(dataset: SyntheticTemplates) -> None:
    left, right, mated = dataset.pairs()
    subject_of = dict(zip(dataset.ids.tolist(), dataset.subjects.tolist()))
    assert set(left.tolist()) <= {t for g in dataset.galleries.values() for t in g.tolist()}
    assert set(right.tolist()) <= set(dataset.probes.tolist())
    assert [subject_of[a] == subject_of[b] for a, b in zip(left.tolist(), right.tolist())] == mated.tolist()
    assert mated.sum() == 196 and 1000 < left.size < 2000
    assert (np.diff(left) < 0).any() and (np.diff(mated.astype(int)) != 0).sum() > 100  # the order is random
    left, right, mated = dataset.random_pairs(2000)
    assert 15 <= mated.sum() <= 200 and np.unique(left).size > 200 and (left != right).all()
    assert [subject_of[a] == subject_of[b] for a, b in zip(left.tolist(), right.tolist())] == mated.tolist()


def test_equal_seeds_give_equal_sets_in_memory_and_in_a_file(
    dataset: SyntheticTemplates, tmp_path: Path
) -> None:
    mapped = synthetic_templates(0.01, dim=64, path=tmp_path / "mu.npy")
    assert isinstance(mapped.mu, np.memmap)
    np.testing.assert_array_equal(mapped.mu, dataset.mu)
    for actual, expected in zip(mapped.pairs(), dataset.pairs()):
        np.testing.assert_array_equal(actual, expected)
    assert not np.array_equal(synthetic_templates(0.01, dim=64, seed=1).mu, dataset.mu)


def test_directions_spread_as_kappa_predicts(dataset: SyntheticTemplates) -> None:
    subject = dataset.subjects[np.searchsorted(dataset.ids, dataset.templates)]
    weighted = dataset.kappa[:, None] * dataset.mu
    centre = np.stack([weighted[subject == k].sum(0) for k in range(35)])
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    cos = (dataset.mu * centre[subject]).sum(1)
    expected = mean_resultant_length(torch.from_numpy(dataset.kappa).double(), 64).numpy()
    for low, high in ((0, 200), (200, 600), (600, 1e9)):
        in_range = (dataset.kappa >= low) & (dataset.kappa < high)
        assert cos[in_range].mean() == pytest.approx(expected[in_range].mean(), abs=0.02)


@pytest.mark.parametrize("score", ["cosine", "mls"])
def test_fast_pipeline_matches_the_reference(dataset: SyntheticTemplates, score: str) -> None:
    """Pooling, scoring and rates with the fast functions, compared with the simple ones."""
    templates = pool_templates(dataset.mu, dataset.kappa, dataset.templates, dataset.media)
    left, right, mated = dataset.pairs()
    a, b = templates.positions(left), templates.positions(right)
    scores = score_template_pairs(templates, templates, a, b, score)
    mu, kappa = torch.from_numpy(templates.mu).double(), torch.from_numpy(templates.kappa).double()
    reference = (mu[a] * mu[b]).sum(1)
    if score == "mls":
        reference = mutual_likelihood_score(mu[a], kappa[a], mu[b], kappa[b])
    np.testing.assert_allclose(scores, reference, atol=2e-3, rtol=1e-6)
    rates = ScoreSplit.of(scores, mated).tmr_at_fmr([0.1, 0.01])
    assert rates == tmr_at_fmr(scores, mated, [0.1, 0.01])
    assert rates[1].tmr is not None and rates[1].tmr > 0.9


def test_invalid_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 4 subjects"):
        synthetic_templates(0.0001)
    with pytest.raises(InputError, match="an image per template"):
        synthetic_templates(0.01, images=5)

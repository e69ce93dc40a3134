"""The synthetic set has the make of IJB-C, is what it says, and runs end to end at one percent."""

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
def world() -> SyntheticTemplates:
    return synthetic_templates(0.01, dim=64)


def test_make_of_ijb_c(world: SyntheticTemplates) -> None:
    g1, g2 = world.galleries.values()
    person = dict(zip(world.ids.tolist(), world.subjects.tolist()))
    assert (g1.size, g2.size, world.probes.size, len(world.mu)) == (18, 17, 196, 4694)
    enrolled = [person[t] for t in [*g1.tolist(), *g2.tolist()]]
    assert sorted(enrolled) == list(range(35))  # every subject once, in one gallery
    assert np.array_equal(np.sort(np.concatenate([g1, g2, world.probes])), world.ids)
    assert np.array_equal(np.unique(world.templates), world.ids)
    assert (np.diff(world.ids) > 0).all() and world.kappa.max() / world.kappa.min() > 20
    sizes = np.bincount(np.searchsorted(world.ids, world.templates))
    assert sizes.min() == 1 and sizes.max() > 50
    for medium in np.unique(world.media)[:50]:
        assert np.unique(world.templates[world.media == medium]).size == 1


def test_pairs_of_the_protocol(world: SyntheticTemplates) -> None:
    left, right, mated = world.pairs()
    person = dict(zip(world.ids.tolist(), world.subjects.tolist()))
    assert set(left.tolist()) <= {t for g in world.galleries.values() for t in g.tolist()}
    assert set(right.tolist()) <= set(world.probes.tolist())
    assert [person[a] == person[b] for a, b in zip(left.tolist(), right.tolist())] == mated.tolist()
    assert mated.sum() == 196 and 1000 < left.size < 2000
    assert (np.diff(left) < 0).any() and (np.diff(mated.astype(int)) != 0).sum() > 100  # in no order
    left, right, mated = world.random_pairs(2000)
    assert 15 <= mated.sum() <= 200 and np.unique(left).size > 200 and (left != right).all()
    assert [person[a] == person[b] for a, b in zip(left.tolist(), right.tolist())] == mated.tolist()


def test_equal_seeds_give_equal_sets_in_memory_and_in_a_file(
    world: SyntheticTemplates, tmp_path: Path
) -> None:
    mapped = synthetic_templates(0.01, dim=64, path=tmp_path / "mu.npy")
    assert isinstance(mapped.mu, np.memmap)
    np.testing.assert_array_equal(mapped.mu, world.mu)
    for one, other in zip(mapped.pairs(), world.pairs()):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(synthetic_templates(0.01, dim=64, seed=1).mu, world.mu)


def test_directions_are_as_sure_as_kappa_says(world: SyntheticTemplates) -> None:
    owner = world.subjects[np.searchsorted(world.ids, world.templates)]
    centre = np.stack([(world.kappa[owner == k, None] * world.mu[owner == k]).sum(0) for k in range(35)])
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    cos = (world.mu * centre[owner]).sum(1)
    expected = mean_resultant_length(torch.from_numpy(world.kappa).double(), 64).numpy()
    for low, high in ((0, 200), (200, 600), (600, 1e9)):
        here = (world.kappa >= low) & (world.kappa < high)
        assert cos[here].mean() == pytest.approx(expected[here].mean(), abs=0.02)


@pytest.mark.parametrize("score", ["cosine", "mls"])
def test_from_features_to_rates(world: SyntheticTemplates, score: str) -> None:
    """Everything of the quick way against everything of the slow way."""
    templates = pool_templates(world.mu, world.kappa, world.templates, world.media)
    left, right, mated = world.pairs()
    a, b = templates.positions(left), templates.positions(right)
    scores = score_template_pairs(templates, templates, a, b, score)
    mu, kappa = torch.from_numpy(templates.mu).double(), torch.from_numpy(templates.kappa).double()
    slow = (mu[a] * mu[b]).sum(1)
    if score == "mls":
        slow = mutual_likelihood_score(mu[a], kappa[a], mu[b], kappa[b])
    np.testing.assert_allclose(scores, slow, atol=2e-3, rtol=1e-6)
    found = ScoreSplit.of(scores, mated).tmr_at_fmr([0.1, 0.01])
    assert found == tmr_at_fmr(scores, mated, [0.1, 0.01])
    assert found[1].tmr is not None and found[1].tmr > 0.9


def test_bad_input() -> None:
    with pytest.raises(InputError, match="at least 4 subjects"):
        synthetic_templates(0.0001)
    with pytest.raises(InputError, match="an image per template"):
        synthetic_templates(0.01, images=5)

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.conftest import make_cache

from spherecf.errors import InputError
from spherecf.losses import certainty_ratio_loss
from spherecf.training import FeatureCache, LossSettings, prototype_targets
from spherecf.training.heads import make_objective

LABELS = np.array([0, 0, 0, 1, 1, 2, -1])
VIEWS = 2


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(len(LABELS) * VIEWS, 8)).astype(np.float32)
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    return make_cache(tmp_path / "cache", LABELS, mu, np.zeros((len(mu), 3), np.float32), views=VIEWS)


def slow_targets(cache: FeatureCache, leave_one_out: bool) -> dict[int, float]:
    """The definition as plain loops over images and views."""
    clean = {image: cache.mu[image * VIEWS] for image in range(len(LABELS)) if cache.valid[image * VIEWS]}
    cosines = {}
    for row in range(len(cache)):
        image = row // VIEWS
        label = LABELS[image]
        companions = [
            mu for companion, mu in clean.items() if LABELS[companion] == label and companion != image
        ]
        if label < 0 or not companions or not cache.valid[row]:
            continue
        mean = np.sum(companions if leave_one_out else [*companions, clean[image]], 0)
        cosines[row] = float(cache.mu[row] @ mean / np.linalg.norm(mean))
    return cosines


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_targets_equal_the_slow_reference(cache: FeatureCache, leave_one_out: bool) -> None:
    targets = prototype_targets(cache, leave_one_out=leave_one_out)
    expected = slow_targets(cache, leave_one_out)
    assert targets.rows.tolist() == list(expected)
    np.testing.assert_allclose(targets.cosine, list(expected.values()), atol=1e-6)
    assert targets.singletons == ["2/5.jpg"]
    assert targets.identities.tolist() == [0] * 6 + [1] * 4


def test_including_the_sample_in_its_prototype_raises_the_cosine(cache: FeatureCache) -> None:
    excluded, included = (prototype_targets(cache, leave_one_out=flag) for flag in (True, False))
    clean = excluded.rows % VIEWS == 0
    assert included.cosine[clean].mean() > excluded.cosine[clean].mean() + 0.1


def test_an_image_whose_only_companion_is_unreadable_is_a_singleton(tmp_path: Path) -> None:
    mu = np.eye(6, 8, dtype=np.float32)
    valid = np.array([1, 1, 0, 1, 1, 1], bool)
    labels = np.array([0, 0, 1, 1, 2, 2])
    targets = prototype_targets(make_cache(tmp_path / "c", labels, mu, np.zeros((6, 2)), valid))
    assert targets.singletons == ["1/3.jpg"] and targets.rows.tolist() == [0, 1, 4, 5]


def test_cosines_to_given_prototypes_cover_all_labelled_images(cache: FeatureCache) -> None:
    prototypes = torch.eye(3, 8)
    targets = prototype_targets(cache, prototypes)
    labelled = np.flatnonzero(cache.labels >= 0)
    assert targets.rows.tolist() == labelled.tolist()
    np.testing.assert_allclose(targets.cosine, cache.mu[labelled, cache.labels[labelled]], atol=1e-6)


def test_prototypes_that_do_not_match_the_data_are_refused(cache: FeatureCache) -> None:
    with pytest.raises(InputError, match="labels reach 2, but there are 2 prototypes"):
        prototype_targets(cache, torch.eye(2, 8))
    with pytest.raises(InputError, match="prototypes have dimension 9, the backbone 8"):
        prototype_targets(cache, torch.eye(3, 9))


def test_a_cache_without_the_clean_view_of_an_image_is_refused(tmp_path: Path) -> None:
    valid = np.array([1, 1, 0, 1], bool)  # the second image has only its degraded view
    mu = np.eye(4, 8, dtype=np.float32)
    cache = make_cache(tmp_path / "c", np.array([0, 0]), mu, np.zeros((4, 2)), valid, views=VIEWS)
    with pytest.raises(InputError, match="lacks the clean view of some images; view 0 must be the clean one"):
        prototype_targets(cache)


def test_data_without_companions_is_refused(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", np.array([0, 1]), np.eye(2, 4, dtype=np.float32), np.zeros((2, 2)))
    with pytest.raises(InputError, match="2 images, 0 unreadable, 2 the only one of their identity"):
        prototype_targets(cache)


def test_impostors_exclude_the_own_and_absent_identities(tmp_path: Path) -> None:
    """Identity 3 has no image: its zero prototype must never be the nearest."""
    labels = np.array([0, 0, 1, 1, 2, 4])
    mu = np.zeros((6, 4), np.float32)
    mu[np.arange(6), [0, 0, 1, 1, 2, 3]] = -1  # different people have cosine 0
    mu[5] = [-0.6, -0.8, 0, 0]
    targets = prototype_targets(make_cache(tmp_path / "c", labels, mu, np.zeros((6, 2))), leave_one_out=False)
    prototypes = targets.prototypes.all()
    assert prototypes.shape == (5, 4) and not prototypes[3].any()
    faces = torch.tensor([[-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.6, 0.8]])
    objective = make_objective(LossSettings("cr-fiqa"), 4, targets.prototypes)
    loss = objective.loss(torch.zeros(2), torch.tensor([1.0, -0.6]), faces, torch.tensor([0, 2]))
    # The first is nearest to person 4 (0.6); the second has cosine 0 to persons 0, 1 and 4.
    expected = certainty_ratio_loss(
        torch.zeros(2), torch.tensor([1.0, -0.6]), torch.tensor([0.6, 0.0]), "none"
    )
    torch.testing.assert_close(loss, expected)


def test_impostors_are_sought_among_given_prototypes(cache: FeatureCache) -> None:
    targets = prototype_targets(cache, torch.eye(3, 8))
    objective = make_objective(LossSettings("cr-fiqa"), 8, targets.prototypes)
    cosine, face = torch.tensor([0.6]), torch.tensor([[0.6, 0.3, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]])
    loss = objective.loss(torch.zeros(1), cosine, face, torch.tensor([0]))
    torch.testing.assert_close(
        loss, certainty_ratio_loss(torch.zeros(1), cosine, torch.tensor([0.5]), "none")
    )

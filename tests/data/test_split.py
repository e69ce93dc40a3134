from pathlib import Path

import numpy as np
import pytest

from spherecf.data import IdentityFolder, split_identities
from spherecf.errors import InputError


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
def test_splits_are_disjoint_by_identity_and_complete(fraction: float) -> None:
    labels = np.random.default_rng(0).integers(-1, 50, 400)
    train, held_out = split_identities(labels, fraction, seed=3)
    assert not set(labels[train]) & set(labels[held_out])
    assert sorted([*train, *held_out]) == np.flatnonzero(labels >= 0).tolist()
    assert len(set(labels[held_out])) == min(max(round(50 * fraction), 1), 49)


def test_the_split_depends_on_the_seed_only() -> None:
    labels = np.repeat(np.arange(100), 2)
    first, repeated, other_seed = (split_identities(labels, 0.3, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == repeated != other_seed


def test_a_fraction_of_zero_holds_out_no_identity(folder: Path) -> None:
    train, held_out = split_identities(IdentityFolder(folder), 0.0, seed=1)
    assert train.tolist() == list(range(6)) and len(held_out) == 0


@pytest.mark.parametrize(
    ("labels", "fraction"), [([0, 1], 1.0), ([0, 1], -0.1), ([0, 0], 0.5), ([-1, -1], 0.5)]
)
def test_impossible_splits_are_refused(labels: list[int], fraction: float) -> None:
    with pytest.raises(InputError):
        split_identities(np.array(labels), fraction, seed=1)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="seed must not be negative, got -1"):
        split_identities(np.array([0, 1]), 0.5, seed=-1)

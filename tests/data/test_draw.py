import numpy as np
import pytest
from tests.training.conftest import NamedRows

from spherecf.data import draw_pairs
from spherecf.errors import InputError

LABELS = np.array([0] * 5 + [1] * 4 + [2] * 3 + [3] * 2 + [4] + [5] * 6)


def test_mated_and_non_mated_pairs_are_drawn_without_repetition() -> None:
    source = NamedRows(LABELS)
    pairs = draw_pairs(source, max_pairs=15, folds=4)
    assert pairs.mated.sum() == 15 and len(pairs) == 30
    for left, right, mated in zip(pairs.left, pairs.right, pairs.mated):
        assert left != right and (left.split("/")[0] == right.split("/")[0]) == mated
    assert len({frozenset(pair) for pair in zip(pairs.left, pairs.right)}) == 30


def test_all_pairs_are_returned_when_fewer_exist_than_requested() -> None:
    pairs = draw_pairs(NamedRows(LABELS), max_pairs=10_000)
    assert pairs.mated.sum() == 10 + 6 + 3 + 1 + 15 and (~pairs.mated).sum() == 35


def test_mated_pairs_of_one_person_share_a_fold_and_no_fold_is_empty() -> None:
    pairs = draw_pairs(NamedRows(LABELS), folds=4, seed=3)
    folds: dict[str, set[int]] = {}
    for left, mated, fold in zip(pairs.left, pairs.mated, pairs.fold):
        if mated:
            folds.setdefault(left.split("/")[0], set()).add(int(fold))
    assert all(len(person_folds) == 1 for person_folds in folds.values())
    assert set().union(*folds.values()) == set(range(pairs.folds)) == {0, 1, 2, 3}


def test_equal_seeds_draw_equal_pairs() -> None:
    first, repeated, other_seed = (
        draw_pairs(NamedRows(LABELS), max_pairs=8, seed=seed) for seed in (1, 1, 2)
    )
    assert first.fingerprint() == repeated.fingerprint() != other_seed.fingerprint()


def test_images_without_identity_are_excluded() -> None:
    labels = np.array([0, 0, 1, 1, -1, -1])
    pairs = draw_pairs(NamedRows(labels))
    assert not any(key.startswith("-1") for key in (*pairs.left, *pairs.right))


def test_one_person_is_not_enough() -> None:
    with pytest.raises(InputError, match="at least two people with two or more images each, got 1"):
        draw_pairs(NamedRows(np.array([0, 0, 0, 1, 2])))

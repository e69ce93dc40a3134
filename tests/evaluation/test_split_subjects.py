"""Nobody is in two parts, and no two disjoint pairs share a person."""

import numpy as np
import pytest

from spherecf.errors import InputError
from spherecf.evaluation import disjoint_pairs, split_subjects


def pairs(people: int, n: int, groups: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random pairs within groups of people, 40 % mated."""
    rng = np.random.default_rng(0)
    mated = rng.random(n) < 0.4
    each = people // groups
    group = rng.integers(groups, size=n)
    left = group * each + rng.integers(each, size=n)
    other = group * each + (left % each + rng.integers(1, each, size=n)) % each
    return left, np.where(mated, left, other), mated


@pytest.mark.parametrize("groups, drawn", [(20, "groups"), (1, "people")])
def test_parts_have_nobody_in_common(groups: int, drawn: str) -> None:
    left, right, _ = pairs(200, 3000, groups)
    part, how = split_subjects(left, right, [1, 1, 2], seed=3)
    assert how == drawn
    own = [set(left[part == i]) | set(right[part == i]) for i in range(3)]
    assert not (own[0] & own[1] or own[0] & own[2] or own[1] & own[2])
    sizes = np.array([(part == i).sum() for i in range(3)])
    if groups > 1:
        assert (part >= 0).all() and np.abs(sizes / 3000 - [0.25, 0.25, 0.5]).max() < 0.06
    else:
        across = part < 0
        assert (left[across] != right[across]).all() and 0.3 < across.mean() < 0.5
        people = np.array([len(one) for one in own])
        assert np.abs(people / 200 - [0.25, 0.25, 0.5]).max() < 0.06


def test_names_do_as_well_as_numbers_and_the_seed_matters() -> None:
    left, right, _ = pairs(60, 400)
    names = left.astype(str), right.astype(str)
    once, again = split_subjects(*names, [1, 1], seed=1), split_subjects(*names, [1, 1], seed=1)
    assert np.array_equal(once[0], again[0])
    assert not np.array_equal(once[0], split_subjects(*names, [1, 1], seed=2)[0])


def test_disjoint_pairs_share_nobody_and_keep_the_mix() -> None:
    left, right, mated = pairs(900, 5000)
    rows = disjoint_pairs(left, right, mated, seed=1)
    people = [{left[row], right[row]} for row in rows]
    assert len(set.union(*people)) == sum(map(len, people))
    assert len(rows) > 400 and abs(mated[rows].mean() - mated.mean()) < 0.01
    assert not np.array_equal(rows, disjoint_pairs(left, right, mated, seed=2))
    only = disjoint_pairs(left[mated], right[mated], mated[mated])
    assert len(only) == np.unique(left[mated]).size


def test_too_few_people_are_refused() -> None:
    with pytest.raises(InputError, match="2 people cannot make 3 disjoint parts"):
        split_subjects(["a", "a"], ["a", "b"], [1, 1, 1])
    with pytest.raises(InputError, match=r"two \(n,\) arrays"):
        disjoint_pairs(["a"], ["a", "b"], [1, 0])

"""Parts share no subject, and disjoint pairs share no person."""

import numpy as np
import pytest

from spherecf.errors import InputError
from spherecf.evaluation import disjoint_pairs, split_subjects


def pairs(people: int, n: int, groups: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random pairs within groups of people, 40 % mated."""
    rng = np.random.default_rng(0)
    mated = rng.random(n) < 0.4
    group_size = people // groups
    group = rng.integers(groups, size=n)
    left = group * group_size + rng.integers(group_size, size=n)
    non_mated_right = (
        group * group_size + (left % group_size + rng.integers(1, group_size, size=n)) % group_size
    )
    return left, np.where(mated, left, non_mated_right), mated


@pytest.mark.parametrize("groups, unit", [(20, "groups"), (1, "people")])
def test_parts_share_no_subject(groups: int, unit: str) -> None:
    left, right, _ = pairs(200, 3000, groups)
    part, split_unit = split_subjects(left, right, [1, 1, 2], seed=3)
    assert split_unit == unit
    subjects = [set(left[part == i]) | set(right[part == i]) for i in range(3)]
    assert not (subjects[0] & subjects[1] or subjects[0] & subjects[2] or subjects[1] & subjects[2])
    sizes = np.array([(part == i).sum() for i in range(3)])
    if groups > 1:
        assert (part >= 0).all() and np.abs(sizes / 3000 - [0.25, 0.25, 0.5]).max() < 0.06
    else:
        across = part < 0
        assert (left[across] != right[across]).all() and 0.3 < across.mean() < 0.5
        counts = np.array([len(part_subjects) for part_subjects in subjects])
        assert np.abs(counts / 200 - [0.25, 0.25, 0.5]).max() < 0.06


def test_names_are_split_reproducibly_by_seed() -> None:
    left, right, _ = pairs(60, 400)
    names = left.astype(str), right.astype(str)
    first, repeated = split_subjects(*names, [1, 1], seed=1), split_subjects(*names, [1, 1], seed=1)
    assert np.array_equal(first[0], repeated[0])
    assert not np.array_equal(first[0], split_subjects(*names, [1, 1], seed=2)[0])


def test_disjoint_pairs_share_no_person_and_keep_the_mated_share() -> None:
    left, right, mated = pairs(900, 5000)
    rows = disjoint_pairs(left, right, mated, seed=1)
    people = [{left[row], right[row]} for row in rows]
    assert len(set.union(*people)) == sum(map(len, people))
    assert len(rows) > 400 and abs(mated[rows].mean() - mated.mean()) < 0.01
    assert not np.array_equal(rows, disjoint_pairs(left, right, mated, seed=2))
    mated_only = disjoint_pairs(left[mated], right[mated], mated[mated])
    assert len(mated_only) == np.unique(left[mated]).size


def test_too_few_people_are_refused() -> None:
    with pytest.raises(InputError, match="2 people cannot make 3 disjoint parts"):
        split_subjects(["a", "a"], ["a", "b"], [1, 1, 1])
    with pytest.raises(InputError, match=r"two \(n,\) arrays"):
        disjoint_pairs(["a"], ["a", "b"], [1, 0])

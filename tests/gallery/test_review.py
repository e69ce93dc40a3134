"""Grouping of photos by likelihood ratios, compared with a simple implementation."""

import numpy as np

from spherecf.gallery.review import group_by_likelihood


def reference_groups(llr: np.ndarray) -> list[list[int]]:
    """By definition: join the two groups with the highest mean over their pairs, while it is positive."""
    groups = [[row] for row in range(len(llr))]
    while len(groups) > 1:
        means = {
            (a, b): np.mean([llr[i, j] for i in groups[a] for j in groups[b]])
            for a in range(len(groups))
            for b in range(a + 1, len(groups))
        }
        a, b = max(means, key=lambda pair: means[pair])
        if means[a, b] <= 0:
            break
        groups[a] = sorted(groups[a] + groups.pop(b))
    return sorted(groups, key=lambda rows: (-len(rows), rows[0]))


def test_groups_match_the_reference() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        for shift in (-1.0, 0.0, 0.6):
            half = rng.normal(shift, 1, (n, n))
            llr = half + half.T
            assert group_by_likelihood(llr) == reference_groups(llr)


def test_every_row_is_in_a_group_and_the_diagonal_is_ignored() -> None:
    llr = np.full((4, 4), -1.0)
    np.fill_diagonal(llr, 99.0)
    assert group_by_likelihood(llr) == [[0], [1], [2], [3]]
    assert group_by_likelihood(np.full((3, 3), 0.5)) == [[0, 1, 2]]

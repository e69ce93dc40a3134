"""Do these faces belong together? Groups by average likelihood ratio."""

import numpy as np
from numpy.typing import NDArray


def group_by_likelihood(llr: NDArray[np.floating]) -> list[list[int]]:
    """Groups of rows that more likely than not show one person, largest first.

    Average linkage: the two groups whose pairs have the highest mean log-likelihood ratio are joined, as long
    as it is above 0. Cubic in the number of rows, in numpy: a thousand take seconds.

    Args:
        llr: (n, n) symmetric log-likelihood ratios; the diagonal is not looked at.

    Example:
        >>> alike = np.full((3, 3), -4.0)
        >>> alike[0, 2] = alike[2, 0] = 3.0
        >>> group_by_likelihood(alike)
        [[0, 2], [1]]
    """
    n = len(llr)
    mean = np.array(llr, np.float64)
    np.fill_diagonal(mean, -np.inf)
    groups: list[list[int]] = [[row] for row in range(n)]
    alive = np.ones(n, np.bool_)
    while alive.sum() > 1:
        at = int(np.argmax(mean))
        a, b = divmod(at, n)
        if not mean[a, b] > 0:
            break
        sizes = len(groups[a]), len(groups[b])
        mean[a] = (sizes[0] * mean[a] + sizes[1] * mean[b]) / sum(sizes)
        mean[:, a] = mean[a]
        mean[a, a] = -np.inf
        mean[b], mean[:, b] = -np.inf, -np.inf
        groups[a] += groups[b]
        alive[b] = False
    kept = [sorted(groups[row]) for row in np.flatnonzero(alive)]
    return sorted(kept, key=lambda rows: (-len(rows), rows[0]))

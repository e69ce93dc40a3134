"""TAR at the nearest FAR as evaluation scripts of the field compute it: scikit-learn's ROC, turned round."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve


def tar_at_nearest_far(
    scores: NDArray[np.float64], mated: NDArray[np.float64], targets: Sequence[float]
) -> list[tuple[float, float]]:
    """(TAR, FAR) at each target: of equally near points the first from the right end of the ROC."""
    far, tar, _ = roc_curve(mated, scores)
    points = [(float(x), float(y)) for x, y in zip(far, tar)][::-1]
    found = []
    for target in targets:
        _, chosen = min((abs(x - target), place) for place, (x, _) in enumerate(points))
        found.append((points[chosen][1], points[chosen][0]))
    return found

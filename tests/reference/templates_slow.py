"""Template pooling one image at a time, in float64."""

import numpy as np


def pool(mu, weights, templates, media, rows):  # type: ignore[no-untyped-def]
    """{template: sum over media of the mean weight * mu}."""
    sums = {}
    for template in sorted(set(templates)):
        entries = [i for i, name in enumerate(templates) if name == template]
        total = np.zeros(mu.shape[1])
        for medium in sorted({media[i] for i in entries}):
            frames = [i for i in entries if media[i] == medium]
            total += sum(float(weights[i]) * mu[rows[i]].astype(np.float64) for i in frames) / len(frames)
        sums[template] = total
    return sums

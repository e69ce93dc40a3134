"""Search of a gallery by scoring every template, and sorting."""

import math
from typing import Any

import numpy as np
import torch

from spherecf.scoring import mutual_likelihood_score


def brute_force(
    store: Any, mu: np.ndarray, kappa: float, top: int, radius: float
) -> tuple[list[str], np.ndarray]:
    """(ids, scores) of the best: higher scores first, then smaller ids.

    With kappa 0 the density of the probe is one over the area of the sphere, and so are all likelihoods: the
    scores then differ by rounding noise only, which must not order them.
    """
    people = store.people(store.rows())
    scores = mutual_likelihood_score(
        torch.from_numpy(mu).double()[None],
        torch.tensor([kappa], dtype=torch.float64),
        torch.from_numpy(people.mu).double(),
        torch.from_numpy(people.kappa),
        radius=radius,
    ).numpy()
    if kappa == 0:
        dim = len(mu)
        uniform = math.lgamma(dim / 2) - math.log(2) - dim / 2 * math.log(math.pi) - dim * math.log(radius)
        np.testing.assert_allclose(scores, uniform, rtol=1e-9)
        scores[:] = uniform
    found = sorted(zip((-scores).tolist(), people.ids))[:top]
    return [key for _, key in found], -np.array([score for score, _ in found])


def score_at(cosine: np.ndarray, own: float, kappa: np.ndarray, dim: int, radius: float) -> np.ndarray:
    """Mutual likelihood scores at cosines, from directions that have them."""
    cosine, kappa = np.broadcast_arrays(cosine, kappa)
    mu = np.zeros((*cosine.shape, dim))
    mu[..., 0], mu[..., 1] = cosine, np.sqrt(1 - cosine**2)
    ours = np.zeros(dim)
    ours[0] = 1
    return mutual_likelihood_score(
        torch.from_numpy(ours), torch.tensor(own, dtype=torch.float64), torch.from_numpy(mu),
        torch.from_numpy(kappa.copy()), radius=radius,
    ).numpy()  # fmt: skip

"""The score of Gaussian embeddings, the rivals of the vMF (PFE-G, SCF-G); `pool_templates` pools them."""

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.errors import InputError
from spherecf.scoring._checks import check_directions, check_same_dim


def gaussian_score(
    mu_a: Float[Tensor, "*#batch d"],
    log_precision_a: Float[Tensor, "*#batch e"],
    mu_b: Float[Tensor, "*#batch d"],
    log_precision_b: Float[Tensor, "*#batch e"],
) -> Float[Tensor, "*batch"]:
    """Mutual likelihood score of two Gaussians, the constant left out (Shi & Jain, ICCV 2019, equation 3):

        s = -1/2 sum_l ( (mu_a - mu_b)_l^2 / (v_a + v_b)_l + log (v_a + v_b)_l ),   v = 1 / precision

    Computed in float64 whatever comes in; differentiable.

    Args:
        mu_a: (..., d) means.
        log_precision_a: (..., d) log precisions of PFE-G, or (..., 1) of an isotropic Gaussian (SCF-G).
        mu_b: (..., d), broadcast.
        log_precision_b: like ``log_precision_a``, broadcast.

    Returns:
        (...) scores, larger = more alike; unbounded.

    Raises:
        InputError: log precisions that are NaN or infinite, or neither d nor 1 per mean; NaN means.

    Example:
        >>> import torch
        >>> mu = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> gaussian_score(mu[:1], torch.zeros(1, 2), mu[1:], torch.zeros(1, 2))
        tensor([-0.8931])
    """
    check_same_dim(mu_a, mu_b)
    for mu, log_precision, side in ((mu_a, log_precision_a, "a"), (mu_b, log_precision_b, "b")):
        check_directions(mu, f"mu_{side}")
        check_directions(log_precision, f"log_precision_{side}")
    dim, given = mu_a.shape[-1], log_precision_a.shape[-1]
    if given not in (1, dim):
        raise InputError(f"log_precision: expected 1 or {dim} per mean, got {given}")
    log_sum = torch.logaddexp(-log_precision_a.double(), -log_precision_b.double())
    apart = (mu_a.double() - mu_b.double()).square() * torch.exp(-log_sum)
    score = -0.5 * (apart.sum(-1) + log_sum.sum(-1) * (dim / given))
    return score.to(torch.promote_types(mu_a.dtype, torch.float32))

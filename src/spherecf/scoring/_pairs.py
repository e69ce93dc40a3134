"""Scores row by row, differentiable (equation 13 of the paper)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.scoring._checks import check_directions, check_kappa, check_radius, check_same_dim
from spherecf.vmf import log_normalizer_scaled

_TINY = 1e-24  # keeps d sqrt(p^2) finite at p = 0; far below any effect on a value


def cosine_score(
    mu_a: Float[Tensor, "*#batch d"], mu_b: Float[Tensor, "*#batch d"]
) -> Float[Tensor, "*batch"]:
    """Cosine of each pair of unit directions, row by row, in -1 .. 1.

    Args:
        mu_a: (..., dim) unit directions.
        mu_b: (..., dim), broadcast against ``mu_a``.

    Raises:
        InputError: NaN or infinite components, or different dimensions.

    Example:
        >>> import torch
        >>> cosine_score(torch.eye(2), torch.tensor([[0.6, 0.8]]))
        tensor([0.6000, 0.8000])
    """
    check_same_dim(mu_a, mu_b)
    check_directions(mu_a, "mu_a")
    check_directions(mu_b, "mu_b")
    kind = _result_type(mu_a, mu_b)
    return _cosine(mu_a, mu_b).to(kind)


def mutual_likelihood_score(
    mu_a: Float[Tensor, "*#batch d"],
    kappa_a: Float[Tensor, "*#batch"],
    mu_b: Float[Tensor, "*#batch d"],
    kappa_b: Float[Tensor, "*#batch"],
    radius: float = 64.0,
) -> Float[Tensor, "*batch"]:
    """Mutual likelihood score of each pair: log of the integral of the product of the two densities.

    ``s = log C_d(k_a) + log C_d(k_b) - log C_d(p) - d log r`` with ``p = |k_a mu_a + k_b mu_b|``: equation 13
    of Li et al., CVPR 2021. With ``c(k) = log C_d(k) + k`` the large terms combine without cancellation:
    ``s = c(k_a) + c(k_b) - c(p) - 2 k_a k_b (1 - cos) / (k_a + k_b + p) - d log r``.

    Computed in float64 whatever comes in, so the result is right to half a unit in the last place of its own
    type; differentiable in all four arguments. For all pairs of two sets use `mutual_likelihood_matrix`.

    Args:
        mu_a: (..., dim) unit directions.
        kappa_a: (...) concentrations, >= 0.
        mu_b: (..., dim), broadcast.
        kappa_b: (...), broadcast.
        radius: r of the sphere; shifts all scores by the same constant.

    Returns:
        (...) scores, larger = more alike; unbounded.

    Raises:
        InputError: NaN, negative or infinite concentrations, NaN directions, different dimensions.

    Example:
        >>> import torch
        >>> mu = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, 2.0], [2.0, 1.0, 2.0]]), dim=-1)
        >>> sure, unsure = torch.tensor([500.0]), torch.tensor([5.0])
        >>> a, b = (
        ...     mutual_likelihood_score(mu[:1], sure, mu[1:], sure),
        ...     mutual_likelihood_score(mu[:1], unsure, mu[1:], unsure),
        ... )
        >>> bool(a < b)  # two sure and different faces count against a match more than two unsure ones
        True
    """
    check_same_dim(mu_a, mu_b)
    check_radius(radius)
    for mu, kappa, side in ((mu_a, kappa_a, "a"), (mu_b, kappa_b, "b")):
        check_directions(mu, f"mu_{side}")
        check_kappa(kappa, f"kappa_{side}")
    score = score_at_cosine(_cosine(mu_a, mu_b), kappa_a, kappa_b, mu_a.shape[-1], radius)
    return score.to(_result_type(mu_a, kappa_a, mu_b, kappa_b))


def score_at_cosine(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, dim: int, radius: float) -> Tensor:
    """`mutual_likelihood_score` in float64, for float64 cosines at hand."""
    a, b = kappa_a.double(), kappa_b.double()
    product = 2 * a * b
    p = ((a - b).square() + product * (1 + cos)).clamp_min(_TINY).sqrt()
    apart = product * (1 - cos) / (a + b + p)
    return (
        log_normalizer_scaled(a, dim)
        + log_normalizer_scaled(b, dim)
        - log_normalizer_scaled(p, dim)
        - apart
        - dim * math.log(radius)
    )


def _cosine(mu_a: Tensor, mu_b: Tensor) -> Tensor:
    cos: Tensor = (mu_a.double() * mu_b.double()).sum(-1).clamp(-1, 1)
    return cos


def _result_type(*tensors: Tensor) -> torch.dtype:
    """float64 if anything is, else float32 (half types are widened: a score needs the digits)."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32

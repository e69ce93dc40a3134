"""The score of Gaussian embeddings, the rivals of the vMF (PFE-G, SCF-G); `pool_templates` pools them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf._arrays import Array, as_tensor, like
from spherecf.errors import InputError
from spherecf.scoring._checks import pair_directions


def gaussian_score(
    mu_a: Float[Array, "*#batch d"],
    log_precision_a: Float[Array, "*#batch e"],
    mu_b: Float[Array, "*#batch d"],
    log_precision_b: Float[Array, "*#batch e"],
) -> Float[Array, "*batch"]:
    """Mutual likelihood score of two Gaussians, the constant left out (Shi & Jain, ICCV 2019, equation 3):

        s = -1/2 sum_l ( (mu_a - mu_b)_l^2 / (v_a + v_b)_l + log (v_a + v_b)_l ),   v = 1 / precision

    Computed in float64 whatever comes in; differentiable.

    Args:
        mu_a: (..., d) means, of unit length as PFE has them: tensors or NumPy arrays.
        log_precision_a: (..., d) log precisions of PFE-G, or (..., 1) of an isotropic Gaussian (SCF-G).
        mu_b: (..., d), broadcast.
        log_precision_b: like ``log_precision_a``, broadcast.

    Returns:
        (...) scores, larger = more alike; unbounded. An array for arrays, a tensor where any is a tensor.

    Raises:
        InputError: log precisions that are NaN or infinite, or neither d nor 1 per mean; means that are not
            of unit length (as in `cosine_score`).

    Example:
        >>> import torch
        >>> mu = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> gaussian_score(mu[:1], torch.zeros(1, 2), mu[1:], torch.zeros(1, 2))
        tensor([-0.8931])
    """
    a, b = pair_directions(mu_a, mu_b)
    words = (
        _precisions(log_precision_a, a, "log_precision_a"),
        _precisions(log_precision_b, b, "log_precision_b"),
    )
    log_sum = torch.logaddexp(*(-word.double() for word in words))
    apart = (a.double() - b.double()).square() * torch.exp(-log_sum)
    score = -0.5 * (apart.sum(-1) + log_sum.sum(-1) * (a.shape[-1] / log_sum.shape[-1]))
    return like(
        score.to(torch.promote_types(a.dtype, torch.float32)), mu_a, log_precision_a, mu_b, log_precision_b
    )


def _precisions(log_precision: Any, mu: Tensor, name: str) -> Tensor:
    """(..., dim) or (..., 1), of as many axes as ``mu``: (n,) of n means is not taken for coordinates."""
    words = as_tensor(log_precision, name, mu.device)
    if words.ndim != mu.ndim or any(
        length not in (1, wanted) for length, wanted in zip(words.shape, mu.shape)
    ):
        raise InputError(
            f"{name}: expected 1 or {mu.shape[-1]} per mean, shape {tuple(mu.shape)} or "
            f"{(*mu.shape[:-1], 1)}, got {tuple(words.shape)}"
        )
    if not torch.compiler.is_compiling():
        bad = ~torch.isfinite(words)
        if bool(bad.any()):
            raise InputError(f"{name}: {int(bad.sum())} of {bad.numel()} are NaN or infinite")
    return words

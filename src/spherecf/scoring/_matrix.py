"""All pairs of two sets: one matrix product, then one elementwise pass over it, in place."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.errors import InputError
from spherecf.scoring._checks import check_directions, check_kappa, check_radius, check_same_dim
from spherecf.scoring._kernel import compiled_kernel, eager_kernel
from spherecf.scoring._normalizer import normalizer_form
from spherecf.vmf import log_normalizer_scaled

_BLOCK_ELEMENTS = 1 << 26
_WORTH_COMPILING = 1 << 28  # below this many pairs, compiling costs more seconds than it saves
_SMALLEST_KAPPA = 1e-12  # stands in for 0, where p and k_a + k_b would give 0 / 0; same score in float32


@torch.no_grad()
def cosine_matrix(
    mu_a: Float[Tensor, "rows d"],
    mu_b: Float[Tensor, "columns d"],
    out: Float[Tensor, "rows columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """Cosines of all pairs; ``out``, where given, is filled and returned.

    Raises:
        InputError: NaN or infinite components, different dimensions.

    Example:
        >>> import torch
        >>> cosine_matrix(torch.eye(2), torch.tensor([[0.6, 0.8]])).tolist()
        [[0.6000000238418579], [0.800000011920929]]
    """
    out = _prepare(mu_a, mu_b, out)
    torch.mm(mu_a, mu_b.T, out=out)
    return out


@torch.no_grad()
def mutual_likelihood_matrix(
    mu_a: Float[Tensor, "rows d"],
    kappa_a: Float[Tensor, " rows"],
    mu_b: Float[Tensor, "columns d"],
    kappa_b: Float[Tensor, " columns"],
    radius: float = 64.0,
    *,
    out: Float[Tensor, "rows columns"] | None = None,
    compiled: bool | None = None,
) -> Float[Tensor, "rows columns"]:
    """Mutual likelihood scores of all pairs (equation 13), the formula of `mutual_likelihood_score`.

    Needs the memory of its result and no more: the product is written into ``out`` block by block and turned
    into scores where it stands. For matrices larger than memory call it on blocks of rows, or pass an ``out``
    that is mapped to a file (``torch.from_file``). No gradients.

    Args:
        mu_a: (rows, dim) unit directions, float32 or float64.
        kappa_a: (rows,) concentrations, >= 0.
        mu_b: (columns, dim).
        kappa_b: (columns,).
        radius: r of the sphere.
        out: (rows, columns) of the same type, filled and returned; made if not given.
        compiled: fuse the elementwise pass with torch.compile (needs a C++ compiler; some seconds on first
            use, then several times faster). Default: only for a quarter of a billion pairs or more.

    Returns:
        (rows, columns) scores, larger = more alike. In float32 the error is at most 2e-3 where the score is
        of moderate size, and a few units in the last place where it is large (below about -4000).

    Raises:
        InputError: NaN, negative or infinite concentrations, NaN directions, shapes or types that do not fit.

    Example:
        >>> import torch
        >>> mu = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.manual_seed(0)), dim=1)
        >>> kappa = torch.tensor([1.0, 10.0, 100.0])
        >>> scores = mutual_likelihood_matrix(mu, kappa, mu, kappa)
        >>> scores.shape, bool(torch.allclose(scores, scores.T, atol=1e-4))
        (torch.Size([3, 3]), True)
    """
    check_radius(radius)
    check_kappa(kappa_a, "kappa_a")
    check_kappa(kappa_b, "kappa_b")
    out = _prepare(mu_a, mu_b, out)
    if out.numel() == 0:
        return out
    dim = mu_a.shape[1]
    tall, tall_offset = (column[:, None] for column in side_terms(kappa_a, dim, radius, out.dtype))
    wide, wide_offset = (column[None, :] for column in side_terms(kappa_b, dim, radius, out.dtype))
    if compiled is None:
        compiled = out.numel() >= _WORTH_COMPILING
    kernel = compiled_kernel(dim, out.device.type) if compiled else eager_kernel(dim)
    height = max(1, _BLOCK_ELEMENTS // out.shape[1])
    for start in range(0, out.shape[0], height):
        rows = slice(start, start + height)
        torch.mm(mu_a[rows], mu_b.T, out=out[rows])
        kernel(out[rows], tall[rows], wide, tall_offset[rows], wide_offset)
    return out


def side_terms(kappa: Tensor, dim: int, radius: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Per-image part of the score, half of every constant taken off so that float32 holds small numbers."""
    exact = kappa.double().clamp_min(_SMALLEST_KAPPA)
    shift = (normalizer_form(dim).constant + dim * math.log(radius)) / 2
    return exact.to(dtype), (log_normalizer_scaled(exact, dim) - shift).to(dtype)


def _prepare(mu_a: Tensor, mu_b: Tensor, out: Tensor | None) -> Tensor:
    check_same_dim(mu_a, mu_b)
    check_directions(mu_a, "mu_a")
    check_directions(mu_b, "mu_b")
    shape = (mu_a.shape[0], mu_b.shape[0])
    if mu_a.dtype != mu_b.dtype or mu_a.dtype not in (torch.float32, torch.float64):
        raise InputError(f"mu_a and mu_b must both be float32 or float64, got {mu_a.dtype} and {mu_b.dtype}")
    if out is None:
        return torch.empty(shape, dtype=mu_a.dtype, device=mu_a.device)
    if tuple(out.shape) != shape or out.dtype != mu_a.dtype:
        raise InputError(f"out: expected {shape} of {mu_a.dtype}, got {tuple(out.shape)} of {out.dtype}")
    return out

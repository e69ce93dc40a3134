"""Scores row by row, differentiable: cosine, mutual likelihood (paper equation 13), Gaussian."""

import math
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.common.arrays import (
    SCORE_TOLERANCE,
    Array,
    as_tensor,
    check_directions,
    check_kappa,
    checked_radius,
    like,
    unit_rows,
)
from spherecf.errors import InputError
from spherecf.vmf import log_normalizer_scaled, product_concentration


def directions(ndim: int | None = None, *, on_gpu: bool = True, **given: Any) -> list[Tensor]:
    """Unit directions of one recogniser, by the names of their arguments.

    Values are looked at where torch.compile does not trace.

    Args:
        ndim: number of axes wanted, where it matters.
        on_gpu: look at values that are on a GPU; if not, `check_on_gpu` does.
        given: (..., dim) tensors or arrays.

    Raises:
        InputError: not unit vectors, shapes or dimensions that do not fit.
    """
    device = next((mu.device for mu in given.values() if isinstance(mu, Tensor)), None)
    tensors = {name: as_tensor(mu, name, device) for name, mu in given.items()}
    for name, mu in tensors.items():
        if mu.ndim < 1 or mu.ndim != (ndim or mu.ndim):
            wanted = "(n, dim), one direction per row" if ndim == 2 else "(..., dim)"
            raise InputError(f"{name}: expected {wanted}, got {tuple(mu.shape)}")
        if not (torch.compiler.is_compiling() or mu.is_cuda):
            check_directions(mu, name, SCORE_TOLERANCE)
    dims = {name: mu.shape[-1] for name, mu in tensors.items()}
    if len(set(dims.values())) > 1:
        listed = ", ".join(f"{name} has dimension {dim}" for name, dim in dims.items())
        raise InputError(f"{listed}; both must come from the same recogniser")
    if len({mu.device for mu in tensors.values()}) > 1:
        listed = ", ".join(f"{name} is on {mu.device}" for name, mu in tensors.items())
        raise InputError(f"{listed}; move them to one device")
    if on_gpu:
        check_on_gpu(tensors, {})
    return list(tensors.values())


def check_on_gpu(mu: dict[str, Tensor], kappa: dict[str, Tensor]) -> None:
    """The checks of values that are on a GPU, by name: all of them in one answer that is waited for.

    Raises:
        InputError: as `directions` and `concentrations`.
    """
    mu, kappa = ({name: v for name, v in side.items() if v.is_cuda} for side in (mu, kappa))
    if torch.compiler.is_compiling() or not (mu or kappa):
        return
    fits = [unit_rows(v, SCORE_TOLERANCE) for v in mu.values()]
    fits += [((v >= 0) & (v < math.inf)).all() for v in kappa.values()]
    if bool(torch.stack(fits).all()) and all(v.shape[-1] > 1 for v in mu.values()):
        return
    for name, values in mu.items():
        check_directions(values, name, SCORE_TOLERANCE)
    for name, values in kappa.items():
        check_kappa(values, name)


def pair_directions(mu_a: Any, mu_b: Any, on_gpu: bool = True) -> tuple[Tensor, Tensor]:
    """`directions` of two sides that are compared row by row."""
    a, b = directions(mu_a=mu_a, mu_b=mu_b, on_gpu=on_gpu)
    try:
        torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise InputError(
            f"mu_a {tuple(a.shape)} and mu_b {tuple(b.shape)} cannot be compared row by row; for all pairs "
            "of two sets use cosine_matrix or mutual_likelihood_matrix"
        ) from error
    return a, b


def concentrations(kappa: Any, mu: Tensor, name: str, exact: bool = False, on_gpu: bool = True) -> Tensor:
    """One concentration per direction, floats or integers.

    Their shape is that of the directions, or broadcasts to it without making a table (not if ``exact``): a
    column (n, 1) for (n, dim) directions would silently give n times n scores. Several concentrations of one
    direction are welcome. ``on_gpu`` as for `directions`.

    Raises:
        InputError: another shape; NaN, negative or infinite values.
    """
    k, batch = as_tensor(kappa, name, mu.device, kinds="fi"), mu.shape[:-1]
    if k.shape != batch and (exact or not _one_each(k.shape, batch)):
        raise InputError(
            f"{name}: expected one per direction, shape {tuple(batch)}, got {tuple(k.shape)}"
            + (" (squeeze the column)" if k.shape == (*batch, 1) else "")
        )
    if not (torch.compiler.is_compiling() or k.is_cuda):
        check_kappa(k, name)
    elif on_gpu:
        check_on_gpu({}, {name: k})
    return k


def _one_each(kappa: torch.Size, batch: torch.Size) -> bool:
    if prod(batch) == 1 and len(kappa) <= max(1, len(batch)):
        return True
    padded = (1,) * (len(batch) - len(kappa)) + tuple(kappa)
    return len(padded) == len(batch) and all(k in (1, n) for k, n in zip(padded, batch))


def cosine_score(mu_a: Float[Array, "*#batch d"], mu_b: Float[Array, "*#batch d"]) -> Float[Array, "*batch"]:
    """Cosine of each pair of unit directions, row by row, in -1 .. 1.

    Args:
        mu_a: (..., dim) unit directions: tensors or NumPy arrays of floats.
        mu_b: (..., dim), broadcast against ``mu_a``.

    Returns:
        (...) cosines: an array for arrays, a tensor where any is a tensor.

    Raises:
        InputError: directions whose length is not 1 within 0.4 % (so that ones stored in float16 or bfloat16
            pass), zero or NaN, different dimensions, or shapes that do not fit.

    Example:
        >>> import torch
        >>> cosine_score(torch.eye(2), torch.tensor([[0.6, 0.8]]))
        tensor([0.6000, 0.8000])
    """
    a, b = pair_directions(mu_a, mu_b)
    return like(_cosine(a, b).to(_result_type(a, b)), mu_a, mu_b)


def mutual_likelihood_score(
    mu_a: Float[Array, "*#batch d"],
    kappa_a: Float[Array, "*#batch"],
    mu_b: Float[Array, "*#batch d"],
    kappa_b: Float[Array, "*#batch"],
    radius: float = 64.0,
) -> Float[Array, "*batch"]:
    """Mutual likelihood score of each pair: log of the integral of the product of the two densities.

    ``s = log C_d(k_a) + log C_d(k_b) - log C_d(p) - d log r`` with ``p = |k_a mu_a + k_b mu_b|``: equation 13
    of Li et al., CVPR 2021. With ``c(k) = log C_d(k) + k`` the large terms combine without cancellation:
    ``s = c(k_a) + c(k_b) - c(p) - 2 k_a k_b (1 - cos) / (k_a + k_b + p) - d log r``.

    Computed in float64 whatever comes in, so the result is right to half a unit in the last place of its own
    type; differentiable in all four arguments. For all pairs of two sets use `mutual_likelihood_matrix`.

    Args:
        mu_a: (..., dim) unit directions: tensors or NumPy arrays.
        kappa_a: (...) concentrations, >= 0, one per direction.
        mu_b: (..., dim), broadcast.
        kappa_b: (...), broadcast.
        radius: r of the sphere; shifts all scores by the same constant.

    Returns:
        (...) scores, larger = more alike; unbounded. An array for arrays, a tensor where any is a tensor.

    Raises:
        InputError: NaN, negative or infinite concentrations, directions that are not of unit length (as in
            `cosine_score`), or shapes that do not fit.

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
    r = checked_radius(radius)
    a, b = pair_directions(mu_a, mu_b, on_gpu=False)
    k_a, k_b = (
        concentrations(kappa, mu, name, on_gpu=False)
        for kappa, mu, name in ((kappa_a, a, "kappa_a"), (kappa_b, b, "kappa_b"))
    )
    check_on_gpu({"mu_a": a, "mu_b": b}, {"kappa_a": k_a, "kappa_b": k_b})
    score = score_at_cosine(_cosine(a, b), k_a, k_b, a.shape[-1], r)
    return like(score.to(_result_type(a, k_a, b, k_b)), mu_a, kappa_a, mu_b, kappa_b)


def score_at_cosine(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, dim: int, radius: float) -> Tensor:
    """`mutual_likelihood_score` in float64, for float64 cosines at hand: equation 13 as it stands.

    Its other forms sum the same terms in another order: `spherecf.scoring.matrix` in float32 with c as one
    polynomial, the bounds of the gallery's search, and the loss of PFE-v, for pairs of a batch.
    """
    a, b = kappa_a.double(), kappa_b.double()  # (...)
    p, _, apart = product_concentration(a, b, 1 + cos, 1 - cos)
    return (
        log_normalizer_scaled(a, dim)
        + log_normalizer_scaled(b, dim)
        - log_normalizer_scaled(p, dim)
        - apart
        - dim * math.log(radius)
    )


def _cosine(mu_a: Tensor, mu_b: Tensor) -> Tensor:
    # Directions are rounded: without the clamp 1 - cos of two equal ones may be negative.
    cos: Tensor = (mu_a.double() * mu_b.double()).sum(-1).clamp(-1, 1)  # (..., dim) to (...)
    return cos


def _result_type(*tensors: Tensor) -> torch.dtype:
    """float64 if anything is, else float32 (half types are widened: a score needs the digits)."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


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
    # log (v_a + v_b) from logarithms: a variance may overflow. (..., dim), or (..., 1) if isotropic.
    log_sum = torch.logaddexp(*(-word.double() for word in words))
    apart = (a.double() - b.double()).square() * torch.exp(-log_sum)  # (..., dim)
    # An isotropic variance stands for dim equal ones.
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

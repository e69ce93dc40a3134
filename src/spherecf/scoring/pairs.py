"""Differentiable scores of pairs, row by row: cosine, mutual likelihood (equation 13), Gaussian."""

import math
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.common.arrays import (
    SCORE_TOLERANCE,
    Array,
    as_tensor,
    as_tensors,
    check_directions,
    check_kappa,
    checked_radius,
    match_input_type,
    unit_rows,
    values_known,
)
from spherecf.errors import InputError
from spherecf.vmf import log_normalizer_scaled, product_concentration


def directions(ndim: int | None = None, *, on_gpu: bool = True, **given: Any) -> list[Tensor]:
    """The arguments ``given`` as tensors of unit directions, checked, in their order.

    Values are checked if they are known (`values_known`). Half precision becomes float32 of unit length.

    Args:
        ndim: required number of axes, or None for any.
        on_gpu: whether to check values on a GPU here; if False, the caller does with `check_on_gpu`.
        given: (..., dim) tensors or arrays, by the names that messages use.

    Raises:
        InputError: the vectors are not of unit length, or shapes, dimensions or devices do not fit.
    """
    tensors = dict(zip(given, as_tensors(**given)))
    for name, mu in tensors.items():
        if mu.ndim < 1 or mu.ndim != (ndim or mu.ndim):
            expected = "(n, dim), one direction per row" if ndim == 2 else "(..., dim)"
            raise InputError(f"{name}: expected {expected}, got {tuple(mu.shape)}")
        if not mu.is_cuda:
            check_directions(mu, name, SCORE_TOLERANCE)
    dims = {name: mu.shape[-1] for name, mu in tensors.items()}
    if len(set(dims.values())) > 1:
        listed = ", ".join(f"{name} has dimension {dim}" for name, dim in dims.items())
        raise InputError(f"{listed}; both must come from the same recogniser")
    half = {name: mu for name, mu in tensors.items() if mu.dtype in (torch.float16, torch.bfloat16)}
    check_on_gpu(tensors if on_gpu else half, {})
    # bfloat16 rounds a length by up to 0.4 %, which would count as an angle.
    return [normalize(mu.float(), dim=-1) if name in half else mu for name, mu in tensors.items()]


def check_on_gpu(mu: dict[str, Tensor], kappa: dict[str, Tensor]) -> None:
    """Check all values that are on a GPU, by name, waiting for the device only once.

    Raises:
        InputError: as `directions` and `concentrations`.
    """
    mu, kappa = (
        {name: v for name, v in tensors.items() if v.is_cuda and values_known(v)} for tensors in (mu, kappa)
    )
    if not (mu or kappa):
        return
    valid = [unit_rows(v, SCORE_TOLERANCE) for v in mu.values()]
    valid += [((v >= 0) & (v < math.inf)).all() for v in kappa.values()]
    if bool(torch.stack(valid).all()) and all(v.shape[-1] > 1 for v in mu.values()):
        return
    # Something is wrong: check one by one, for a message that says what.
    for name, values in mu.items():
        check_directions(values, name, SCORE_TOLERANCE)
    for name, values in kappa.items():
        check_kappa(values, name)


def pair_directions(mu_a: Any, mu_b: Any, on_gpu: bool = True) -> tuple[Tensor, Tensor]:
    """`directions` of two sides whose shapes broadcast, for comparison row by row."""
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
    """``kappa`` as a tensor with one concentration per direction of ``mu``, floats or integers, checked.

    Its shape must be the batch shape of ``mu`` or, unless ``exact``, broadcast to it. A column (n, 1) for (n,
    dim) directions is refused, because it would silently give n times n scores. A single direction may have
    several concentrations. ``on_gpu`` is as in `directions`.

    Raises:
        InputError: another shape, or values that are NaN, negative or infinite.
    """
    k, batch = as_tensor(kappa, name, mu.device, kinds="fi"), mu.shape[:-1]
    if k.shape != batch and (exact or not _broadcasts_to(k.shape, batch)):
        raise InputError(
            f"{name}: expected one per direction, shape {tuple(batch)}, got {tuple(k.shape)}"
            + (" (squeeze the column)" if k.shape == (*batch, 1) else "")
        )
    if not k.is_cuda:
        check_kappa(k, name)
    elif on_gpu:
        check_on_gpu({}, {name: k})
    return k


def _broadcasts_to(kappa: torch.Size, batch: torch.Size) -> bool:
    """Whether kappa broadcasts to the batch without enlarging it, or there is only one direction."""
    if prod(batch) == 1 and len(kappa) <= max(1, len(batch)):
        return True
    padded = (1,) * (len(batch) - len(kappa)) + tuple(kappa)
    return len(padded) == len(batch) and all(k in (1, n) for k, n in zip(padded, batch))


def cosine_score(mu_a: Float[Array, "*#batch d"], mu_b: Float[Array, "*#batch d"]) -> Float[Array, "*batch"]:
    """The cosine of each pair of unit directions, row by row, in [-1, 1].

    Args:
        mu_a: (..., dim) unit directions: tensors or NumPy arrays of floats.
        mu_b: (..., dim), broadcast against ``mu_a``.

    Returns:
        (...) cosines: an array if both are arrays, else a tensor.

    Raises:
        InputError: a direction's length differs from 1 by more than 0.4 % (float16 and bfloat16 storage stay
            within), or is zero or NaN; dimensions or shapes do not fit.

    Example:
        >>> import torch
        >>> cosine_score(torch.eye(2), torch.tensor([[0.6, 0.8]]))
        tensor([0.6000, 0.8000])
    """
    a, b = pair_directions(mu_a, mu_b)
    return match_input_type(_cosine(a, b).to(_result_type(a, b)), mu_a, mu_b)


def mutual_likelihood_score(
    mu_a: Float[Array, "*#batch d"],
    kappa_a: Float[Array, "*#batch"],
    mu_b: Float[Array, "*#batch d"],
    kappa_b: Float[Array, "*#batch"],
    radius: float = 64.0,
) -> Float[Array, "*batch"]:
    """The mutual likelihood score of each pair: the log of the integral of the product of the two densities.

        s = log C_d(k_a) + log C_d(k_b) - log C_d(p) - d log r,    p = |k_a mu_a + k_b mu_b|

    (Li et al., CVPR 2021, equation 13). With c(k) = log C_d(k) + k the large terms combine without
    cancellation:

        s = c(k_a) + c(k_b) - c(p) - 2 k_a k_b (1 - cos) / (k_a + k_b + p) - d log r.

    It is computed in float64 for every input type, so a float32 result is accurate to half a unit in the last
    place, and it is differentiable in all four arguments. For all pairs of two sets use
    `mutual_likelihood_matrix`.

    Args:
        mu_a: (..., dim) unit directions: tensors or NumPy arrays.
        kappa_a: (...) concentrations, >= 0, one per direction.
        mu_b: (..., dim), broadcast.
        kappa_b: (...), broadcast.
        radius: r of the sphere; shifts all scores by the same constant.

    Returns:
        (...) scores, larger = more similar; unbounded. An array if all arguments are arrays, else a tensor.

    Raises:
        InputError: concentrations are NaN, negative or infinite, directions are not of unit length (as in
            `cosine_score`), or shapes do not fit.

    Example:
        >>> import torch
        >>> mu = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, 2.0], [2.0, 1.0, 2.0]]), dim=-1)
        >>> high, low = torch.tensor([500.0]), torch.tensor([5.0])
        >>> confident = mutual_likelihood_score(mu[:1], high, mu[1:], high)
        >>> uncertain = mutual_likelihood_score(mu[:1], low, mu[1:], low)
        >>> bool(confident < uncertain)  # with high kappas, a difference is stronger evidence against a match
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
    return match_input_type(score.to(_result_type(a, k_a, b, k_b)), mu_a, kappa_a, mu_b, kappa_b)


def score_at_cosine(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, dim: int, radius: float) -> Tensor:
    """`mutual_likelihood_score` from float64 cosines, in float64: the reference form of equation 13.

    Other modules sum the same terms in another order: `spherecf.scoring.kernels` in float32 with a polynomial
    for c, the bounds of the gallery's search, and the loss of PFE-v for the pairs of a batch.
    """
    a, b = kappa_a.double(), kappa_b.double()  # (...)
    p, _, excess = product_concentration(a, b, 1 + cos, 1 - cos)  # excess is k_a + k_b - p
    return (
        log_normalizer_scaled(a, dim)
        + log_normalizer_scaled(b, dim)
        - log_normalizer_scaled(p, dim)
        - excess
        - dim * math.log(radius)
    )


def _cosine(mu_a: Tensor, mu_b: Tensor) -> Tensor:
    # Directions are rounded: without the clamp, 1 - cos of two equal ones may be negative.
    cos: Tensor = (mu_a.double() * mu_b.double()).sum(-1).clamp(-1, 1)  # (..., dim) -> (...)
    return cos


def _result_type(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor has it, else float32: half precision has too few digits for a score."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def gaussian_score(
    mu_a: Float[Array, "*#batch d"],
    log_precision_a: Float[Array, "*#batch e"],
    mu_b: Float[Array, "*#batch d"],
    log_precision_b: Float[Array, "*#batch e"],
) -> Float[Array, "*batch"]:
    """The mutual likelihood score of two Gaussians without its constant (Shi & Jain, ICCV 2019, equation 3).

        s = -1/2 sum_l ( (mu_a - mu_b)_l^2 / (v_a + v_b)_l + log (v_a + v_b)_l ),   v = 1 / precision

    It is computed in float64 for every input type and differentiable.

    Args:
        mu_a: (..., d) means of unit length, as in PFE: tensors or NumPy arrays.
        log_precision_a: (..., d) log precisions (PFE-G), or (..., 1) for isotropic Gaussians (SCF-G).
        mu_b: (..., d), broadcast.
        log_precision_b: like ``log_precision_a``, broadcast.

    Returns:
        (...) scores, larger = more similar; unbounded. An array if all arguments are arrays, else a tensor.

    Raises:
        InputError: log precisions are NaN or infinite, or neither d nor 1 per mean; means are not of unit
            length (as in `cosine_score`); shapes do not fit.

    Example:
        >>> import torch
        >>> mu = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> gaussian_score(mu[:1], torch.zeros(1, 2), mu[1:], torch.zeros(1, 2))
        tensor([-0.8931])
    """
    a, b = pair_directions(mu_a, mu_b)
    log_precisions = (
        _log_precisions(log_precision_a, a, "log_precision_a"),
        _log_precisions(log_precision_b, b, "log_precision_b"),
    )
    # (..., dim), or (..., 1) if isotropic: log (v_a + v_b) from log variances, as a variance may overflow
    log_sum = torch.logaddexp(*(-precision.double() for precision in log_precisions))
    distance = (a.double() - b.double()).square() * torch.exp(-log_sum)  # (..., dim)
    # An isotropic variance counts once per dimension.
    score = -0.5 * (distance.sum(-1) + log_sum.sum(-1) * (a.shape[-1] / log_sum.shape[-1]))
    return match_input_type(
        score.to(torch.promote_types(a.dtype, torch.float32)), mu_a, log_precision_a, mu_b, log_precision_b
    )


def _log_precisions(log_precision: Any, mu: Tensor, name: str) -> Tensor:
    """``log_precision`` as a tensor (..., dim) or (..., 1) with as many axes as ``mu``, checked.

    (n,) is refused for (n, dim) means: it would broadcast along the coordinates.
    """
    tensor = as_tensor(log_precision, name, mu.device)
    if tensor.ndim != mu.ndim or any(
        length not in (1, expected) for length, expected in zip(tensor.shape, mu.shape)
    ):
        raise InputError(
            f"{name}: expected 1 or {mu.shape[-1]} per mean, shape {tuple(mu.shape)} or "
            f"{(*mu.shape[:-1], 1)}, got {tuple(tensor.shape)}"
        )
    if values_known(tensor):
        bad = ~torch.isfinite(tensor)
        if bool(bad.any()):
            raise InputError(f"{name}: {int(bad.sum())} of {bad.numel()} are NaN or infinite")
    return tensor

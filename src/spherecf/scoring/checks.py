"""Arguments of the scores: unit directions and one concentration each."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from spherecf.common.arrays import SCORE_TOLERANCE, as_tensor, check_directions, check_kappa
from spherecf.errors import InputError


def directions(ndim: int | None = None, **given: Any) -> list[Tensor]:
    """Unit directions of one recogniser, by the names of their arguments.

    Values are looked at where torch.compile does not trace.

    Args:
        ndim: number of axes wanted, where it matters.
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
        if not torch.compiler.is_compiling():
            check_directions(mu, name, SCORE_TOLERANCE)
    dims = {name: mu.shape[-1] for name, mu in tensors.items()}
    if len(set(dims.values())) > 1:
        listed = ", ".join(f"{name} has dimension {dim}" for name, dim in dims.items())
        raise InputError(f"{listed}; both must come from the same recogniser")
    if len({mu.device for mu in tensors.values()}) > 1:
        listed = ", ".join(f"{name} is on {mu.device}" for name, mu in tensors.items())
        raise InputError(f"{listed}; move them to one device")
    return list(tensors.values())


def pair_directions(mu_a: Any, mu_b: Any) -> tuple[Tensor, Tensor]:
    """`directions` of two sides that are compared row by row."""
    a, b = directions(mu_a=mu_a, mu_b=mu_b)
    try:
        torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise InputError(
            f"mu_a {tuple(a.shape)} and mu_b {tuple(b.shape)} cannot be compared row by row; for all pairs "
            "of two sets use cosine_matrix or mutual_likelihood_matrix"
        ) from error
    return a, b


def concentrations(kappa: Any, mu: Tensor, name: str, exact: bool = False) -> Tensor:
    """One concentration per direction, floats or integers.

    Their shape is that of the directions, or broadcasts to it without making a table (not if ``exact``): a
    column (n, 1) for (n, dim) directions would silently give n times n scores. Several concentrations of one
    direction are welcome.

    Raises:
        InputError: another shape; NaN, negative or infinite values.
    """
    k, batch = as_tensor(kappa, name, mu.device, kinds="fi"), mu.shape[:-1]
    if k.shape != batch and (exact or not _one_each(k.shape, batch)):
        raise InputError(
            f"{name}: expected one per direction, shape {tuple(batch)}, got {tuple(k.shape)}"
            + (" (squeeze the column)" if k.shape == (*batch, 1) else "")
        )
    if not torch.compiler.is_compiling():
        check_kappa(k, name)
    return k


def _one_each(kappa: torch.Size, batch: torch.Size) -> bool:
    if prod(batch) == 1 and len(kappa) <= max(1, len(batch)):
        return True
    padded = (1,) * (len(batch) - len(kappa)) + tuple(kappa)
    return len(padded) == len(batch) and all(k in (1, n) for k, n in zip(padded, batch))

"""Input checks shared by the scores: counted, named, with the first offender's position."""

import torch
from torch import Tensor

from spherecf.errors import InputError


def check_kappa(kappa: Tensor, name: str) -> None:
    """Refuse NaN, negative or infinite concentrations (skipped while torch.compile is tracing)."""
    if torch.compiler.is_compiling():
        return
    bad = ~(torch.isfinite(kappa) & (kappa >= 0))
    count = int(bad.sum())
    if count:
        flat = bad.reshape(-1).nonzero()[0].item()
        raise InputError(
            f"{name}: {count} of {kappa.numel()} concentrations are NaN, negative or infinite, first "
            f"{kappa.reshape(-1)[int(flat)].item()} at {flat}; expected kappa >= 0 (was log_kappa given?)"
        )


def check_directions(mu: Tensor, name: str) -> None:
    """Refuse NaN and infinite components."""
    if torch.compiler.is_compiling():
        return
    rows = torch.isfinite(mu.sum(-1)).logical_not()
    count = int(rows.sum())
    if count:
        first = rows.reshape(-1).nonzero()[0].item()
        raise InputError(
            f"{name}: {count} of {rows.numel()} directions contain NaN or infinity, first row {first}"
        )


def check_same_dim(mu_a: Tensor, mu_b: Tensor) -> None:
    """Refuse directions from spheres of different dimension."""
    if mu_a.shape[-1] != mu_b.shape[-1]:
        raise InputError(
            f"mu_a has dimension {mu_a.shape[-1]}, mu_b {mu_b.shape[-1]}; "
            "both must come from the same recogniser"
        )


def check_radius(radius: float) -> None:
    """Refuse a radius that has no logarithm."""
    if not 0 < radius < float("inf"):
        raise InputError(f"radius: expected a positive finite number (64 in the paper), got {radius}")

"""The sphere confidence loss: minus the log density of a face's distribution at its identity's prototype."""

from math import log, pi
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spherecf.common.arrays import (
    AnyArray,
    Array,
    as_tensor,
    as_tensors,
    check_directions,
    checked_radius,
    match_input_type,
)
from spherecf.errors import InputError
from spherecf.vmf import inverse_mean_resultant_length, log_bessel_i, log_normalizer_scaled

Variant = Literal["exact", "released"]
Reduction = Literal["mean", "sum", "none"]
_REDUCTIONS = get_args(Reduction)

_RELEASED_EPSILON = 1e-6
_TOLERANCE = 1e-2  # of a unit vector's length: in training, errors of half precision accumulate


def sphere_confidence_loss(
    mu: Float[Array, "batch dim"],
    kappa: Float[Array, " batch"],
    prototypes: Float[Array, "batch dim"],
    radius: float | int = 64.0,
    variant: Variant = "exact",
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """The sphere confidence loss KL(delta(z - r w) || p(z | x)) of Li et al., CVPR 2021, section 3.

    It is minus the log density of the sample's von Mises-Fisher distribution at its identity's prototype w:

        L = -kappa cos(mu, w) - (d/2-1) log kappa + log I_{d/2-1}(kappa) + d/2 log(2 pi r^2),
        dL/dkappa = A_d(kappa) - cos(mu, w).

    The optimal kappa of a sample therefore has A_d(kappa) = cos(mu, w).

    Args:
        mu: unit mean directions, (batch, dim), dim >= 2.
        kappa: concentrations >= 0, (batch,).
        prototypes: the unit prototype of each sample's identity, (batch, dim).
        radius: r > 0; adds a constant and never changes a gradient.
        variant: "exact", or "released" for the formula of the published code (see
            `sphere_confidence_loss_from_cosine`).
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: types, shapes or devices do not fit, the variant or reduction is unknown, or vectors are
            not of unit length within 1e-2. Lengths are checked only on the CPU and outside torch.compile,
            where no device has to be synchronised.

    Example:
        >>> mu = torch.tensor([[0.6, 0.8, 0.0]])
        >>> sphere_confidence_loss(mu, torch.tensor([10.0]), torch.tensor([[0.0, 1.0, 0.0]]), radius=1.0)
        tensor(1.5353)
    """
    z, k, w = as_tensors(mu=mu, kappa=kappa, prototypes=prototypes)
    if z.ndim != 2 or z.shape != w.shape or k.shape != z.shape[:1]:
        raise InputError(
            "sphere_confidence_loss: expected mu and prototypes (batch, dim) and kappa (batch,), got "
            f"{tuple(z.shape)}, {tuple(w.shape)} and {tuple(k.shape)}. Pass one prototype per sample: "
            "prototypes[labels]."
        )
    check_unit(mu=z, prototypes=w)
    cosine = (z * w).sum(-1, dtype=torch.promote_types(k.dtype, torch.float32))
    loss = sphere_confidence_loss_from_cosine(cosine, k, z.shape[1], radius, variant, reduction)
    return match_input_type(loss, mu, kappa, prototypes)


def sphere_confidence_loss_from_cosine(
    cosine: Float[Array, "*batch"],
    kappa: Float[Array, "*batch"],
    dim: int,
    radius: float | int = 64.0,
    variant: Variant = "exact",
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """`sphere_confidence_loss` from precomputed cosines to the prototypes, as cached from a frozen backbone.

    The released variant replaces log I by log(1e-6 + ive) + kappa and log kappa by log(1e-6 + kappa), where
    ive = exp(-kappa) I_{d/2-1}(kappa), and differentiates these terms, as the published code does. At d =
    512, ive is below 1e-6 for kappa < 3700, so the Bessel term is nearly constant there and the optimum
    becomes kappa = (d/2-1) / (1 - cos).

    Args:
        cosine: cos(mu, w), any shape.
        kappa: concentrations >= 0, the same shape.
        dim: dimension d >= 2.
        radius, variant, reduction: as in `sphere_confidence_loss`.

    Raises:
        InputError: shapes do not fit, the dimension or radius is out of range, or the variant or reduction is
            unknown.

    Example:
        >>> sphere_confidence_loss_from_cosine(torch.tensor([0.5]), torch.tensor([340.9]), dim=512)
        tensor(1187.7656)
    """
    c, k = as_tensors(cosine=cosine, kappa=kappa)
    if c.shape != k.shape:
        raise InputError(
            f"expected one kappa per cosine, got kappa {tuple(k.shape)} and cosine {tuple(c.shape)}."
        )
    r = checked_radius(radius)
    if variant == "exact":
        # (*batch): -log C_d(kappa) - kappa cos + d log r, with log_normalizer_scaled = log C_d + kappa.
        loss = k * (1 - c) - log_normalizer_scaled(k, dim) + dim * log(r)
    elif variant == "released":
        loss = _released(c, k, dim) + dim / 2 * log(2 * pi * r**2)
    else:
        raise InputError(f"variant: expected one of {get_args(Variant)}, got {variant!r}.")
    return match_input_type(_reduce(loss, reduction), cosine, kappa)


class SphereConfidenceLoss(nn.Module):
    """`sphere_confidence_loss` as a module.

    Args:
        radius: r > 0; adds a constant and never changes a gradient.
        variant: "exact" or "released".
        reduction: "mean", "sum" or "none".

    Shapes: mu and prototypes (batch, dim), kappa (batch,); the loss is a scalar, or (batch,) for "none".

    Raises:
        InputError: as `sphere_confidence_loss`; options are checked here.

    Example:
        >>> loss = SphereConfidenceLoss(radius=1.0)
        >>> mu = torch.tensor([[0.6, 0.8, 0.0]])
        >>> loss(mu, torch.tensor([10.0]), torch.tensor([[0.0, 1.0, 0.0]]))
        tensor(1.5353)
        >>> loss
        SphereConfidenceLoss(radius=1.0, variant='exact', reduction='mean')
    """

    def __init__(
        self, radius: float | int = 64.0, variant: Variant = "exact", reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.radius, self.variant, self.reduction = checked_radius(radius), variant, reduction
        if variant not in get_args(Variant):
            raise InputError(f"variant: expected one of {get_args(Variant)}, got {variant!r}.")
        check_reduction(reduction)

    def forward(
        self,
        mu: Float[Array, "batch dim"],
        kappa: Float[Array, " batch"],
        prototypes: Float[Array, "batch dim"],
    ) -> Float[Array, "*out"]:
        """The loss of each sample against the prototype of its identity."""
        return sphere_confidence_loss(mu, kappa, prototypes, self.radius, self.variant, self.reduction)

    def extra_repr(self) -> str:
        return f"radius={self.radius}, variant={self.variant!r}, reduction={self.reduction!r}"


def _released(cosine: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """The loss of the published code, without the constant d/2 log(2 pi r^2)."""
    order = dim / 2 - 1
    # log I is -inf at 0 for order > 0. The clamp changes nothing: ive and its gradient are 0 long before it.
    argument = kappa.clamp(min=1e-30) if order else kappa
    ive = log_bessel_i(order, argument, scaled=True).exp()
    log_bessel = torch.log(_RELEASED_EPSILON + ive) + kappa
    return -kappa * cosine - order * torch.log(_RELEASED_EPSILON + kappa) + log_bessel


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    check_reduction(reduction)
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def check_reduction(reduction: Any) -> None:
    """Refuse an unknown reduction."""
    if reduction not in _REDUCTIONS:
        raise InputError(f"reduction: expected one of {_REDUCTIONS}, got {reduction!r}.")


def check_unit(**vectors: Tensor) -> None:
    """Refuse vectors that are not of unit length within 1e-2, only on the CPU.

    On a GPU the check would make every training step wait for the device.
    """
    for name, rows in vectors.items():
        if rows.device.type == "cpu":
            check_directions(rows, name, _TOLERANCE)


def initial_kappa(cosines: Float[AnyArray, "n"], dim: int) -> float:
    """The constant kappa that minimises the mean loss, A_d^{-1}(mean cosine): where a confidence head starts.

    At that kappa the mean over samples of dL/dkappa = A_d(kappa) - cos is zero (loss of Li et al., CVPR
    2021).

    Args:
        cosines: cosines between each sample's direction and its identity's prototype, in [-1, 1], (n,).
        dim: dimension d of the embedding.

    Raises:
        InputError: no cosines, NaN or values outside [-1, 1], or a mean outside (0, 1).

    Example:
        >>> import torch
        >>> round(initial_kappa(torch.tensor([0.4, 0.6]), dim=512))
        341
    """
    c = as_tensor(cosines, "cosines").double()
    if not c.numel() or not bool((c.abs() <= 1 + 1e-4).all()):
        raise InputError(
            f"cosines: expected at least one, all in [-1, 1]; got {c.numel()}"
            + (", some of them NaN or out of range" if c.numel() else "")
        )
    mean = float(c.mean())
    if not 0 < mean < 1:
        raise InputError(
            f"the mean cosine to the prototypes is {mean:.4f}, expected a value in (0, 1): do the prototypes "
            "belong to this backbone, and the labels to these images?"
        )
    return float(inverse_mean_resultant_length(torch.tensor(mean, dtype=torch.float64), dim))

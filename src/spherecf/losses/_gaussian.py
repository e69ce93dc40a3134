"""SCF-G: the sphere confidence objective with an isotropic Gaussian in place of the vMF."""

from math import log, pi

from jaxtyping import Float
from torch import Tensor

from spherecf.errors import InputError
from spherecf.losses._angles import widen
from spherecf.losses._sphere_confidence import Reduction, _reduce, check_unit


def gaussian_confidence_loss(
    mu: Float[Tensor, "batch dim"],
    log_precision: Float[Tensor, " batch"],
    prototypes: Float[Tensor, "batch dim"],
    reduction: Reduction = "mean",
) -> Float[Tensor, "*out"]:
    """KL(delta(z - w) || N(z; mu, I / lambda)): minus the log density of a Gaussian at the prototype,

        L = lambda |mu - w|^2 / 2 - d/2 log lambda + d/2 log(2 pi),

    the baseline SCF-G of Li et al., CVPR 2021, section 4. The precision lambda plays the part of kappa;
    dL/dlambda = (|mu - w|^2 - d / lambda) / 2, so the best lambda of a sample is d / |mu - w|^2 = d / (2 (1 -
    cos)). That of the vMF is the same with d - 1 for d where kappa is large.

    Args:
        mu: unit mean directions, (batch, dim).
        log_precision: log lambda, (batch,).
        prototypes: the unit prototype of each sample's identity, (batch, dim).
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: shapes do not fit, or vectors that are not of unit length within 1e-2 (looked at on the
            CPU only, as in `sphere_confidence_loss`).

    Example:
        >>> mu = torch.tensor([[0.6, 0.8, 0.0]])
        >>> gaussian_confidence_loss(mu, torch.tensor([2.0]), torch.tensor([[0.0, 1.0, 0.0]]))
        tensor(1.2346)
    """
    if mu.ndim != 2 or mu.shape != prototypes.shape or log_precision.shape != mu.shape[:1]:
        raise InputError(
            "gaussian_confidence_loss: expected mu and prototypes (batch, dim) and log_precision (batch,), "
            f"got {tuple(mu.shape)}, {tuple(prototypes.shape)} and {tuple(log_precision.shape)}. Pass one "
            "prototype per sample: prototypes[labels]."
        )
    check_unit(mu=mu, prototypes=prototypes)
    half_square = (widen(mu) - widen(prototypes)).square().sum(1) / 2
    return _loss(half_square, log_precision, mu.shape[1], reduction)


def gaussian_confidence_loss_from_cosine(
    cosine: Float[Tensor, "*batch"],
    log_precision: Float[Tensor, "*batch"],
    dim: int,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*out"]:
    """`gaussian_confidence_loss` where the cosine to the prototype is known: |mu - w|^2 = 2 (1 - cos).

    Example:
        >>> gaussian_confidence_loss_from_cosine(torch.tensor([0.5]), torch.tensor([6.2383]), dim=512)
        tensor(-870.5146)
    """
    if cosine.shape != log_precision.shape:
        raise InputError(
            f"expected one log_precision per cosine, got {tuple(log_precision.shape)} and "
            f"{tuple(cosine.shape)}."
        )
    if dim < 2:
        raise InputError(f"expected dim, the number of coordinates, >= 2; got {dim}.")
    return _loss(1 - widen(cosine), log_precision, dim, reduction)


def _loss(half_square: Tensor, log_precision: Tensor, dim: int, reduction: Reduction) -> Tensor:
    log_precision = widen(log_precision)
    return _reduce(log_precision.exp() * half_square - dim / 2 * (log_precision - log(2 * pi)), reduction)

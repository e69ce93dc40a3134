"""The objectives that SCF is compared with: SCF-G, PFE-G, PFE-v, ProbFace, CR-FIQA and RTS."""

from functools import cache
from math import log, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from spherecf.common.arrays import (
    AnyArray,
    Array,
    as_tensor,
    as_tensors,
    checked_radius,
    match_input_type,
    to_device,
    widen,
)  # fmt: skip
from spherecf.errors import InputError
from spherecf.losses.sphere_confidence import Reduction, _reduce, check_unit
from spherecf.vmf import log_normalizer_scaled, product_concentration


def gaussian_confidence_loss(
    mu: Float[Array, "batch dim"],
    log_precision: Float[Array, " batch"],
    prototypes: Float[Array, "batch dim"],
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """SCF-G: the sphere confidence loss with an isotropic Gaussian (Li et al., CVPR 2021, section 4).

    KL(delta(z - w) || N(z; mu, I / lambda)) is minus the log density of the Gaussian at the prototype w:

        L = lambda |mu - w|^2 / 2 - d/2 log lambda + d/2 log(2 pi),
        dL/dlambda = (|mu - w|^2 - d / lambda) / 2.

    The precision lambda corresponds to kappa. Its optimum for a sample is d / |mu - w|^2 = d / (2 (1 - cos));
    for large kappa, that of the vMF distribution is the same with d - 1 in place of d.

    Args:
        mu: unit mean directions, (batch, dim).
        log_precision: log lambda, (batch,).
        prototypes: the unit prototype of each sample's identity, (batch, dim).
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: types, shapes or devices do not fit, or vectors are not of unit length within 1e-2
            (checked on the CPU only, as in `sphere_confidence_loss`).

    Example:
        >>> import torch
        >>> mu = torch.tensor([[0.6, 0.8, 0.0]])
        >>> gaussian_confidence_loss(mu, torch.tensor([2.0]), torch.tensor([[0.0, 1.0, 0.0]]))
        tensor(1.2346)
    """
    z, log_p, w = as_tensors(mu=mu, log_precision=log_precision, prototypes=prototypes)
    if z.ndim != 2 or z.shape != w.shape or log_p.shape != z.shape[:1]:
        raise InputError(
            "gaussian_confidence_loss: expected mu and prototypes (batch, dim) and log_precision (batch,), "
            f"got {tuple(z.shape)}, {tuple(w.shape)} and {tuple(log_p.shape)}. Pass one prototype per "
            "sample: prototypes[labels]."
        )
    check_unit(mu=z, prototypes=w)
    half_square = (widen(z) - widen(w)).square().sum(1) / 2  # (batch,)
    loss = _gaussian_loss(half_square, log_p, z.shape[1], reduction)
    return match_input_type(loss, mu, log_precision, prototypes)


def gaussian_confidence_loss_from_cosine(
    cosine: Float[Array, "*batch"],
    log_precision: Float[Array, "*batch"],
    dim: int,
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """`gaussian_confidence_loss` from precomputed cosines to the prototypes: |mu - w|^2 = 2 (1 - cos).

    Args:
        cosine: cos(mu, w), any shape.
        log_precision: log lambda, the same shape.
        dim: dimension d >= 2.
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: types, shapes or devices do not fit, or dim is below 2.

    Example:
        >>> import torch
        >>> gaussian_confidence_loss_from_cosine(torch.tensor([0.5]), torch.tensor([6.2383]), dim=512)
        tensor(-870.5146)
    """
    c, log_p = as_tensors(cosine=cosine, log_precision=log_precision)
    if c.shape != log_p.shape:
        raise InputError(
            "expected one log_precision per cosine, got log_precision "
            f"{tuple(log_p.shape)} and cosine {tuple(c.shape)}."
        )
    if dim < 2:
        raise InputError(f"expected dim, the number of coordinates, >= 2; got {dim}.")
    return match_input_type(_gaussian_loss(1 - widen(c), log_p, dim, reduction), cosine, log_precision)


def _gaussian_loss(half_square: Tensor, log_precision: Tensor, dim: int, reduction: Reduction) -> Tensor:
    """The loss of SCF-G from |mu - w|^2 / 2."""
    log_precision = widen(log_precision)
    return _reduce(log_precision.exp() * half_square - dim / 2 * (log_precision - log(2 * pi)), reduction)


def pfe_gaussian_loss(
    mu: Float[Array, "batch dim"],
    log_variance: Float[Array, "batch dim"],
    labels: Int[AnyArray, " batch"],
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """PFE-G: minus the mutual likelihood score of diagonal Gaussians, over all mated pairs of a batch.

        L_ij = 1/2 sum_l ( (mu_i - mu_j)_l^2 / (v_i + v_j)_l + log (v_i + v_j)_l ),   i < j, label_i = label_j

    (Shi & Jain, ICCV 2019, eq. 3, without its constant). Time and memory grow with the number of mated pairs,
    not of all pairs.

    Args:
        mu: mean directions, (batch, dim).
        log_variance: log v, one per coordinate, (batch, dim).
        labels: identities, (batch,), also on the CPU for ``mu`` on a GPU, which then is not waited for. A
            batch of P identities with K samples each has P K (K-1) / 2 mated pairs.
        reduction: "mean", "sum" or "none" (one loss per pair, ordered by i, then j).

    Raises:
        InputError: types, shapes or devices do not fit, or no two labels are equal.

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pfe_gaussian_loss(mu, torch.zeros(3, 2), torch.tensor([4, 4, 7]))
        tensor(0.8931)
    """
    z, log_v = map(widen, as_tensors(mu=mu, log_variance=log_variance))
    identity = as_tensor(labels, "labels", kinds="i")
    if z.ndim != 2 or log_v.shape != z.shape or identity.shape != z.shape[:1]:
        raise InputError(
            "pfe_gaussian_loss: expected mu and log_variance (batch, dim) and labels (batch,), got "
            f"{tuple(z.shape)}, {tuple(log_v.shape)} and {tuple(identity.shape)}."
        )
    i, j = _mated_pairs(identity, z.device, "pfe_gaussian_loss")
    log_sum = torch.logaddexp(log_v[i], log_v[j])  # (pairs, dim) log (v_i + v_j)
    loss = 0.5 * (((z[i] - z[j]) * torch.exp(-log_sum / 2)).square() + log_sum).sum(1)  # (pairs,)
    return match_input_type(_reduce(loss, reduction), mu, log_variance)


def pfe_vmf_loss(
    mu: Float[Array, "batch dim"],
    log_kappa: Float[Array, " batch"],
    labels: Int[AnyArray, " batch"],
    radius: float | int = 64.0,
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """PFE-v: minus the mutual likelihood score of vMF distributions, over all mated pairs of a batch.

    It is the score of Li et al., CVPR 2021, eq. 13, with its large terms combined so that float32 is enough:

        L_ij = c(p) - c(k_i) - c(k_j) + 2 k_i k_j (1 - cos) / (k_i + k_j + p) + d log r,
        p = |k_i mu_i + k_j mu_j|,    c(k) = log C_d(k) + k,    1 - cos = |mu_i - mu_j|^2 / 2

    Args:
        mu: unit mean directions, (batch, dim), dim >= 2.
        log_kappa: log concentrations, (batch,).
        labels, reduction: as in `pfe_gaussian_loss`.
        radius: r > 0; adds a constant and never changes a gradient.

    Raises:
        InputError: types, shapes or devices do not fit, no two labels are equal, or mu is not of unit length
            within 1e-2 (checked on the CPU only, as in `sphere_confidence_loss`).

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pfe_vmf_loss(mu, torch.tensor([2.0, 3.0, 2.0]), torch.tensor([4, 4, 7]), radius=1.0)
        tensor(2.3055)
    """
    z, log_k = as_tensors(mu=mu, log_kappa=log_kappa)
    identity = as_tensor(labels, "labels", kinds="i")
    if z.ndim != 2 or log_k.shape != z.shape[:1] or identity.shape != z.shape[:1]:
        raise InputError(
            "pfe_vmf_loss: expected mu (batch, dim), log_kappa and labels (batch,), got "
            f"{tuple(z.shape)}, {tuple(log_k.shape)} and {tuple(identity.shape)}."
        )
    r = checked_radius(radius)
    check_unit(mu=z)
    i, j = _mated_pairs(identity, z.device, "pfe_vmf_loss")
    dim, z, kappa = z.shape[1], widen(z), widen(log_k).exp()
    c = log_normalizer_scaled(kappa, dim)  # (batch,)
    one_minus_cosine = (z[i] - z[j]).square().sum(1) / 2  # (pairs,), accurate near cos = 1
    p, _, excess = product_concentration(kappa[i], kappa[j], 2 - one_minus_cosine, one_minus_cosine)
    loss = log_normalizer_scaled(p, dim) - c[i] - c[j] + excess  # (pairs,); excess is k_i + k_j - p
    return match_input_type(_reduce(loss + dim * log(r), reduction), mu, log_kappa)


def _mated_pairs(labels: Tensor, device: torch.device, name: str) -> tuple[Tensor, Tensor]:
    """Indices i < j of all pairs with the same label, (pairs,) each, on a device.

    Their number is found where the labels are: if these are on the CPU, without waiting for a GPU.
    """
    i, j = (labels.unsqueeze(1) == labels).triu(1).nonzero(as_tuple=True)
    if not len(i):
        raise InputError(
            f"{name}: expected at least two samples of one identity in the batch, but the {len(labels)} "
            "labels are all different. Use batches of P identities with K >= 2 samples each."
        )
    return to_device(i, device), to_device(j, device)


_TRIPLET_WEIGHT, _TRIPLET_MARGIN = 0.001, 3.0  # as in the released code
_VARIANCE_WEIGHT = 0.128  # the released code has 0.001 times the sum over a batch of 128


def probface_loss(
    mu: Float[Array, "batch dim"],
    log_variance: Float[Array, " batch"],
    labels: Int[AnyArray, " batch"],
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """ProbFace: PFE with one variance per image, regularised towards its mean, and a triplet loss.

    With the distance d_ij = 2 (1 - cos_ij) / (v_i + v_j), the loss of a mated pair i, j is

        L_ij = d_ij + log (v_i + v_j)                                 minus the fast mutual likelihood score
               + 0.001 mean over both anchors of [3 + d_ij - d_in]_+  n: semi-hard negative, see below
               + 0.128 mean over the batch of (v / m - 1)^2           m: mean of v, without gradient

    (K. Chen et al., arXiv 2102.04075; weights of github.com/KaenChan/ProbFace). The semi-hard negative n of
    anchor i is the image of another identity with the smallest d_in > d_ij or, if there is none, with the
    largest d_in. ProbFace predicts v from several fused layers; here any head may predict it.

    Args:
        mu: unit mean directions, (batch, dim).
        log_variance: log v, (batch,).
        labels, reduction: as in `pfe_gaussian_loss`. If there is only one identity, the triplet term is 0.

    Raises:
        InputError: types, shapes or devices do not fit, or no two labels are equal.

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> probface_loss(mu, torch.zeros(3), torch.tensor([4, 4, 7]))
        tensor(1.0959)
    """
    z, log_v = map(widen, as_tensors(mu=mu, log_variance=log_variance))
    identity = as_tensor(labels, "labels", kinds="i")
    if z.ndim != 2 or log_v.shape != z.shape[:1] or identity.shape != z.shape[:1]:
        raise InputError(
            "probface_loss: expected mu (batch, dim), log_variance and labels (batch,), got "
            f"{tuple(z.shape)}, {tuple(log_v.shape)} and {tuple(identity.shape)}."
        )
    i, j = _mated_pairs(identity, z.device, "probface_loss")
    identity = to_device(identity, z.device)
    log_sum = torch.logaddexp(log_v[:, None], log_v)  # (batch, batch) log (v_i + v_j)
    distance = (1 - z @ z.T).clamp_min(0) * 2 * torch.exp(-log_sum)  # (batch, batch)
    triplet = (_triplet_hinge(distance, identity, i, j) + _triplet_hinge(distance, identity, j, i)) / 2
    # (batch,) v / m
    relative = torch.exp(log_v - torch.logsumexp(log_v.detach(), 0) + log(len(z)))
    penalty = (relative - 1).square().mean()
    loss = distance[i, j] + log_sum[i, j] + _TRIPLET_WEIGHT * triplet + _VARIANCE_WEIGHT * penalty
    return match_input_type(_reduce(loss, reduction), mu, log_variance)


def _triplet_hinge(distance: Tensor, labels: Tensor, anchor: Tensor, positive: Tensor) -> Tensor:
    """(pairs,) hinge of each mated pair against the semi-hard negative of its anchor; 0 without negatives."""
    mated, row = distance[anchor, positive], distance[anchor]  # (pairs,), (pairs, batch)
    is_negative = labels[anchor, None] != labels  # (pairs, batch)
    # (pairs,): the nearest negative beyond the positive, inf if there is none, and the farthest negative
    nearest_beyond = row.masked_fill(~is_negative | (row <= mated[:, None]), torch.inf).amin(1)
    farthest = row.masked_fill(~is_negative, -torch.inf).amax(1)
    negative = torch.where(nearest_beyond.isfinite(), nearest_beyond, farthest)
    return torch.where(is_negative.any(1), _TRIPLET_MARGIN + mated - negative, 0).clamp_min(0)


def certainty_ratio_loss(
    ratio: Float[Array, " batch"],
    cosine: Float[Array, " batch"],
    nearest: Float[Array, " batch"],
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """CR-FIQA: the smooth L1 loss (beta = 0.5) between the predicted and the true certainty ratio of a face.

        CR = cos(mu, w) / (1 + max over the prototypes w' of other identities of cos(mu, w')),
        L = (q - CR)^2 if |q - CR| < 0.5, else |q - CR| - 0.25

    (F. Boutros et al., CVPR 2023, arXiv 2112.06592). The ratio is high if a face is much closer to its own
    identity than to the nearest other one. It is treated as a constant: no gradient flows to the cosines. The
    released code (github.com/fdbtrs/CR-FIQA) divides by the maximum itself, without the 1 of the paper, and
    learns q together with the recogniser; here the recogniser is frozen.

    Args:
        ratio: predicted ratio q, (batch,).
        cosine: cosine to the prototype of the sample's identity, (batch,).
        nearest: largest cosine to the prototype of another identity, (batch,).
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: types, shapes or devices do not fit.

    Example:
        >>> import torch
        >>> certainty_ratio_loss(torch.tensor([0.4]), torch.tensor([0.65]), torch.tensor([0.3]))
        tensor(0.0100)
    """
    q, c, c_nearest = map(widen, as_tensors(ratio=ratio, cosine=cosine, nearest=nearest))
    if not q.shape == c.shape == c_nearest.shape:
        raise InputError(
            "certainty_ratio_loss: expected one ratio, cosine and nearest per sample, got "
            f"{tuple(q.shape)}, {tuple(c.shape)} and {tuple(c_nearest.shape)}."
        )
    target = (c / (1 + c_nearest)).detach()
    loss = smooth_l1_loss(q, target, beta=0.5, reduction="none")
    return match_input_type(_reduce(loss, reduction), ratio, cosine, nearest)


_SCALE, _DEGREES_OF_FREEDOM, _QUANTILES = 64.0, 16, 4
_EXCLUDED_COSINE = -1e3  # replaces -inf, whose gradient would be NaN; e^(s cos / t) is 0 with either


def random_temperature_loss(
    log_variance: Float[Array, " batch"],
    cosine: Float[Array, " batch"],
    others: Float[Array, "batch identities"],
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """RTS: cross-entropy over the identities with a random temperature, scaled by the image's uncertainty v.

        L = E_t [ log (e^(s cos / t) + sum over others of e^(s cos' / t)) - s cos / t ]
            + f/2 (v - 1 - log v),        t = v X / f,  X chi-squared with f degrees of freedom

    (Random temperature scaling, L. Shang et al., AAAI 2023, arXiv 2212.01015). s = 64, f = 16. t is
    distributed as the mean of the squares of f normal variables with variance v, and the second term is their
    KL divergence from the prior, variance 1. The expectation is taken over 4 quantiles of t, which makes the
    loss deterministic. A large v reduces the loss of misclassified images and increases that of correctly
    classified ones.

    The authors released the network but not its training code. This is the paper's model without the margin,
    which shapes the embedding and so does not apply to a frozen recogniser.

    Args:
        log_variance: log v, (batch,).
        cosine: cosine to the prototype of the sample's identity, (batch,).
        others: cosines to the prototypes of the other identities, (batch, identities); -inf excludes one.
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: types, shapes or devices do not fit.

    Example:
        >>> import torch
        >>> others = torch.tensor([[0.2, 0.3]])
        >>> random_temperature_loss(torch.tensor([0.0]), torch.tensor([0.25]), others)
        tensor(3.5987)
    """
    log_v, c, c_others = map(widen, as_tensors(log_variance=log_variance, cosine=cosine, others=others))
    if not log_v.shape == c.shape == c_others.shape[:1] or c_others.ndim != 2:
        raise InputError(
            "random_temperature_loss: expected log_variance and cosine (batch,) and others (batch, "
            f"identities), got {tuple(log_v.shape)}, {tuple(c.shape)} and {tuple(c_others.shape)}."
        )
    # (batch, 1 + identities), the sample's own identity first
    logits = torch.cat([c[:, None], c_others.clamp_min(_EXCLUDED_COSINE)], 1) * _SCALE
    losses = []
    for temperature in _unit_temperatures():
        scaled = logits * torch.exp(-log_v - log(temperature))[:, None]
        losses.append(torch.logsumexp(scaled, 1) - scaled[:, 0])  # (batch,)
    divergence = _DEGREES_OF_FREEDOM / 2 * (log_v.exp() - 1 - log_v)
    loss = _reduce(torch.stack(losses).mean(0) + divergence, reduction)
    return match_input_type(loss, log_variance, cosine, others)


@cache
def _unit_temperatures() -> tuple[float, ...]:
    """Temperatures for v = 1: quantiles of X / f at the midpoints of equal intervals of probability."""
    from scipy.special import gammaincinv  # imported here, because it is slow to import

    midpoints = [(k + 0.5) / _QUANTILES for k in range(_QUANTILES)]
    return tuple(float(gammaincinv(_DEGREES_OF_FREEDOM / 2, p)) * 2 / _DEGREES_OF_FREEDOM for p in midpoints)

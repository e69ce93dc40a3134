"""The objectives that SCF is compared with: SCF-G, PFE-G and PFE-v, ProbFace, CR-FIQA and RTS."""

from functools import cache
from math import log, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from spherecf.common.arrays import checked_radius
from spherecf.errors import InputError
from spherecf.losses.margin_functions import widen
from spherecf.losses.sphere_confidence import Reduction, _reduce, check_unit
from spherecf.vmf import log_normalizer_scaled, product_concentration


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
        >>> import torch
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
        >>> import torch
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


def pfe_gaussian_loss(
    mu: Float[Tensor, "batch dim"],
    log_variance: Float[Tensor, "batch dim"],
    labels: Int[Tensor, " batch"],
    reduction: Reduction = "mean",
) -> Float[Tensor, "*out"]:
    """Minus the mutual likelihood score of two diagonal Gaussians (Shi & Jain, ICCV 2019, eq. 3), constant
    left out, over all pairs of one identity in the batch:

        L_ij = 1/2 sum_l ( (mu_i - mu_j)_l^2 / (v_i + v_j)_l + log (v_i + v_j)_l ),   i < j, label_i = label_j

    Work and memory grow with the genuine pairs, not with all of them.

    Args:
        mu: mean directions, (batch, dim).
        log_variance: log v, one per coordinate, (batch, dim).
        labels: identities, (batch,). A batch of P identities with K samples each has P K (K-1) / 2 pairs.
        reduction: "mean", "sum" or "none" (one loss per pair, ordered by i, then j).

    Raises:
        InputError: shapes do not fit, or no two labels are equal.

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pfe_gaussian_loss(mu, torch.zeros(3, 2), torch.tensor([4, 4, 7]))
        tensor(0.8931)
    """
    if mu.ndim != 2 or log_variance.shape != mu.shape or labels.shape != mu.shape[:1]:
        raise InputError(
            "pfe_gaussian_loss: expected mu and log_variance (batch, dim) and labels (batch,), got "
            f"{tuple(mu.shape)}, {tuple(log_variance.shape)} and {tuple(labels.shape)}."
        )
    i, j = _genuine_pairs(labels, "pfe_gaussian_loss")
    mu, log_variance = widen(mu), widen(log_variance)
    log_sum = torch.logaddexp(log_variance[i], log_variance[j])
    loss = 0.5 * (((mu[i] - mu[j]) * torch.exp(-log_sum / 2)).square() + log_sum).sum(1)
    return _reduce(loss, reduction)


def pfe_vmf_loss(
    mu: Float[Tensor, "batch dim"],
    log_kappa: Float[Tensor, " batch"],
    labels: Int[Tensor, " batch"],
    radius: float | int = 64.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, "*out"]:
    """Minus the mutual likelihood score of two von Mises-Fisher distributions (Li et al., CVPR 2021, eq. 13)
    over all pairs of one identity in the batch: PFE-v.

        L_ij = c(p) - c(k_i) - c(k_j) + 2 k_i k_j (1 - cos) / (k_i + k_j + p) + d log r,
        p = |k_i mu_i + k_j mu_j|,    c(k) = log C_d(k) + k,    1 - cos = |mu_i - mu_j|^2 / 2

    The score of eq. 13 with its large terms combined, so that float32 is enough.

    Args:
        mu: unit mean directions, (batch, dim), dim >= 2.
        log_kappa: log concentrations, (batch,).
        labels, reduction: as in `pfe_gaussian_loss`.
        radius: r > 0; adds a constant, never changes a gradient.

    Raises:
        InputError: shapes do not fit, no two labels are equal, or mu is not of unit length within 1e-2
            (looked at on the CPU only, as in `sphere_confidence_loss`).

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> pfe_vmf_loss(mu, torch.tensor([2.0, 3.0, 2.0]), torch.tensor([4, 4, 7]), radius=1.0)
        tensor(2.3055)
    """
    if mu.ndim != 2 or log_kappa.shape != mu.shape[:1] or labels.shape != mu.shape[:1]:
        raise InputError(
            "pfe_vmf_loss: expected mu (batch, dim), log_kappa and labels (batch,), got "
            f"{tuple(mu.shape)}, {tuple(log_kappa.shape)} and {tuple(labels.shape)}."
        )
    r = checked_radius(radius)
    check_unit(mu=mu)
    i, j = _genuine_pairs(labels, "pfe_vmf_loss")
    dim, mu, kappa = mu.shape[1], widen(mu), widen(log_kappa).exp()
    separate = log_normalizer_scaled(kappa, dim)
    far = (mu[i] - mu[j]).square().sum(1) / 2  # (pairs,) 1 - cos, with all its digits near cos = 1
    p, _, apart = product_concentration(kappa[i], kappa[j], 2 - far, far)
    loss = log_normalizer_scaled(p, dim) - separate[i] - separate[j] + apart
    return _reduce(loss + dim * log(r), reduction)


def _genuine_pairs(labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Positions i < j of all pairs with the same label."""
    i, j = (labels.unsqueeze(1) == labels).triu(1).nonzero(as_tuple=True)
    if not len(i):
        raise InputError(
            f"{name}: expected at least two samples of one identity in a batch, but the {len(labels)} labels "
            "are all different. Draw batches of P identities with K >= 2 samples each."
        )
    return i, j


_TRIPLET, _MARGIN = 0.001, 3.0  # as released
_CONSTRAINT = 0.128  # released: 0.001 times the sum over a batch of 128


def probface_loss(
    mu: Float[Tensor, "batch dim"],
    log_variance: Float[Tensor, " batch"],
    labels: Int[Tensor, " batch"],
    reduction: Reduction = "mean",
) -> Float[Tensor, "*out"]:
    """ProbFace (K. Chen et al., arXiv 2102.04075, and github.com/KaenChan/ProbFace): PFE with one variance v
    per image, kept close to its mean, and with the order of the distances preserved.

        d_ij = 2 (1 - cos_ij) / (v_i + v_j)
        L_ij = d_ij + log (v_i + v_j)                        the fast mutual likelihood score, i, j genuine
               + 0.001 mean over both anchors of [3 + d_ij - d_in]_+     n: semi-hard, see below
               + 0.128 mean over the batch of (v / m - 1)^2              m: mean of v, a constant

    The negative n of anchor i is the image of another person with the smallest d_in > d_ij; where there is
    none, that with the largest d_in. The weights are those of the released code. Its uncertainty comes from a
    fusion of several layers; here any head gives it.

    Args:
        mu: unit mean directions, (batch, dim).
        log_variance: log v, (batch,).
        labels, reduction: as in `pfe_gaussian_loss`; without a second identity there is no order to preserve.

    Raises:
        InputError: shapes do not fit, or no two labels are equal.

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> probface_loss(mu, torch.zeros(3), torch.tensor([4, 4, 7]))
        tensor(1.0959)
    """
    if mu.ndim != 2 or log_variance.shape != mu.shape[:1] or labels.shape != mu.shape[:1]:
        raise InputError(
            "probface_loss: expected mu (batch, dim), log_variance and labels (batch,), got "
            f"{tuple(mu.shape)}, {tuple(log_variance.shape)} and {tuple(labels.shape)}."
        )
    i, j = _genuine_pairs(labels, "probface_loss")
    mu, log_variance = widen(mu), widen(log_variance)
    log_sum = torch.logaddexp(log_variance[:, None], log_variance)  # (batch, batch)
    distance = (1 - mu @ mu.T).clamp_min(0) * 2 * torch.exp(-log_sum)  # (batch, batch)
    kept = (_semi_hard(distance, labels, i, j) + _semi_hard(distance, labels, j, i)) / 2
    relative = torch.exp(log_variance - torch.logsumexp(log_variance.detach(), 0) + log(len(mu)))  # (batch,)
    loss = distance[i, j] + log_sum[i, j] + _TRIPLET * kept + _CONSTRAINT * (relative - 1).square().mean()
    return _reduce(loss, reduction)


def _semi_hard(distance: Tensor, labels: Tensor, anchor: Tensor, positive: Tensor) -> Tensor:
    """(pairs,) hinge of each genuine pair against a semi-hard negative of its anchor; 0 without negatives."""
    own, row = distance[anchor, positive], distance[anchor]  # (pairs,), (pairs, batch)
    other = labels[anchor, None] != labels  # (pairs, batch)
    beyond = row.masked_fill(~other | (row <= own[:, None]), torch.inf).amin(1)  # (pairs,)
    farthest = row.masked_fill(~other, -torch.inf).amax(1)
    negative = torch.where(beyond.isfinite(), beyond, farthest)
    return torch.where(other.any(1), _MARGIN + own - negative, 0).clamp_min(0)


def certainty_ratio_loss(
    ratio: Float[Tensor, " batch"],
    cosine: Float[Tensor, " batch"],
    nearest: Float[Tensor, " batch"],
    reduction: Reduction = "mean",
) -> Float[Tensor, "*out"]:
    """CR-FIQA (F. Boutros et al., CVPR 2023, arXiv 2112.06592): smooth L1 to the certainty ratio, beta = 0.5,

        CR = cos(mu, w) / (1 + max over the prototypes w' of others of cos(mu, w')),
        L = (q - CR)^2 if |q - CR| < 0.5, else |q - CR| - 0.25.

    A face is as good as it is easily told from the nearest other person; CR is a constant to the gradient.
    The released code (github.com/fdbtrs/CR-FIQA) divides by the maximum itself, without the 1 of the paper,
    and learns q together with the recogniser; here the recogniser is frozen.

    Args:
        ratio: predicted q, (batch,).
        cosine: to the prototype of the own identity, (batch,).
        nearest: to the nearest prototype of another one, (batch,).
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: shapes do not fit.

    Example:
        >>> import torch
        >>> certainty_ratio_loss(torch.tensor([0.4]), torch.tensor([0.65]), torch.tensor([0.3]))
        tensor(0.0100)
    """
    if not ratio.shape == cosine.shape == nearest.shape:
        raise InputError(
            "certainty_ratio_loss: expected one ratio, cosine and nearest per sample, got "
            f"{tuple(ratio.shape)}, {tuple(cosine.shape)} and {tuple(nearest.shape)}."
        )
    target = (widen(cosine) / (1 + widen(nearest))).detach()
    return _reduce(smooth_l1_loss(widen(ratio), target, beta=0.5, reduction="none"), reduction)


_SCALE, _FREEDOM, _QUANTILES = 64.0, 16, 4
_NOBODY = -1e3  # for a cosine of -inf, of which a gradient would be NaN: e^(s cos / t) is 0 all the same


def random_temperature_loss(
    log_variance: Float[Tensor, " batch"],
    cosine: Float[Tensor, " batch"],
    others: Float[Tensor, "batch identities"],
    reduction: Reduction = "mean",
) -> Float[Tensor, "*out"]:
    """RTS, random temperature scaling (L. Shang et al., AAAI 2023, arXiv 2212.01015): the softmax over the
    identities has a random temperature t, whose scale is the image's uncertainty v.

        L = E_t [ log (e^(s cos / t) + sum over others of e^(s cos' / t)) - s cos / t ]
            + f/2 (v - 1 - log v),        t = v X / f,  X chi-squared with f degrees of freedom

    The second term is KL(N(0, v) || N(0, 1)) of the f normal numbers of whose squares t is the mean: the
    prior of v is 1. s = 64, f = 16. The expectation is the mean over 4 quantiles of t, so that a loss is a
    number and not a draw. A large v softens what an image is wrong about, and costs where it is right.

    The authors publish the network, not its training: this is the paper's model without their margin, which
    shapes the embedding and so means nothing to a frozen recogniser.

    Args:
        log_variance: log v, (batch,).
        cosine: to the prototype of the own identity, (batch,).
        others: to the prototypes of all others, (batch, identities); -inf leaves one out.
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: shapes do not fit.

    Example:
        >>> import torch
        >>> others = torch.tensor([[0.2, 0.3]])
        >>> random_temperature_loss(torch.tensor([0.0]), torch.tensor([0.25]), others)
        tensor(3.5987)
    """
    if not log_variance.shape == cosine.shape == others.shape[:1] or others.ndim != 2:
        raise InputError(
            "random_temperature_loss: expected log_variance and cosine (batch,) and others (batch, "
            f"identities), got {tuple(log_variance.shape)}, {tuple(cosine.shape)} and {tuple(others.shape)}."
        )
    log_variance = widen(log_variance)
    logits = torch.cat([widen(cosine)[:, None], widen(others).clamp_min(_NOBODY)], 1) * _SCALE
    losses = [
        torch.logsumexp(scaled, 1) - scaled[:, 0]
        for at in _temperatures()
        for scaled in (logits * torch.exp(-log_variance - log(at))[:, None],)  # (batch, 1 + identities)
    ]
    prior = _FREEDOM / 2 * (log_variance.exp() - 1 - log_variance)
    return _reduce(torch.stack(losses).mean(0) + prior, reduction)


@cache
def _temperatures() -> tuple[float, ...]:
    """Quantiles of X / f in the middle of equal shares of chance."""
    from scipy.special import gammaincinv  # not at the top: importing it takes longer than all the rest here

    middles = [(k + 0.5) / _QUANTILES for k in range(_QUANTILES)]
    return tuple(float(gammaincinv(_FREEDOM / 2, p)) * 2 / _FREEDOM for p in middles)

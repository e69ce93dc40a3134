"""Many images of one person into one distribution (equation 14 of the paper)."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spherecf.errors import InputError
from spherecf.scoring._checks import check_directions, check_kappa

_CANCELLED = 1e-6  # |sum| over sum of lengths below this is rounding noise, not a direction


class Pooled(NamedTuple):
    """One distribution per group."""

    mu: Tensor
    """(groups, dim) unit directions."""
    kappa: Tensor
    """(groups,) pooled concentrations."""
    groups: Tensor
    """(groups,) ids, ascending, or as asked for by ``ids``."""


def pool(
    mu: Float[Tensor, "n d"],
    kappa: Float[Tensor, " n"],
    groups: Int64[Tensor, " n"],
    media: Int64[Tensor, " n"] | None = None,
    ids: Int64[Tensor, " g"] | None = None,
) -> Pooled:
    """Pool images into templates: ``eta = sum kappa_i mu_i``, direction ``eta / |eta|``, kappa ``|eta|``.

    The direction is equation 14 of Li et al., CVPR 2021. The concentration is that of the product of the
    densities (natural parameters add): more images that agree make a surer template. Frames of one video are
    no independent evidence: with ``media`` the ``kappa_i mu_i`` are averaged in each medium, then summed.

    Args:
        mu: (n, dim) unit directions. For other pooling weights (norm, detector score) give them as ``kappa``.
        kappa: (n,) weights, >= 0.
        groups: (n,) template of each image.
        media: (n,) medium of each image; the same number in two groups means two media.
        ids: the groups wanted, in this order, each at most once; default: all, ascending.

    Raises:
        InputError: a wanted group has no image, or its directions cancel or all have kappa 0 (it is named).

    Example:
        >>> import torch
        >>> mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> pooled = pool(mu, torch.tensor([3.0, 4.0, 7.0]), torch.tensor([5, 5, 9]))
        >>> pooled.mu.tolist(), pooled.kappa.tolist(), pooled.groups.tolist()
        ([[0.6..., 0.8...], [0.0, 1.0]], [5.0, 7.0], [5, 9])
    """
    check_directions(mu, "mu")
    check_kappa(kappa, "kappa")
    found, slot = torch.unique(groups, return_inverse=True)
    eta, weight = kappa[:, None] * mu, kappa
    if media is not None:
        pairs, medium = torch.unique(torch.stack([slot, media], 1), dim=0, return_inverse=True)
        count = torch.bincount(medium, minlength=len(pairs)).to(mu.dtype)
        slot = pairs[:, 0]
        eta = _sum(eta, medium, len(pairs)) / count[:, None]
        weight = _sum(weight, medium, len(pairs)) / count
    eta, weight = _sum(eta, slot, len(found)), _sum(weight, slot, len(found))
    if ids is not None:
        chosen = _choose(found, ids)
        found, eta, weight = ids, eta[chosen], weight[chosen]
    pooled = eta.norm(dim=1)
    bad = ~(pooled > _CANCELLED * weight)
    if bool(bad.any()):
        first = int(found[bad][0])
        why = "all its kappas are 0" if float(weight[bad][0]) == 0 else "its directions cancel"
        raise InputError(
            f"{int(bad.sum())} of {len(found)} groups have no direction, first group {first}: {why}; "
            "leave it out, or pool it with other images"
        )
    return Pooled(eta / pooled[:, None], pooled, found)


def _sum(values: Tensor, slot: Tensor, slots: int) -> Tensor:
    return values.new_zeros((slots, *values.shape[1:])).index_add_(0, slot, values)


def _choose(found: Tensor, ids: Tensor) -> Tensor:
    place = torch.searchsorted(found, ids).clamp_max(max(len(found) - 1, 0))
    missing = ids if len(found) == 0 else ids[found[place] != ids]
    if len(missing):
        raise InputError(
            f"{len(missing)} of {len(ids)} groups have no image, first group {int(missing[0])}; "
            "remove them from the protocol's list or embed their images"
        )
    return place

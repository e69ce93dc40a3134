"""Many images of one person into one distribution (equation 14 of the paper)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spherecf.common.arrays import Array, as_tensor, like
from spherecf.errors import InputError
from spherecf.scoring.checks import concentrations, directions

_CANCELLED = 1e-6  # |sum| over sum of lengths below this is rounding noise, not a direction


@dataclass(frozen=True, eq=False)
class Pooled(Generic[Array]):
    """One distribution per group: arrays for arrays, tensors where anything is a tensor.

    Unpacks to (mu, kappa, groups).
    """

    mu: Array
    """(groups, dim) unit directions."""
    kappa: Array
    """(groups,) pooled concentrations."""
    groups: Array
    """(groups,) ids, ascending, or as asked for by ``ids``."""

    def __iter__(self) -> Iterator[Array]:
        return iter((self.mu, self.kappa, self.groups))


def pool(
    mu: Float[Array, "n d"],
    kappa: Float[Array, " n"],
    groups: Int64[Array, " n"],
    media: Int64[Array, " n"] | None = None,
    ids: Int64[Array, " g"] | None = None,
) -> Pooled[Array]:
    """Pool images into templates: ``eta = sum kappa_i mu_i``, direction ``eta / |eta|``, kappa ``|eta|``.

    The direction is equation 14 of Li et al., CVPR 2021. The concentration is that of the product of the
    densities (natural parameters add): more images that agree make a surer template. Frames of one video are
    no independent evidence: with ``media`` the ``kappa_i mu_i`` are averaged in each medium, then summed.

    Args:
        mu: (n, dim) unit directions: tensors or NumPy arrays, like the others. For other pooling weights
            (norm, detector score) give them as ``kappa``; ``mu`` stays of unit length.
        kappa: (n,) weights, >= 0.
        groups: (n,) template of each image.
        media: (n,) medium of each image; the same number in two groups means two media.
        ids: the groups wanted, in this order, each at most once; default: all, ascending.

    Raises:
        InputError: directions that are not of unit length (as in `cosine_score`), kappas that are NaN,
            negative or infinite, columns of other lengths, a wanted group without an image, or one whose
            directions cancel or all have kappa 0 (it is named).

    Example:
        >>> import torch
        >>> mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> pooled = pool(mu, torch.tensor([3.0, 4.0, 7.0]), torch.tensor([5, 5, 9]))
        >>> pooled.mu.tolist(), pooled.kappa.tolist(), pooled.groups.tolist()
        ([[0.6..., 0.8...], [0.0, 1.0]], [5.0, 7.0], [5, 9])
    """
    (each,) = directions(2, mu=mu)
    weight = concentrations(kappa, each, "kappa", exact=True)
    found, slot = torch.unique(_integers(groups, each, "groups"), return_inverse=True)
    eta = weight[:, None] * each
    if media is not None:
        frames = _integers(media, each, "media")
        pairs, medium = torch.unique(torch.stack([slot, frames], 1), dim=0, return_inverse=True)
        count = torch.bincount(medium, minlength=len(pairs)).to(eta.dtype)
        slot = pairs[:, 0]
        eta = _sum(eta, medium, len(pairs)) / count[:, None]
        weight = _sum(weight, medium, len(pairs)) / count
    eta, weight = _sum(eta, slot, len(found)), _sum(weight, slot, len(found))
    if ids is not None:
        wanted = as_tensor(ids, "ids", each.device, kinds="i").long()
        chosen = _choose(found, wanted)
        found, eta, weight = wanted, eta[chosen], weight[chosen]
    pooled = eta.norm(dim=1)
    bad = ~(pooled > _CANCELLED * weight)
    if bool(bad.any()):
        first = int(found[bad][0])
        why = "all its kappas are 0" if float(weight[bad][0]) == 0 else "its directions cancel"
        raise InputError(
            f"{int(bad.sum())} of {len(found)} groups have no direction, first group {first}: {why}; "
            "leave it out, or pool it with other images"
        )
    given = [values for values in (mu, kappa, groups, media, ids) if values is not None]
    return Pooled(*(like(column, *given) for column in (eta / pooled[:, None], pooled, found)))


def _integers(values: Any, mu: Tensor, name: str) -> Tensor:
    tensor = as_tensor(values, name, mu.device, kinds="i")
    if tensor.shape != mu.shape[:1]:
        raise InputError(f"{name}: expected ({len(mu)},), one per direction, got {tuple(tensor.shape)}")
    return tensor.long()


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

"""Many images of one person into one distribution (equation 14 of the paper)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spherecf.common.arrays import Array, as_tensor, like
from spherecf.errors import InputError
from spherecf.scoring.pairs import concentrations, directions

_CANCELLED = 1e-6  # |sum| over sum of lengths below this is rounding noise, not a direction


def natural_parameter(
    mu: Float[Array, "*batch d"], kappa: Float[Array, "*batch"]
) -> Float[Array, "*batch d"]:
    """eta = kappa mu of each image: the summands of a template (equation 14).

    The product of the images' densities has the sum of their eta, so a template's kappa is its length and its
    direction is the template's. `pool` sums by groups, `pool_templates` millions of images, from a file.

    Args:
        mu: (..., dim) directions: tensors, or NumPy arrays.
        kappa: (...) concentrations.

    Example:
        >>> import numpy as np
        >>> natural_parameter(np.eye(2), np.array([3.0, 4.0])).sum(0).tolist()  # of length 5
        [3.0, 4.0]
    """
    eta: Array = kappa[..., None] * mu
    return eta


def without_each(
    mu: Float[Tensor, "n d"], kappa: Float[Tensor, " n"], groups: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """(directions, kappas): for each image the template of the others of its group.

    Where these say nothing (the image is alone, or they cancel) kappa is 0, and the direction, which does not
    matter then, is the image's own.

    Args:
        mu: (n, dim) unit directions.
        kappa: (n,) concentrations.
        groups: (n,) template of each image.

    Example:
        >>> import torch
        >>> without_each(torch.eye(2), torch.tensor([3.0, 4.0]), torch.tensor([5, 5]))[1].tolist()
        [4.0, 3.0]
    """
    eta = natural_parameter(mu, kappa)  # (n, dim)
    found, slot = torch.unique(groups, return_inverse=True)
    rest = _sum(eta, slot, len(found))[slot] - eta
    length = rest.norm(dim=1)
    return torch.where(length[:, None] > 0, rest / length[:, None], mu), length


def check_sums(what: str, ids: Any, length: Any, weight: Any) -> None:
    """Refuse groups without a direction.

    Args:
        what: what messages call them, in the plural.
        ids, length, weight: (groups,) tensors or arrays: their names, the lengths of their sums of weighted
            directions, and their sums of weights.

    Raises:
        InputError: a length that is rounding noise beside its weight; the first group is named.
    """
    bad = ~(length > _CANCELLED * weight)
    if bool(bad.any()):
        why = "all its weights are 0" if float(weight[bad][0]) == 0 else "its directions cancel"
        raise InputError(
            f"{int(bad.sum())} of {len(ids)} {what} have no direction, first {what[:-1]} "
            f"{int(ids[bad][0])}: {why}; leave it out, or pool it with other images"
        )


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
    eta = natural_parameter(each, weight)  # (n, dim)
    if media is not None:
        frames = _integers(media, each, "media")
        pairs, medium = torch.unique(torch.stack([slot, frames], 1), dim=0, return_inverse=True)
        slot = pairs[:, 0]
        # (media, dim): the mean over the frames of a video counts as one image.
        eta, weight = (mean_by(values, medium, len(pairs)) for values in (eta, weight))
    eta, weight = _sum(eta, slot, len(found)), _sum(weight, slot, len(found))  # (groups, dim), (groups,)
    if ids is not None:
        wanted = as_tensor(ids, "ids", each.device, kinds="i").long()
        chosen = _choose(found, wanted)
        found, eta, weight = wanted, eta[chosen], weight[chosen]
    pooled = eta.norm(dim=1)
    check_sums("groups", found, pooled, weight)
    given = [values for values in (mu, kappa, groups, media, ids) if values is not None]
    return Pooled(*(like(column, *given) for column in (eta / pooled[:, None], pooled, found)))


def _integers(values: Any, mu: Tensor, name: str) -> Tensor:
    tensor = as_tensor(values, name, mu.device, kinds="i")
    if tensor.shape != mu.shape[:1]:
        raise InputError(f"{name}: expected ({len(mu)},), one per direction, got {tuple(tensor.shape)}")
    return tensor.long()


def mean_by(values: Float[Tensor, "n *rest"], slot: Int64[Tensor, " n"], slots: int) -> Tensor:
    """(slots, ...) mean of the values in each slot: of the natural parameters of a video's frames."""
    count = torch.bincount(slot, minlength=slots).to(values.dtype)
    return _sum(values, slot, slots) / count.view(-1, *[1] * (values.ndim - 1))


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

"""Pooling several images of a person into one distribution (equation 14 of the paper)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spherecf.common.arrays import Array, as_tensor, match_input_type
from spherecf.errors import InputError
from spherecf.scoring.pairs import concentrations, directions

_CANCELLED = 1e-6  # |sum| relative to the sum of the norms: below this it is rounding noise, not a direction
_SMALL = 1e-15  # a length below which squares of float32 lose digits


def natural_parameter(
    mu: Float[Array, "*batch d"], kappa: Float[Array, "*batch"]
) -> Float[Array, "*batch d"]:
    """The natural parameter eta = kappa mu of each image, whose sum describes a template (equation 14).

    The product of the images' densities has the sum of their eta as its natural parameter: the norm of the
    sum is the template's kappa, its direction the template's mu. `pool` sums by group; `pool_templates` sums
    millions of images from a file.

    Args:
        mu: (..., dim) directions: tensors or NumPy arrays.
        kappa: (...) concentrations.

    Example:
        >>> import numpy as np
        >>> natural_parameter(np.eye(2), np.array([3.0, 4.0])).sum(0).tolist()  # of norm 5
        [3.0, 4.0]
    """
    eta: Array = kappa[..., None] * mu
    return eta


def without_each(
    mu: Float[Tensor, "n d"], kappa: Float[Tensor, " n"], groups: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """For each image, the template of the other images of its group, as directions (n, dim) and kappas (n,).

    If there are no other images, or they cancel, kappa is 0 and the direction is that of the image itself.

    Args:
        mu: (n, dim) unit directions.
        kappa: (n,) concentrations.
        groups: (n,) group of each image.

    Example:
        >>> import torch
        >>> without_each(torch.eye(2), torch.tensor([3.0, 4.0]), torch.tensor([5, 5]))[1].tolist()
        [4.0, 3.0]
    """
    eta = natural_parameter(mu, kappa)  # (n, dim)
    ids, slot = torch.unique(groups, return_inverse=True)
    others = _sum_by(eta, slot, len(ids))[slot] - eta  # (n, dim)
    length = others.norm(dim=1)
    return torch.where(length[:, None] > 0, others / length[:, None], mu), length


def check_sums(what: str, ids: Any, length: Any, weight: Any) -> None:
    """Refuse groups whose sum has no direction.

    Args:
        what: the plural that messages use for the groups.
        ids: (groups,) their ids, as a tensor or array like the others.
        length: (groups,) norms of their sums of weighted directions.
        weight: (groups,) their sums of weights.

    Raises:
        InputError: a norm is rounding noise compared with its weight; the first such group is named.
    """
    bad = ~(length > _CANCELLED * weight)
    if bool(bad.any()):
        reason = "all its weights are 0" if float(weight[bad][0]) == 0 else "its directions cancel"
        raise InputError(
            f"{int(bad.sum())} of {len(ids)} {what} have no direction, first {what[:-1]} "
            f"{int(ids[bad][0])}: {reason}; leave it out, or pool it with other images"
        )


@dataclass(frozen=True, eq=False)
class Pooled(Generic[Array]):
    """One distribution per group, as arrays if all arguments of `pool` were arrays, else as tensors.

    Sums of half precision are float32. Unpacks to (mu, kappa, groups).
    """

    mu: Array
    """(groups, dim) unit directions."""
    kappa: Array
    """(groups,) pooled concentrations."""
    groups: Array
    """(groups,) ids, ascending, or in the order of ``ids``."""

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
    densities (natural parameters add), so more images that agree give a higher kappa. Frames of one video are
    not independent evidence: with ``media``, the ``kappa_i mu_i`` are averaged within each medium, then
    summed over the media.

    Args:
        mu: (n, dim) unit directions: tensors or NumPy arrays, like the other arguments. They have unit length
            whatever the weights are.
        kappa: (n,) concentrations, or other pooling weights such as norms or detector scores, >= 0.
        groups: (n,) integer id of each image's group.
        media: (n,) integer id of each image's medium; the same id in two groups means two media.
        ids: the groups to return, in this order. Default: all, ascending.

    Raises:
        InputError: directions are not of unit length (as in `cosine_score`), kappas are NaN, negative or
            infinite, lengths do not fit, or a group has no image or no direction, because its directions
            cancel or all have kappa 0 (the first one is named).

    Example:
        >>> import torch
        >>> mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> pooled = pool(mu, torch.tensor([3.0, 4.0, 7.0]), torch.tensor([5, 5, 9]))
        >>> pooled.mu.tolist(), pooled.kappa.tolist(), pooled.groups.tolist()
        ([[0.6..., 0.8...], [0.0, 1.0]], [5.0, 7.0], [5, 9])
    """
    (direction,) = directions(2, mu=mu)
    weight = concentrations(kappa, direction, "kappa", exact=True)
    group_ids, slot = torch.unique(_integers(groups, direction, "groups"), return_inverse=True)
    dtype = torch.promote_types(torch.promote_types(direction.dtype, weight.dtype), torch.float32)
    weight = weight.to(dtype)
    eta = natural_parameter(direction.to(dtype), weight)  # (n, dim)
    if media is not None:
        media_ids = _integers(media, direction, "media")
        pairs, medium = torch.unique(torch.stack([slot, media_ids], 1), dim=0, return_inverse=True)
        slot = pairs[:, 0]
        # (media, dim): the mean over the frames of a video counts as one image.
        eta, weight = (mean_by(values, medium, len(pairs)) for values in (eta, weight))
    n_groups = len(group_ids)
    eta, weight = _sum_by(eta, slot, n_groups), _sum_by(weight, slot, n_groups)  # (groups, dim), (groups,)
    if ids is not None:
        requested = as_tensor(ids, "ids", direction.device, kinds="i").long()
        if requested.ndim != 1:
            raise InputError(f"ids: expected one axis, (groups,), got {tuple(requested.shape)}")
        rows = _find_groups(group_ids, requested)
        group_ids, eta, weight = requested, eta[rows], weight[rows]
    length = eta.norm(dim=1)  # (groups,)
    # Squares of float32 may overflow or underflow.
    if not bool(((length > _SMALL) & (length < torch.inf)).all()):
        length = torch.linalg.vector_norm(eta, dim=1, dtype=torch.float64).to(dtype)
    check_sums("groups", group_ids, length, weight)
    arguments = [values for values in (mu, kappa, groups, media, ids) if values is not None]
    results = (eta / length[:, None], length, group_ids)
    return Pooled(*(match_input_type(result, *arguments) for result in results))


def _integers(values: Any, mu: Tensor, name: str) -> Tensor:
    tensor = as_tensor(values, name, mu.device, kinds="i")
    if tensor.shape != mu.shape[:1]:
        raise InputError(f"{name}: expected ({len(mu)},), one per direction, got {tuple(tensor.shape)}")
    return tensor.long()


def mean_by(values: Float[Tensor, "n *rest"], slot: Int64[Tensor, " n"], slots: int) -> Tensor:
    """The mean of the values of each slot, (slots, ...), for example of a video's natural parameters."""
    count = torch.bincount(slot, minlength=slots).to(values.dtype)
    return _sum_by(values, slot, slots) / count.view(-1, *[1] * (values.ndim - 1))


def _sum_by(values: Tensor, slot: Tensor, slots: int) -> Tensor:
    """The sum of the values (n, ...) of each slot, (slots, ...)."""
    return values.new_zeros((slots, *values.shape[1:])).index_add_(0, slot, values)


def _find_groups(group_ids: Tensor, requested: Tensor) -> Tensor:
    """Positions of the requested ids among the ascending ``group_ids``."""
    rows = torch.searchsorted(group_ids, requested).clamp_max(max(len(group_ids) - 1, 0))
    missing = requested if len(group_ids) == 0 else requested[group_ids[rows] != requested]
    if len(missing):
        raise InputError(
            f"{len(missing)} of {len(requested)} groups have no image, first group {int(missing[0])}; "
            "remove them from the protocol's list or embed their images"
        )
    return rows

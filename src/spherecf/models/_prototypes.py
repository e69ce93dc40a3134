"""One direction per identity, from the training images themselves."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.errors import InputError


def class_mean_prototypes(
    mu: Float[Tensor, "n dim"], labels: Int[Tensor, "n"]
) -> Float[Tensor, "identities dim"]:
    """The normalised mean direction of each identity.

    Args:
        mu: unit directions (n, dim).
        labels: identity of each, 0 .. identities - 1, each at least once.

    Raises:
        InputError: labels that do not fit, or an identity without images.

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> class_mean_prototypes(mu, torch.tensor([0, 1, 1])).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    sums, counts = _sums(mu, labels)
    if bool((counts == 0).any()):
        empty = torch.nonzero(counts == 0).flatten().tolist()
        raise InputError(
            f"labels: {len(empty)} identities have no image, the first is {empty[0]}; number them 0, 1, ..."
        )
    return normalize(sums, dim=1).to(mu.dtype)


def leave_one_out_prototypes(
    mu: Float[Tensor, "n dim"], labels: Int[Tensor, "n"]
) -> tuple[Float[Tensor, "n dim"], Bool[Tensor, "n"]]:
    """For each sample the normalised mean direction of the *other* samples of its identity.

    With the sample itself in the mean its cosine is inflated and kappa comes out too sure.

    Args:
        mu: unit directions (n, dim).
        labels: identity of each sample, any non-negative integers.

    Returns:
        The prototypes (n, dim), zero where there are none, and a mask (n,) of usable samples: False for the
        only image of an identity, ``(~usable).sum()`` counts them.

    Example:
        >>> mu = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> prototypes, usable = leave_one_out_prototypes(mu, torch.tensor([0, 0, 1]))
        >>> prototypes.tolist(), usable.tolist()
        ([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [True, True, False])
    """
    sums, counts = _sums(mu, labels)
    usable = counts[labels] > 1
    rest = torch.where(usable[:, None], sums[labels] - mu.double(), 0.0)
    return normalize(rest, dim=1).to(mu.dtype), usable


def _sums(mu: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if not len(mu):
        raise InputError("prototypes: expected at least one sample, got none")
    if int(labels.min()) < 0:
        raise InputError(f"labels: expected identities from 0 on, got {int(labels.min())}")
    if not bool(torch.isfinite(mu).all()):
        bad = int((~torch.isfinite(mu)).any(1).sum())
        raise InputError(f"mu: {bad} of {len(mu)} directions are not finite; leave these samples out")
    labels = labels.long()
    sums = torch.zeros(int(labels.max()) + 1, mu.shape[1], dtype=torch.float64, device=mu.device)
    sums.index_add_(0, labels, mu.double())
    return sums, torch.bincount(labels, minlength=len(sums))

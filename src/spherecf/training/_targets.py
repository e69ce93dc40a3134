"""What the head is trained towards: the cosine of each view to the prototype of its identity."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spherecf.errors import InputError
from spherecf.models import class_mean_prototypes, leave_one_out_prototypes
from spherecf.training._cache import FeatureCache


@dataclass(frozen=True, eq=False)
class Targets:
    """The rows of a cache that can be learnt from.

    Attributes:
        rows: (n,) rows of the cache.
        cosine: (n,) cos(mu, prototype) of each.
        identities: (n,) identity of each.
        alone: keys of images left out because nobody else of their identity is there.
    """

    rows: NDArray[np.int64]
    cosine: NDArray[np.float32]
    identities: NDArray[np.int64]
    alone: list[str]


def prototype_targets(
    cache: FeatureCache, prototypes: Float[Tensor, "identities dim"] | None = None, leave_one_out: bool = True
) -> Targets:
    """Cosines to given prototypes, or to the class means of the clean views.

    With ``leave_one_out`` (class means only) each image is compared with the mean of the *other* images of
    its identity, in all its views: with the sample in the mean its cosine is inflated and kappa comes out
    too sure.

    Args:
        cache: features of the training images.
        prototypes: (identities, dim), unit, indexed by label; None for class means.
        leave_one_out: see above.

    Raises:
        InputError: labels beyond the prototypes, another dimension, or nothing to learn from.
    """
    usable = cache.valid & (cache.labels >= 0)
    rows = np.flatnonzero(usable)
    mu, labels = torch.from_numpy(cache.mu[rows]), torch.from_numpy(cache.labels[rows])
    alone: list[str] = []
    if prototypes is not None:
        _check_fit(prototypes, cache)
        cosine = (mu * prototypes[labels]).sum(1)
    else:
        image = rows // len(cache.views)
        clean = rows % len(cache.views) == 0
        one_each, place = np.unique(image, return_inverse=True)
        clean_mu, clean_labels = mu[clean], labels[clean]
        if len(clean_labels) != len(one_each):
            raise InputError("the cache lacks the clean view of some images; view 0 must be the clean one")
        if leave_one_out:
            of_image, fine = leave_one_out_prototypes(clean_mu, clean_labels)
        else:
            names, dense = torch.unique(clean_labels, return_inverse=True)
            of_image = class_mean_prototypes(clean_mu, dense)[dense]
            fine = torch.bincount(dense, minlength=len(names))[dense] > 1
        alone = [cache.source.keys[one_each[i]] for i in torch.nonzero(~fine).flatten().tolist()]
        kept = fine.numpy()[place]
        rows, mu, place = rows[kept], mu[torch.from_numpy(kept)], place[kept]
        cosine = (mu * of_image[torch.from_numpy(place)]).sum(1)
    if not len(rows):
        raise InputError(
            f"nothing to learn from: {len(cache.source)} images, {len(cache.skipped)} unreadable, "
            f"{len(alone)} the only one of their identity; class means need two or more images of each"
        )
    return Targets(rows, cosine.clamp(-1, 1).numpy(), cache.labels[rows], alone)


def _check_fit(prototypes: Tensor, cache: FeatureCache) -> None:
    identities, dim = prototypes.shape
    if dim != cache.mu.shape[1]:
        raise InputError(f"prototypes have dimension {dim}, the backbone {cache.mu.shape[1]}")
    largest = int(cache.labels.max(initial=-1))
    if largest >= identities:
        raise InputError(
            f"labels reach {largest}, but there are {identities} prototypes: not this data set's classifier"
        )

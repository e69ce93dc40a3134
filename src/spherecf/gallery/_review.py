"""What should be looked at in an enrolment."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.gallery._identification import Candidate
from spherecf.gallery._limits import Limit
from spherecf.gallery._rows import Images
from spherecf.scoring import mutual_likelihood_score

_NAMED = 5  # photos named in one warning


def review(
    images: Images, kappa: float, others: Sequence[Candidate], limits: tuple[Limit, Limit] | None,
    radius: float,
) -> tuple[str, ...]:  # fmt: skip
    """Warnings, in plain words: too poor, photos that do not fit together, too like somebody else.

    Args:
        images: of the template.
        kappa: of the template.
        others: templates of other people that are most like it.
        limits: against one image and against a template; None without calibration, then nothing is said.
        radius: r of the scores.
    """
    if limits is None:
        return ()
    one, several = limits
    found = []
    if kappa < one.least:
        found.append(f"poor: kappa {kappa:.1f}, at least {one.least:.1f} is needed to identify anybody by it")
    if len(images) > 1:
        scores = against_the_rest(images, radius)
        limit = one if len(images) == 2 else several
        strange = np.flatnonzero(scores < limit.reject)
        if len(images) == 2 and strange.size:
            found.append("the two photos do not look like one person")
        elif strange.size:
            names = [images.sources[i] or f"photo {i + 1}" for i in strange[:_NAMED]]
            more = f" and {strange.size - _NAMED} more" if strange.size > _NAMED else ""
            found.append(f"does not look like the other photos: {', '.join(names)}{more}")
    alike = [other for other in others if other.score >= max(one.accept, several.accept)]
    if alike:
        found.append(
            f"resembles {alike[0].identity} (score {alike[0].score:.1f}): one person under two names?"
        )
    return tuple(found)


def against_the_rest(images: Images, radius: float) -> NDArray[np.float64]:
    """(n,) score of each image against the sum of kappa_i mu_i over the others."""
    kappa = torch.from_numpy(images.kappa).double()
    mu = torch.from_numpy(images.mu).double()
    total = kappa[:, None] * mu
    rest = total.sum(0, keepdim=True) - total
    length = rest.norm(dim=1)
    towards = torch.where(length[:, None] > 0, rest / length[:, None], mu)  # at kappa 0 any direction will do
    scores: NDArray[np.float64] = mutual_likelihood_score(mu, kappa, towards, length, radius=radius).numpy()
    return scores

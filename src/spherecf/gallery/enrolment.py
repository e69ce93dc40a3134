"""What may be enrolled, the template made of it, and what should be looked at."""

import secrets
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.common.arrays import as_array, check_directions, check_kappa
from spherecf.common.version import __version__
from spherecf.errors import InputError
from spherecf.gallery.identification import Candidate, Limit
from spherecf.gallery.rows import Images, Template, now
from spherecf.scoring import mutual_likelihood_score, natural_parameter, pool_templates

_LONGEST = 512  # characters of a source or medium


def check_images(
    mu: ArrayLike,
    kappa: ArrayLike,
    dim: int,
    media: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> Images:
    """As arrays, with directions of length 1; media and sources that are not given are empty.

    Raises:
        InputError: no image, shapes that do not fit, NaN, not unit length, negative kappa.
    """
    directions, lengths = as_array(mu, "mu", np.float32), as_array(kappa, "kappa", np.float32)
    if directions.ndim != 2 or directions.shape[1] != dim or not len(directions):
        raise InputError(f"mu: expected (n, {dim}) directions, n >= 1, got {directions.shape}")
    n = len(directions)
    media, sources = ([""] * n if column is None else column for column in (media, sources))
    if lengths.shape != (n,) or len(media) != n or len(sources) != n:
        raise InputError(
            f"expected a kappa, medium and source for each of {n} directions, got {lengths.shape}, "
            f"{len(media)} and {len(sources)}"
        )
    check_directions(directions, "mu", keys=sources if any(sources) else ())
    check_kappa(lengths, "kappa")
    norm = np.linalg.norm(directions.astype(np.float64), axis=1)
    unit = (directions / norm[:, None]).astype(np.float32)
    return Images(
        unit, lengths, *(tuple(str(one)[:_LONGEST] for one in column) for column in (media, sources))
    )


def check_probe(mu: ArrayLike, kappa: float, dim: int) -> tuple[NDArray[np.float32], float]:
    """One direction and concentration.

    Raises:
        InputError: as in `check_images`.
    """
    direction = as_array(mu, "mu", np.float32)
    if direction.shape != (dim,):
        raise InputError(f"mu: expected one direction ({dim},), got {direction.shape}")
    images = check_images(direction[None], [kappa], dim)
    return images.mu[0], float(images.kappa[0])


_SOURCES = 5  # that are told of a template

Review = Callable[[Images, NDArray[np.float32], float], tuple[str, ...]]


def pooled_template(
    key: str,
    name: str,
    images: Images,
    before: Template | None = None,
    review: Review | None = None,
    *,
    renew: bool = False,
) -> Template:
    """Pool images, mean inside a medium and sum over media; one image stays as it is, bit by bit.

    Args:
        key, name: of the template.
        images: all of them.
        before: the template that these images extend; its images keep their places.
        review: makes warnings from images, direction and kappa.
        renew: images of ``before`` are left out, so the others move.
    """
    codes = {medium: code for code, medium in enumerate(dict.fromkeys(images.media))}
    mu, kappa = images.mu[0], float(images.kappa[0])
    if len(images) > 1:
        media = [codes[medium] for medium in images.media]
        pooled = pool_templates(images.mu, images.kappa, np.zeros(len(images), np.int64), media)
        mu, kappa = pooled.mu[0], float(pooled.kappa[0])
    first = {} if before is None else before.facts
    when = now()
    facts = {
        "generation": (not renew and first.get("generation")) or secrets.token_hex(4),
        "medium": images.media[0],
        "source": images.sources[0],
        "sources": list(images.sources[:_SOURCES]),
        "warnings": [] if review is None else list(review(images, mu, kappa)),
        "enrolled": first.get("enrolled") or when,
        "changed": when,
        "spherecf": __version__,
    }
    return Template(key, name, mu, kappa, len(images), len(codes), facts)


def no_images(dim: int) -> Images:
    """None at all."""
    return Images(np.empty((0, dim), np.float32), np.empty(0, np.float32), (), ())


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
    each = natural_parameter(mu, kappa)  # (n, dim)
    rest = each.sum(0, keepdim=True) - each
    length = rest.norm(dim=1)
    towards = torch.where(length[:, None] > 0, rest / length[:, None], mu)  # at kappa 0 any direction will do
    scores: NDArray[np.float64] = mutual_likelihood_score(mu, kappa, towards, length, radius=radius).numpy()
    return scores

"""Check images, pool them into a template, and review the template."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.common.arrays import as_array, check_directions, check_kappa
from spherecf.common.version import __version__
from spherecf.errors import InputError
from spherecf.gallery.identification import Candidate, Limit
from spherecf.gallery.rows import Images, Template, now, template_id
from spherecf.scoring import mutual_likelihood_score, pool_templates, without_each

_MAX_CHARACTERS = 512  # of a source or medium


def check_images(
    mu: ArrayLike,
    kappa: ArrayLike,
    dim: int,
    media: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> Images:
    """Convert to arrays with unit directions; missing media and sources become empty strings.

    Raises:
        InputError: no image, wrong shapes, NaN, directions that are not unit vectors, negative kappa.
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
        unit, lengths, *(tuple(str(text)[:_MAX_CHARACTERS] for text in column) for column in (media, sources))
    )


def check_probe(mu: ArrayLike, kappa: float, dim: int) -> tuple[NDArray[np.float32], float]:
    """Check one direction and concentration.

    Raises:
        InputError: as in `check_images`.
    """
    direction = as_array(mu, "mu", np.float32)
    if direction.shape != (dim,):
        raise InputError(f"mu: expected one direction ({dim},), got {direction.shape}")
    images = check_images(direction[None], [kappa], dim)
    return images.mu[0], float(images.kappa[0])


_SOURCES = 5  # listed for a template

Review = Callable[[Images, NDArray[np.float32], float], tuple[str, ...]]


def pooled_template(
    name: str, images: Images, before: Template | None = None, review: Review | None = None
) -> Template:
    """Pool images: mean within each medium, sum over media. A single image is kept bit for bit.

    Args:
        name: of the person.
        images: all of them.
        before: the template that this one replaces.
        review: returns warnings for images, direction and kappa.
    """
    mu, kappa = images.mu[0], float(images.kappa[0])
    if len(images) > 1:
        pooled = pool_templates(images.mu, images.kappa, np.zeros(len(images), np.int64), images.medium)
        mu, kappa = pooled.mu[0], float(pooled.kappa[0])
    when = now()
    facts = {
        "medium": images.media[0],
        "source": images.sources[0],
        "sources": list(images.sources[:_SOURCES]),
        "warnings": [] if review is None else list(review(images, mu, kappa)),
        "enrolled": when if before is None else before.facts["enrolled"],
        "changed": when,
        "spherecf": __version__,
    }
    media = len(set(images.media))
    return Template(template_id(name, images, mu, kappa), name, mu, kappa, len(images), media, facts)


def no_images(dim: int) -> Images:
    """An empty set of images."""
    return Images(np.empty((0, dim), np.float32), np.empty(0, np.float32), (), ())


_NAMED = 5  # photos named in one warning


def review(
    images: Images, kappa: float, others: Sequence[Candidate], limits: tuple[Limit, Limit] | None,
    radius: float,
) -> tuple[str, ...]:  # fmt: skip
    """Warnings: low quality, photos of different people, resemblance to another enrolled person.

    Args:
        images: of the template.
        kappa: of the template.
        others: most similar templates of other people.
        limits: for templates of one image and of several; None without calibration, which gives no warnings.
        radius: r of the scores.
    """
    if limits is None:
        return ()
    single, pooled = limits
    warnings = []
    if kappa < single.min_kappa:
        warnings.append(f"low quality: kappa {kappa:.1f}, identification requires {single.min_kappa:.1f}")
    if len(images) > 1:
        scores = against_the_rest(images, radius)
        limit = single if len(images) == 2 else pooled
        strange = np.flatnonzero(scores < limit.reject)
        if len(images) == 2 and strange.size:
            warnings.append("the two photos look like different people")
        elif strange.size:
            names = [images.sources[i] or f"photo {i + 1}" for i in strange[:_NAMED]]
            more = f" and {strange.size - _NAMED} more" if strange.size > _NAMED else ""
            warnings.append(f"photos that do not look like the others: {', '.join(names)}{more}")
    alike = [other for other in others if other.score >= max(single.accept, pooled.accept)]
    if alike:
        warnings.append(
            f"resembles {alike[0].identity} (score {alike[0].score:.1f}); is this one person under two names?"
        )
    return tuple(warnings)


def against_the_rest(images: Images, radius: float) -> NDArray[np.float64]:
    """(n,) score of each image against the pooled template of the others, the sum of kappa_i mu_i."""
    mu, kappa = (torch.from_numpy(column).double() for column in (images.mu, images.kappa))
    rest = without_each(mu, kappa, torch.zeros(len(images), dtype=torch.int64))
    scores: NDArray[np.float64] = mutual_likelihood_score(mu, kappa, *rest, radius=radius).numpy()
    return scores

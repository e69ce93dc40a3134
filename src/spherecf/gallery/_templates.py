"""From images to the template that is stored."""

import secrets
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spherecf.common.version import __version__
from spherecf.gallery._header import now
from spherecf.gallery._rows import Images, Template
from spherecf.scoring import pool_templates

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

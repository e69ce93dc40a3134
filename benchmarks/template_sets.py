"""Synthetic template sets with the size and structure of IJB-C and known subjects."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from spherecf.errors import InputError

Array = NDArray[Any]

_SUBJECTS, _PROBES, _IMAGES = 3531, 19593, 469_375  # of IJB-C
_MATED, _PAIRS = 19557, 15_658_489
_FIRST = 1772  # subjects enrolled in the first gallery
_BLOCK = 16384  # images drawn at once


@dataclass(frozen=True, eq=False)
class SyntheticTemplates:
    """Template images and the subject of each template; every subject has one gallery template."""

    mu: NDArray[np.float32]
    """(n, dim) unit directions, in order of template; memory-mapped if a path was given."""
    kappa: NDArray[np.float32]
    """(n,) concentration with which each image was drawn."""
    templates: NDArray[np.int64]
    """(n,) template id of each image."""
    media: NDArray[np.int64]
    """(n,) medium of each image."""
    ids: NDArray[np.int64]
    """(t,) template ids, ascending."""
    subjects: NDArray[np.int64]
    """(t,) the true subject of each template."""
    galleries: dict[str, NDArray[np.int64]]
    """"G1" and "G2": template ids; no subject is in both."""
    probes: NDArray[np.int64]
    """Template ids of the mixed probes."""
    seed: int

    def pairs(self) -> tuple[Array, Array, NDArray[np.bool_]]:
        """(left, right, mated) template ids for 1:1 as in the protocol: galleries against probes, shuffled.

        Nearly every probe is in one mated pair; the other pairs are drawn at random and are non-mated.
        """
        enrolled = np.concatenate(list(self.galleries.values()))
        rng = np.random.default_rng([self.seed, 1])
        mated, total = (max(2, round(n * self.probes.size / _PROBES)) for n in (_MATED, _PAIRS))
        total = min(round(total * enrolled.size / _SUBJECTS), enrolled.size * self.probes.size)
        order = np.argsort(self._subject(enrolled))
        probes = rng.choice(self.probes, min(mated, self.probes.size), replace=False)
        mates = enrolled[order][self._subject(probes)]
        n_drawn = total + total // 20 + 50  # a few pairs are mated by chance and are left out
        left, right = (rng.choice(side, n_drawn) for side in (enrolled, self.probes))
        non_mated = np.flatnonzero(self._subject(left) != self._subject(right))[: total - probes.size]
        return self._shuffled(rng, np.append(mates, left[non_mated]), np.append(probes, right[non_mated]))

    def random_pairs(self, count: int) -> tuple[Array, Array, NDArray[np.bool_]]:
        """(left, right, mated) template ids drawn over all templates; one pair in a hundred is mated."""
        rng = np.random.default_rng([self.seed, 2])
        left, right = rng.choice(self.ids, (2, count))
        mate = np.arange(count // 100)
        by_subject = np.argsort(self.subjects, kind="stable")
        size = np.bincount(self.subjects)
        start = np.cumsum(size) - size
        subject = self._subject(left[mate])
        right[mate] = self.ids[by_subject[start[subject] + rng.integers(0, size[subject])]]
        # If both sides are the same template, take the next one on the right.
        position = np.searchsorted(self.ids, right) + (left == right)
        return self._shuffled(rng, left, self.ids[position % self.ids.size])

    def _subject(self, templates: Array) -> Array:
        return self.subjects[np.searchsorted(self.ids, templates)]

    def _shuffled(
        self, rng: np.random.Generator, left: Array, right: Array
    ) -> tuple[Array, Array, NDArray[np.bool_]]:
        order = rng.permutation(left.size)
        left, right = left[order], right[order]
        return left, right, self._subject(left) == self._subject(right)


def synthetic_templates(
    scale: float = 1.0,
    dim: int = 512,
    *,
    images: int | None = None,
    seed: int = 0,
    path: str | Path | None = None,
) -> SyntheticTemplates:
    """Draw a template set with the size and structure of IJB-C.

    At scale 1 it has 3,531 subjects, 23,124 templates and 469,375 images. A subject has a direction c,
    uniform on the sphere. An image with concentration kappa is the direction of ``s c + z``, with z standard
    normal in ``dim`` dimensions and s such that ``kappa = s sqrt(s^2 + dim)``. This is very nearly a von
    Mises-Fisher sample, whose mean cosine to c is A_d(kappa). kappa varies by a factor of 50 over images, and
    frames of one medium have similar kappas.

    Args:
        scale: factor for the numbers of subjects, templates and images.
        dim: of the directions.
        images: number of images, if it should differ from the scaled one; at least one per template.
        seed: of all random numbers; equal arguments give equal sets, with or without ``path``.
        path: a .npy file for the directions, which are then memory-mapped from it.

    Raises:
        InputError: fewer than four subjects, or fewer images than templates.

    Example:
        >>> world = synthetic_templates(0.01, dim=16)
        >>> world.mu.shape, world.ids.size, world.probes.size, len(world.galleries["G1"])
        ((4694, 16), 231, 196, 18)
    """
    subjects, probes = round(_SUBJECTS * scale), round(_PROBES * scale)
    count = subjects + probes
    total = round(_IMAGES * scale) if images is None else images
    if subjects < 4 or total < count or dim < 2:
        raise InputError(
            f"synthetic templates: expected at least 4 subjects, an image per template and dim >= 2, got "
            f"{subjects} subjects, {total} images of {count} templates, dim {dim}"
        )
    rng = np.random.default_rng([seed, 0])
    ids = 1 + np.cumsum(rng.integers(1, 4, count))  # gaps, as in the real lists
    shuffled = rng.permutation(count)
    enrolled = np.zeros(count, bool)
    enrolled[shuffled[:subjects]] = True
    subject = np.empty(count, np.int64)
    subject[enrolled] = rng.permutation(subjects)
    subject[~enrolled] = rng.integers(0, subjects, probes)
    owner = np.sort(np.append(np.arange(count), _sizes(rng, count, total)))
    new = rng.random(total) < 0.3  # a video has about three frames
    new[1:] |= owner[1:] != owner[:-1]
    new[0] = True
    medium = np.cumsum(new, dtype=np.int64)
    level = rng.normal(size=medium[-1])[medium - 1] + 0.5 * rng.normal(size=total)
    kappa = (700 * np.exp(0.7 * level)).astype(np.float32)
    shape = total, dim
    mu: Array = np.empty(shape, np.float32) if path is None else open_memmap(path, "w+", np.float32, shape)
    centres = rng.standard_normal((subjects, dim), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    for block, drawn in _directions(rng, centres, subject, owner, kappa):
        mu[block] = drawn
    if path is not None:
        mu = np.load(path, mmap_mode="r")
    first = (subject < round(subjects * _FIRST / _SUBJECTS)) & enrolled
    galleries = {"G1": ids[first], "G2": ids[enrolled & ~first]}
    return SyntheticTemplates(mu, kappa, ids[owner], medium, ids, subject, galleries, ids[~enrolled], seed)


def _sizes(rng: np.random.Generator, templates: int, images: int) -> Array:
    """Templates of the images beyond the first: most templates get a few images, some get hundreds."""
    share = rng.pareto(1.2, templates) + 0.1
    return rng.choice(templates, images - templates, p=share / share.sum())


def _directions(
    rng: np.random.Generator, centres: Array, subject: Array, owner: Array, kappa: Array
) -> Iterator[tuple[slice, Array]]:
    dim = centres.shape[1]
    half = dim / 2.0
    along = np.sqrt(np.sqrt(half * half + kappa.astype(np.float64) ** 2) - half).astype(np.float32)
    for start in range(0, owner.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        drawn = rng.standard_normal((owner[block].size, dim), np.float32)
        drawn += along[block, None] * centres[subject[owner[block]]]
        yield block, drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

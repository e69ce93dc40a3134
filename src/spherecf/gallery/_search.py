"""Exact top-k under the mutual likelihood score: all cosines by a product, then few scores by the bound."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.gallery._bound import Bound
from spherecf.gallery._mirror import Buckets, Mirror
from spherecf.scoring import mutual_likelihood_score

_CELLS = 1 << 25  # cosines held at once: 128 MiB
_SEEDS = 4  # times k rows are scored first, to know what is to be beaten
_REMOVED = -2.0  # cosine of a row that is no more


@dataclass(frozen=True, eq=False)
class Hits:
    """What a search found for one probe, best first; equal scores in the order of their keys."""

    rows: NDArray[np.int64]
    """(h,) rows of the mirror."""
    scores: NDArray[np.float64]
    """(h,) mutual likelihood scores, in float64."""
    cosines: NDArray[np.float64]
    """(h,) likewise."""
    scored: int
    """How many templates were scored; of all others the bound shows that they score lower."""


def search(
    mirror: Mirror, mu: NDArray[np.float32], kappa: NDArray[Any], top: int, radius: float
) -> list[Hits]:
    """The ``top`` best templates of each probe, exactly: those that scoring every template would give.

    1. One product of all directions gives all cosines in float32. By Higham's bound on inner products the
       error is at most d u / (1 - d u) with u = 2^-24, for unit vectors; that much is granted below.
    2. The templates with the highest cosines, of all and of each bucket, are scored; the k-th best of these
       scores must be reached by whatever else is among the top k.
    3. `Bound.score` at the highest cosine of a bucket rules out most buckets whole. In the others each
       template is scored by its cosine plus what that can be wrong by; those that may reach what is to be
       beaten are scored by their directions, in float64.

    Args:
        mirror: the gallery.
        mu: (n, dim) unit directions of the probes.
        kappa: (n,) their concentrations.
        top: k.
        radius: r of the score.
    """
    if not len(mirror):
        none = np.empty(0)
        return [Hits(none.astype(np.int64), none, none, 0) for _ in range(len(mu))]
    buckets = mirror.buckets()
    alive = mirror.alive
    dead = None if alive.all() else ~alive
    directions = torch.from_numpy(mirror.mu)
    found, height = [], max(1, _CELLS // len(alive))
    for start in range(0, len(mu), height):
        tile = (torch.from_numpy(mu[start : start + height]) @ directions.T).numpy()
        for probe, cosines in enumerate(tile, start):
            if dead is not None:
                cosines[dead] = _REMOVED
            rows = _candidates(mirror, buckets, cosines, mu[probe], float(kappa[probe]), top, radius)
            found.append(rank(mirror, rows, mu[probe], float(kappa[probe]), top, radius))
    return found


def rank(
    mirror: Mirror, rows: NDArray[np.int64], mu: NDArray[np.float32], kappa: float, top: int, radius: float
) -> Hits:
    """Score these rows and keep the best."""
    scores, cosines = _score(mirror, rows, mu, kappa, radius)
    if len(rows) > top:
        kept = np.flatnonzero(scores >= np.partition(scores, -top)[-top])
        best = kept[np.lexsort((mirror.keys[rows[kept]], -scores[kept]))][:top]
    else:
        best = np.lexsort((mirror.keys[rows], -scores))
    return Hits(rows[best], scores[best], cosines[best], len(rows))


def _candidates(
    mirror: Mirror, buckets: Buckets, cosines: NDArray[np.float32], mu: NDArray[np.float32], kappa: float,
    top: int, radius: float,
) -> NDArray[np.int64]:  # fmt: skip
    """Rows that may be among the best ``top``: every one that is, and few besides."""
    seeds = torch.topk(torch.from_numpy(cosines), min(_SEEDS * top, len(cosines))).indices.numpy()
    seeds = seeds[cosines[seeds] > _REMOVED]
    if len(seeds) < top:
        return np.flatnonzero(cosines > _REMOVED)
    heads = np.maximum.reduceat(cosines, buckets.starts)
    scores, _ = _score(mirror, np.union1d(seeds, _rows_of(heads, cosines, buckets)), mu, kappa, radius)
    least = float(np.partition(scores, -top)[-top])
    slack = _rounding(mirror.dim)
    bound = Bound(kappa, buckets.stretches, mirror.dim, radius)
    able = np.flatnonzero(bound.score(_cosine(heads, slack)) >= least)
    ends = np.append(buckets.starts[1:], len(cosines))
    rows = np.concatenate([np.arange(buckets.starts[one], ends[one]) for one in able])
    rows = rows[cosines[rows] > _REMOVED]
    reached = bound.reached(mirror.kappa[rows].astype(np.float64), _cosine(cosines[rows], slack))
    kept: NDArray[np.int64] = rows[reached >= least]
    return kept


def _cosine(cosines: NDArray[np.float32], slack: float) -> NDArray[np.float64]:
    """At least as large as the cosines are without rounding."""
    return np.clip(cosines.astype(np.float64) + slack, -1.0, 1.0)


def _rows_of(heads: NDArray[np.float32], cosines: NDArray[np.float32], buckets: Buckets) -> NDArray[np.int64]:
    """The row of the highest cosine of each bucket."""
    ends = np.append(buckets.starts[1:], len(cosines))
    rows = [int(first + cosines[first:end].argmax()) for first, end in zip(buckets.starts, ends)]
    return np.asarray(rows)[heads > _REMOVED]


def _score(
    mirror: Mirror, rows: NDArray[np.int64], mu: NDArray[np.float32], kappa: float, radius: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    theirs = torch.from_numpy(mirror.mu[rows]).double()
    ours = torch.from_numpy(mu).double()[None]
    own = torch.tensor([kappa], dtype=torch.float64)
    kappas = torch.from_numpy(mirror.kappa[rows]).double()
    scores = mutual_likelihood_score(ours, own, theirs, kappas, radius=radius)
    return scores.numpy(), (ours * theirs).sum(1).clamp(-1, 1).numpy()


def _rounding(dim: int) -> float:
    """More than a cosine in float32 can be wrong, the lengths of rounded unit vectors included."""
    return (dim + 8) * 2.0**-24 * 1.01

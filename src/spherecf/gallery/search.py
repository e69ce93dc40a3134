"""From a probe to candidates: exact top-k under the mutual likelihood score, or an approximate one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import PAIR_SCORE, TEMPLATE_SCORE, Calibration
from spherecf.gallery.identification import Candidate, Limit
from spherecf.gallery.mirror import Bound, Buckets, Mirror
from spherecf.gallery.store import missing
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


LEAST = 20_000  # templates; below, the exact search is as fast
_SAMPLE = 64  # directions per list to learn the lists from


class Approximate:
    """faiss IVF,SQ8 by inner product, for a mirror as it stands.

    The mutual likelihood score is increasing in the cosine, but depends on kappa too: a template of another
    kappa may be missed although it scores higher. The measured recall is in docs/gallery.md.
    """

    def __init__(self, mirror: Mirror) -> None:
        try:
            import faiss
        except ImportError as error:
            raise missing() from error
        mirror.buckets()  # orders the rows, so that they stay where they are
        lists = int(2 ** round(math.log2(4 * math.sqrt(len(mirror)))))
        self._index: Any = faiss.index_factory(mirror.dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        directions = mirror.mu
        chosen = np.random.default_rng(0).permutation(len(directions))[: lists * _SAMPLE]
        self._index.train(directions[chosen])
        self._index.add(directions)
        self._lists = lists

    def near(self, mu: NDArray[np.float32], count: int, share: float) -> NDArray[np.int64]:
        """Rows of about ``count`` templates with high cosines, after looking at a share of the lists."""
        self._index.nprobe = max(1, round(share * self._lists))
        _, rows = self._index.search(mu[None], count)
        found: NDArray[np.int64] = rows[0][rows[0] >= 0]
        return found


_NEAR = 256  # candidates of an approximate search, at least
_SHARE = 0.1  # of the lists that it looks at

Limits = tuple[Limit, Limit]
Elsewhere = Callable[[list[float], int, int], list[str]]


class Finder:
    """Searches a mirror.

    Args:
        mirror: the gallery.
        radius: r of the score.
        calibration: for likelihood ratios.
        elsewhere: keys of templates with high cosines, asked of a server; None to have an index here.
    """

    def __init__(
        self, mirror: Mirror, radius: float, calibration: Calibration | None, elsewhere: Elsewhere | None
    ) -> None:
        self._mirror, self._radius, self._calibration = mirror, radius, calibration
        self._elsewhere = elsewhere
        self._index: tuple[int, Approximate] | None = None

    def find(self, mu: NDArray[np.float32], kappa: float, top: int, exact: bool = True) -> Hits:
        """The best for one probe."""
        if exact or len(self._mirror) < LEAST:
            return search(self._mirror, mu[None], np.array([kappa]), top, self._radius)[0]
        return rank(self._mirror, self._near(mu, _NEAR + top), mu, kappa, top, self._radius)

    def find_all(self, mu: NDArray[np.float32], kappa: NDArray[Any], top: int) -> list[Hits]:
        """The best for each probe, exactly."""
        return search(self._mirror, mu, kappa, top, self._radius)

    def candidates(self, hits: Hits, limits: Limits | None = None) -> tuple[Candidate, ...]:
        """With names, and thresholds where they are known."""
        found = zip(hits.rows.tolist(), hits.scores.tolist(), hits.cosines.tolist())
        return tuple(self._candidate(row, score, cosine, limits) for row, score, cosine in found)

    def limits_of(self, hits: Hits, limits: Limits) -> list[Limit]:
        """The limit that holds for each hit: templates of several images have their own."""
        return [limits[int(images > 1)] for images in self._mirror.images[hits.rows].tolist()]

    def _near(self, mu: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        if self._elsewhere is not None:
            found = map(self._mirror.find, self._elsewhere(mu.tolist(), count, 2 * count))
            return np.array([row for row in found if row is not None], np.int64)
        if self._index is None or self._index[0] != self._mirror.changes:
            self._index = self._mirror.changes, Approximate(self._mirror)
        return self._index[1].near(mu, count, _SHARE)

    def _candidate(self, row: int, score: float, cosine: float, limits: Limits | None) -> Candidate:
        several = bool(self._mirror.images[row] > 1)
        limit = None if limits is None else limits[int(several)]
        return Candidate(
            self._mirror.names[row],
            str(self._mirror.keys[row]),
            score,
            cosine,
            float(self._mirror.kappa[row]),
            self._llr(score, several),
            None if limit is None else limit.accept,
            None if limit is None else limit.reject,
        )

    def _llr(self, score: float, several: bool) -> float | None:
        if self._calibration is None:
            return None
        known = self._calibration.likelihood
        name = TEMPLATE_SCORE if several and TEMPLATE_SCORE in known else PAIR_SCORE
        return float(self._calibration.llr(name, [score], self._radius)[0]) if name in known else None

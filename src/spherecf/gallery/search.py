"""Search a gallery: exact or approximate top-k under the mutual likelihood score."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import PAIR_SCORE, TEMPLATE_SCORE, Calibration
from spherecf.gallery.identification import Candidate, Limit
from spherecf.gallery.mirror import Bound, KappaBins, Mirror
from spherecf.gallery.store import milvus_missing
from spherecf.scoring import mutual_likelihood_score

_CELLS = 1 << 25  # cosines in memory at once: 128 MiB
_SEEDS = 4  # times k rows are scored first, to get the score to beat
_REMOVED = -2.0  # cosine that marks a removed row


@dataclass(frozen=True, eq=False)
class Hits:
    """The best templates for one probe, best first; ties in the order of their keys."""

    rows: NDArray[np.int64]
    """(h,) rows of the mirror."""
    scores: NDArray[np.float64]
    """(h,) mutual likelihood scores, in float64."""
    cosines: NDArray[np.float64]
    """(h,) cosines, in float64."""
    scored: int
    """Number of templates that were scored; the bound shows that all others score lower."""


def search(
    mirror: Mirror, mu: NDArray[np.float32], kappa: NDArray[Any], top: int, radius: float
) -> list[Hits]:
    """The ``top`` best templates of each probe, exactly as if every template were scored.

    1. One product of all directions gives all cosines in float32. By Higham's bound on inner products the
       error is at most d u / (1 - d u) with u = 2^-24, for unit vectors; this slack is added below.
    2. The templates with the highest cosines, of all and of each bin, are scored; every
       other template among the top k must reach the k-th best of these scores.
    3. `Bound.score` at the highest cosine of a bin rules out most bins as a whole. In the others each
       template is bounded by its cosine plus the slack; those that may reach the score to beat are scored by
       their directions, in float64.

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
    bins = mirror.bins()
    alive = mirror.alive
    dead = None if alive.all() else ~alive
    directions = torch.from_numpy(mirror.mu)
    results, height = [], max(1, _CELLS // len(alive))
    for start in range(0, len(mu), height):
        tile = (torch.from_numpy(mu[start : start + height]) @ directions.T).numpy()
        for probe, cosines in enumerate(tile, start):
            if dead is not None:
                cosines[dead] = _REMOVED
            rows = _candidates(mirror, bins, cosines, mu[probe], float(kappa[probe]), top, radius)
            results.append(rank(mirror, rows, mu[probe], float(kappa[probe]), top, radius))
    return results


def rank(
    mirror: Mirror, rows: NDArray[np.int64], mu: NDArray[np.float32], kappa: float, top: int, radius: float
) -> Hits:
    """Score the given rows and keep the best."""
    scores, cosines = _score(mirror, rows, mu, kappa, radius)
    if len(rows) > top:
        kept = np.flatnonzero(scores >= np.partition(scores, -top)[-top])
        best = kept[np.lexsort((mirror.keys[rows[kept]], -scores[kept]))][:top]
    else:
        best = np.lexsort((mirror.keys[rows], -scores))
    return Hits(rows[best], scores[best], cosines[best], len(rows))


def _candidates(
    mirror: Mirror, bins: KappaBins, cosines: NDArray[np.float32], mu: NDArray[np.float32], kappa: float,
    top: int, radius: float,
) -> NDArray[np.int64]:  # fmt: skip
    """Rows that may be among the best ``top``: all that are, and few others."""
    seeds = torch.topk(torch.from_numpy(cosines), min(_SEEDS * top, len(cosines))).indices.numpy()
    seeds = seeds[cosines[seeds] > _REMOVED]
    if len(seeds) < top:
        return np.flatnonzero(cosines > _REMOVED)
    heads = np.maximum.reduceat(cosines, bins.starts)
    scores, _ = _score(mirror, np.union1d(seeds, _rows_of(heads, cosines, bins)), mu, kappa, radius)
    score_to_beat = float(np.partition(scores, -top)[-top])
    slack = _rounding(mirror.dim)
    bound = Bound(kappa, bins.ends, mirror.dim, radius)
    remaining = np.flatnonzero(bound.score(_cosine(heads, slack)) >= score_to_beat)
    ends = np.append(bins.starts[1:], len(cosines))
    rows = np.concatenate([np.arange(bins.starts[i], ends[i]) for i in remaining])
    rows = rows[cosines[rows] > _REMOVED]
    reached = bound.reached(mirror.kappa[rows].astype(np.float64), _cosine(cosines[rows], slack))
    kept: NDArray[np.int64] = rows[reached >= score_to_beat]
    return kept


def _cosine(cosines: NDArray[np.float32], slack: float) -> NDArray[np.float64]:
    """Upper bound on the exact cosines."""
    return np.clip(cosines.astype(np.float64) + slack, -1.0, 1.0)


def _rows_of(heads: NDArray[np.float32], cosines: NDArray[np.float32], bins: KappaBins) -> NDArray[np.int64]:
    """The row of the highest cosine of each bin."""
    ends = np.append(bins.starts[1:], len(cosines))
    rows = [int(first + cosines[first:end].argmax()) for first, end in zip(bins.starts, ends)]
    return np.asarray(rows)[heads > _REMOVED]


def _score(
    mirror: Mirror, rows: NDArray[np.int64], mu: NDArray[np.float32], kappa: float, radius: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    theirs = torch.from_numpy(mirror.mu[rows]).double()
    ours = torch.from_numpy(mu).double()[None]
    ours_kappa = torch.tensor([kappa], dtype=torch.float64)
    theirs_kappa = torch.from_numpy(mirror.kappa[rows]).double()
    scores = mutual_likelihood_score(ours, ours_kappa, theirs, theirs_kappa, radius=radius)
    return scores.numpy(), (ours * theirs).sum(1).clamp(-1, 1).numpy()


def _rounding(dim: int) -> float:
    """Bound on the error of a cosine in float32, including rounded lengths of the unit vectors."""
    return (dim + 8) * 2.0**-24 * 1.01


MIN_APPROXIMATE = 20_000  # templates; with fewer the exact search is as fast
_SAMPLE = 64  # training directions per inverted list


class Approximate:
    """A faiss index (IVF,SQ8, inner product) over the current rows of a mirror.

    The mutual likelihood score increases with the cosine, but also depends on kappa, so a template with a
    high score may be missed. The measured recall is in docs/gallery.md.
    """

    def __init__(self, mirror: Mirror) -> None:
        try:
            import faiss
        except ImportError as error:
            raise milvus_missing() from error
        mirror.bins()  # sorts the rows, so that their positions stay fixed
        lists = int(2 ** round(math.log2(4 * math.sqrt(len(mirror)))))
        self._index: Any = faiss.index_factory(mirror.dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        directions = mirror.mu
        chosen = np.random.default_rng(0).permutation(len(directions))[: lists * _SAMPLE]
        self._index.train(directions[chosen])
        self._index.add(directions)
        self._lists = lists

    def near(self, mu: NDArray[np.float32], count: int, share: float) -> NDArray[np.int64]:
        """Rows of about ``count`` templates with high cosines, searching a share of the lists."""
        self._index.nprobe = max(1, round(share * self._lists))
        _, rows = self._index.search(mu[None], count)
        valid: NDArray[np.int64] = rows[0][rows[0] >= 0]
        return valid


_NEAR = 256  # minimum number of candidates of an approximate search
_SHARE = 0.1  # of the lists that it searches

Limits = tuple[Limit, Limit]
ServerSearch = Callable[[list[float], int, int], list[str]]


class Finder:
    """Searches a mirror.

    Args:
        mirror: the gallery.
        radius: r of the score.
        calibration: for likelihood ratios.
        server_search: asks a server for keys of templates with high cosines; None to use a local index.
    """

    def __init__(
        self,
        mirror: Mirror,
        radius: float,
        calibration: Calibration | None,
        server_search: ServerSearch | None,
    ) -> None:
        self._mirror, self._radius, self._calibration = mirror, radius, calibration
        self._server_search = server_search
        self._index: tuple[int, Approximate] | None = None

    def find(self, mu: NDArray[np.float32], kappa: float, top: int, exact: bool = True) -> Hits:
        """The best for one probe."""
        if exact or len(self._mirror) < MIN_APPROXIMATE:
            return search(self._mirror, mu[None], np.array([kappa]), top, self._radius)[0]
        return rank(self._mirror, self._near(mu, _NEAR + top), mu, kappa, top, self._radius)

    def find_all(self, mu: NDArray[np.float32], kappa: NDArray[Any], top: int) -> list[Hits]:
        """The best for each probe, exactly."""
        return search(self._mirror, mu, kappa, top, self._radius)

    def candidates(self, hits: Hits, limits: Limits | None = None) -> tuple[Candidate, ...]:
        """With names, and thresholds if they are known."""
        columns = zip(hits.rows.tolist(), hits.scores.tolist(), hits.cosines.tolist())
        return tuple(self._candidate(row, score, cosine, limits) for row, score, cosine in columns)

    def limits_of(self, hits: Hits, limits: Limits) -> list[Limit]:
        """The limit of each hit: templates of several images have another one."""
        return [limits[int(images > 1)] for images in self._mirror.images[hits.rows].tolist()]

    def _near(self, mu: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        if self._server_search is not None:
            rows = map(self._mirror.find, self._server_search(mu.tolist(), count, 2 * count))
            return np.array([row for row in rows if row is not None], np.int64)
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

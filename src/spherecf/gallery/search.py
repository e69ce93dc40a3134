"""Search a gallery: exact top-k under the mutual likelihood score."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import Calibration
from spherecf.gallery.bound import Array, Bound
from spherecf.gallery.identification import Candidate, Limit
from spherecf.gallery.index import SUB, Damaged, Index, quantise
from spherecf.gallery.store import Store
from spherecf.scoring import mutual_likelihood_score

_CELLS = 1 << 25  # cosines in memory at once: 128 MiB
_SEEDS = 2  # times k rows are scored first, to get the score to beat
_GROUPS = 4096  # groups of rows looked at at once
_PAIRS = 4096  # pairs scored at once

Places = NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Hit:
    """A template and its score; better ones are smaller, ties go by id."""

    negative_score: float
    id: str
    identity: str
    cosine: float
    kappa: float
    images: int


@dataclass(frozen=True, eq=False)
class Hits:
    """The best templates for one probe, best first."""

    best: Sequence[Hit]
    scored: int
    """Number of templates that were scored; the bound shows that all others score lower."""


def search(
    index: Index, store: Store, mu: NDArray[np.float32], kappa: NDArray[Any], top: int, radius: float
) -> list[Hits]:
    """The ``top`` best templates of each probe, exactly as if every template were scored.

    1. Products of 8-bit codes give all cosines up to an error whose bound is stored (see `Index`). For
       rounding in float32, of lengths too, d 2^-24 is added to it.
    2. Of each group of 256 rows the highest cosine is kept. The rows behind those that promise the highest
       scores are scored; every other template among the top k must reach the k-th best of these scores.
    3. `Bound.of_bins` at the highest cosine of a bin rules out most bins as a whole. For the others
       `Bound.cosines` gives the cosine that a row must reach, and `Bound.of_rows` asks it with its own kappa.
    4. Those that remain are scored by the directions in the gallery, in float64.

    Args:
        index: of the gallery.
        store: the gallery.
        mu: (n, dim) unit directions of the probes.
        kappa: (n,) their concentrations.
        top: k.
        radius: r of the score.
    """
    index.settle()
    if not index.parts:
        return [Hits((), 0) for _ in mu]
    height = max(1, _CELLS // sum(part.size for part in index.parts))
    results: list[Hits] = []
    for start in range(0, len(mu), height):
        part = slice(start, start + height)
        try:
            tile = _Tile(index, store, mu[part], np.asarray(kappa[part], np.float64), top, radius)
        except Damaged:
            index.rebuild()
            index.settle()
            tile = _Tile(index, store, mu[part], np.asarray(kappa[part], np.float64), top, radius)
        results.extend(tile.hits())
    return results


class _Tile:
    """Some probes, m, against all N rows, in S groups and b bins."""

    def __init__(
        self, index: Index, store: Store, mu: NDArray[np.float32], kappa: Array, top: int, radius: float
    ) -> None:
        self.store, self.mu, self.kappa, self.top, self.radius = store, mu, kappa, top, radius
        self.bound = Bound(kappa, mu.shape[1], radius)
        codes, scale, error = quantise(mu)
        self.scale = scale.astype(np.float64)
        cosines = torch.empty(len(mu), sum(part.size for part in index.parts))
        start = 0
        for part in index.parts:
            part.scan(torch.from_numpy(codes), cosines[:, start : start + part.size])
            start += part.size
        groups = cosines.view(len(mu), -1, SUB)
        # (m, S, 256) and (m, S), still to be scaled by the probe's scale
        self.groups, self.heads = groups.numpy(), groups.amax(2).numpy()
        self.scored: list[set[int]] = [set() for _ in mu]
        self.best: list[list[Hit]] = [[] for _ in mu]
        self.beat = np.full(len(mu), -np.inf)
        columns = index.columns
        self.row, self.row_kappa, self.ends = columns.row, columns.kappa, columns.ends
        self.starts = np.cumsum(columns.groups) - columns.groups  # (b,) first group of each bin
        self.bin_of = np.repeat(np.arange(len(self.starts)), columns.groups)  # (S,)
        rounding = (self.mu.shape[1] + 8) * 2.0**-24 * 1.01
        own = error[:, None].astype(np.float64)
        self.slack = own + (1 + own) * columns.error[None] + rounding  # (m, b)

    def hits(self) -> list[Hits]:
        """The best of each probe."""
        self._seed()
        for probes, places in self._survivors():
            self._score(probes, places)
        return [Hits(best, len(scored)) for best, scored in zip(self.best, self.scored)]

    def _seed(self) -> None:
        """Score a few promising rows, to get the scores to beat."""
        m, groups = self.heads.shape
        wanted = _SEEDS * self.top
        if groups < 2 * wanted:
            flat = torch.from_numpy(self.groups.reshape(m, -1))
            places = flat.topk(min(wanted, flat.shape[1])).indices.numpy()
        else:
            promise = self.bound.at(np.arange(m)[:, None]).of_rows(
                self.row_kappa[::SUB][None], self._clipped(self.heads * self.scale[:, None])
            )  # as if its first row had the highest cosine of the group
            group = np.argpartition(promise, -wanted, axis=1)[:, -wanted:]
            inside = np.take_along_axis(self.groups, group[:, :, None], 1).argmax(2)
            places = group * SUB + inside
        self._score(np.repeat(np.arange(m), places.shape[1]), places.ravel())

    def _survivors(self) -> Iterator[tuple[Places, Places]]:
        """Pairs of probes and rows that may be among the best, a part at a time."""
        heads = np.maximum.reduceat(self.heads, self.starts, axis=1) * self.scale[:, None]  # (m, b)
        highest = self._clipped(heads + self.slack)
        whole = self.bound.at(np.arange(len(self.mu))[:, None])
        probe, bin_ = np.nonzero(whole.of_bins(self.ends, highest) >= self.beat[:, None])
        needed = np.full(highest.shape, np.inf)  # cosine of a row, as the codes give it
        needed[probe, bin_] = (
            self.bound.at(probe).cosines(self.ends.at(bin_), highest[probe, bin_], self.beat[probe])
            - self.slack[probe, bin_]
        )
        needed /= self.scale[:, None]
        probe, group = np.nonzero(self.heads > needed[:, self.bin_of])
        for start in range(0, len(probe), _GROUPS):
            p, g = probe[start : start + _GROUPS], group[start : start + _GROUPS]
            bins = self.bin_of[g]
            cosines = self.groups[p, g]  # (pairs, 256)
            pair, inside = np.nonzero(cosines > needed[p, bins][:, None])
            place, p, bins = g[pair] * SUB + inside, p[pair], bins[pair]
            upper = self._clipped(cosines[pair, inside] * self.scale[p] + self.slack[p, bins])
            reached = self.bound.at(p).of_rows(self.row_kappa[place], upper)
            kept = reached >= self.beat[p]
            yield p[kept], place[kept]

    def _score(self, probes: Places, places: Places) -> None:
        """Score pairs in float64, each pair once, and keep the best of each probe."""
        rows = self.row[places]
        pairs = zip(probes.tolist(), rows.tolist())
        fresh = np.array([row > 0 and row not in self.scored[p] for p, row in pairs], bool)
        probes, rows = probes[fresh], rows[fresh]
        for start in range(0, len(rows), _PAIRS):
            self._score_some(probes[start : start + _PAIRS], rows[start : start + _PAIRS])

    def _score_some(self, probes: Places, rows: Places) -> None:
        people = self.store.people(np.unique(rows))
        at = np.searchsorted(people.rows, rows)
        there = at < len(people.rows)
        there[there] = people.rows[at[there]] == rows[there]
        probes, at = probes[there], at[there]
        scores, cosines = score(
            self.mu[probes], self.kappa[probes], people.mu[at], people.kappa[at], self.radius
        )
        good = scores >= self.beat[probes]
        found: dict[int, list[Hit]] = {}
        for p, i, value, cosine in zip(*(one[good].tolist() for one in (probes, at, scores, cosines))):
            hit = Hit(
                -value, people.ids[i], people.names[i], cosine, float(people.kappa[i]), people.images[i]
            )
            found.setdefault(p, []).append(hit)
        for p, row in zip(probes.tolist(), people.rows[at].tolist()):
            self.scored[p].add(row)
        for p, hits in found.items():
            self.best[p] = heapq.nsmallest(self.top, self.best[p] + hits)
            if len(self.best[p]) == self.top:
                self.beat[p] = -self.best[p][-1].negative_score

    def _clipped(self, cosines: NDArray[Any]) -> Array:
        return np.clip(cosines.astype(np.float64), -1.0, 1.0)


def score(
    mu: NDArray[np.float32], kappa: Array, theirs: NDArray[np.float32], their_kappa: Array, radius: float
) -> tuple[Array, Array]:
    """(n,) mutual likelihood scores and cosines of n pairs, in float64."""
    ours, other = torch.from_numpy(mu).double(), torch.from_numpy(theirs).double()
    scores = mutual_likelihood_score(
        ours, torch.from_numpy(kappa), other, torch.from_numpy(their_kappa), radius=radius
    )
    return scores.numpy(), (ours * other).sum(1).clamp(-1, 1).numpy()


MIN_APPROXIMATE = 20_000  # templates; with fewer the exact search is as fast
_NEAR = 256  # minimum number of candidates of an approximate search

Limits = tuple[Limit, Limit]
Near = Callable[[list[float], int, int], list[int]]


class Finder:
    """Searches a gallery.

    Args:
        index: of the gallery.
        store: the gallery.
        radius: r of the score.
        calibration: for likelihood ratios.
        near: asks a server for rows with high cosines; None if there is no server.
    """

    def __init__(
        self, index: Index, store: Store, radius: float, calibration: Calibration | None, near: Near | None
    ) -> None:
        self._index, self._store, self._near = index, store, near
        self._radius, self._calibration = radius, calibration

    def find(self, mu: NDArray[np.float32], kappa: float, top: int, exact: bool = True) -> Hits:
        """The best for one probe."""
        if exact or self._near is None or len(self._index) < MIN_APPROXIMATE:
            return self.find_all(mu[None], np.array([kappa]), top)[0]
        count = _NEAR + top
        people = self._store.people(np.unique(self._near(mu.tolist(), count, 2 * count)))
        n = len(people.rows)
        scores, cosines = score(
            np.broadcast_to(mu, (n, len(mu))).copy(), np.full(n, kappa), people.mu, people.kappa, self._radius
        )
        columns = (-scores).tolist(), people.ids, people.names, cosines.tolist(), people.kappa.tolist()
        return Hits(sorted(map(Hit, *columns, people.images))[:top], n)

    def find_all(self, mu: NDArray[np.float32], kappa: NDArray[Any], top: int) -> list[Hits]:
        """The best for each probe, exactly."""
        return search(self._index, self._store, mu, kappa, top, self._radius)

    def candidates(self, hits: Hits, limits: Limits | None = None) -> tuple[Candidate, ...]:
        """With thresholds and likelihood ratios if they are known."""
        return tuple(self._candidate(hit, limits) for hit in hits.best)

    def limits_of(self, hits: Hits, limits: Limits) -> list[Limit]:
        """The limit of each hit: templates of several images have another one."""
        return [limits[int(hit.images > 1)] for hit in hits.best]

    def _candidate(self, hit: Hit, limits: Limits | None) -> Candidate:
        several, value = hit.images > 1, -hit.negative_score
        limit = None if limits is None else limits[int(several)]
        thresholds = (None, None) if limit is None else (limit.accept, limit.reject)
        llr = self._llr(value, several)
        return Candidate(hit.identity, hit.id, value, hit.cosine, hit.kappa, llr, *thresholds)

    def _llr(self, value: float, several: bool) -> float | None:
        known = self._calibration
        if known is None or (name := known.best_score(several, evidence=False)) not in known.likelihood:
            return None
        return float(known.llr(name, value, self._radius))

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
from spherecf.gallery.identification import Candidate, Limit, weigh
from spherecf.gallery.index import SUB, Damaged, Index, quantise
from spherecf.gallery.store import People, Store
from spherecf.scoring import mutual_likelihood_score

_CELLS = 1 << 25  # maximum number of cosines in memory: 128 MiB
_SEEDS = 2  # this many times k rows are scored first, to get a lower bound on the k-th best score
_NEAREST = 256  # groups of rows with the highest cosines, among which these are chosen
_GROUPS = 4096  # groups of rows examined at a time
_PAIRS = 4096  # pairs scored at a time

Places = NDArray[np.int64]  # positions in the index


@dataclass(frozen=True, order=True)
class Hit:
    """A template and its score. Hits sort by descending score, then by id."""

    negative_score: float
    id: str
    identity: str
    cosine: float
    kappa: float
    images: int


@dataclass(frozen=True, eq=False)
class Hits:
    """The best templates for a probe, best first."""

    best: Sequence[Hit]
    scored: int
    """Number of templates that were scored. No other template has a higher score."""


def search(
    index: Index, store: Store, mu: NDArray[np.float32], kappa: NDArray[Any], top: int, radius: float
) -> list[Hits]:
    """Find the ``top`` best templates of each probe. The result is the same as if every template were scored.

    1. Products of 8-bit codes give all cosines, up to an error with a known bound (see `Index`). d 2^-24 is
       added to the bound for the rounding of products and lengths in float32.
    2. The highest cosine of each group of 256 rows is computed. The rows with the most promising highest
       cosines are scored first. Every other template among the top k must reach the k-th best of these
       scores.
    3. `Bound.of_bins` at the highest cosine of a bin rules out most bins as a whole. For the remaining bins,
       `Bound.cosines` gives the cosine that a row must reach, and `Bound.of_rows` tests it with its own
       kappa.
    4. The remaining rows are scored in float64, with the directions in the gallery.

    A probe with kappa 0 has the same score log C_d(0) - d log r with every template, so its best templates
    are the first by id.

    Args:
        index: index of the gallery.
        store: store of the gallery.
        mu: (n, dim) unit directions of the probes.
        kappa: (n,) concentrations of the probes.
        top: number k of templates per probe.
        radius: radius r of the score.
    """
    index.settle()
    if not index.parts:
        return [Hits((), 0) for _ in mu]
    kappa, results = np.asarray(kappa, np.float64), dict[int, Hits]()
    if len(uniform := np.flatnonzero(kappa == 0)):
        first = store.people(store.first_rows(top))
        results = {probe: _best_of(first, mu[probe], 0.0, top, radius) for probe in uniform.tolist()}
    probes = np.flatnonzero(kappa)
    batch_size = max(1, _CELLS // sum(part.size for part in index.parts))
    for start in range(0, len(probes), batch_size):
        batch = probes[start : start + batch_size]
        try:
            tile = _Tile(index, store, mu[batch], kappa[batch], top, radius)
        except Damaged:
            index.rebuild()
            index.settle()
            tile = _Tile(index, store, mu[batch], kappa[batch], top, radius)
        results |= zip(batch.tolist(), tile.hits())
    return [results[probe] for probe in range(len(mu))]


class _Tile:
    """Searches m probes among all N rows, which form S groups and b bins."""

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
        # (m, S, 256) cosines and (m, S) highest cosines, not yet multiplied by the scale of the probe
        self.groups, self.heads = groups.numpy(), groups.amax(2).numpy()
        self.scored: list[set[int]] = [set() for _ in mu]
        self.best: list[list[Hit]] = [[] for _ in mu]
        self.score_to_beat = np.full(len(mu), -np.inf)  # k-th best score of each probe so far
        columns = index.columns
        self.row, self.row_kappa, self.ends = columns.row, columns.kappa, columns.ends
        self.starts = np.cumsum(columns.groups) - columns.groups  # (b,) first group of each bin
        self.bin_of = np.repeat(np.arange(len(self.starts)), columns.groups)  # (S,)
        rounding = (self.mu.shape[1] + 8) * 2.0**-24 * 1.01
        probe_error = error[:, None].astype(np.float64)
        self.slack = probe_error + (1 + probe_error) * columns.error[None] + rounding  # (m, b)

    def hits(self) -> list[Hits]:
        """The best templates of each probe."""
        self._score_seeds()
        for probes, places in self._remaining_pairs():
            self._score(probes, places)
        return [Hits(best, len(scored)) for best, scored in zip(self.best, self.scored)]

    def _score_seeds(self) -> None:
        """Score a few promising rows, to get a score to beat for each probe."""
        m, groups = self.heads.shape
        n_seeds = _SEEDS * self.top
        if groups < 2 * n_seeds:
            flat = torch.from_numpy(self.groups.reshape(m, -1))
            places = flat.topk(min(n_seeds, flat.shape[1])).indices.numpy()
        else:
            n_nearest = min(groups, max(_NEAREST, 2 * n_seeds))
            nearest = np.argpartition(self.heads, -n_nearest, axis=1)[:, -n_nearest:]  # groups
            # estimate for a group: the score if its first row had its highest cosine
            estimate = self.bound.at(np.arange(m)[:, None]).of_rows(
                self.row_kappa[::SUB][nearest],
                self._clipped(np.take_along_axis(self.heads, nearest, 1) * self.scale[:, None]),
            )
            best = np.argpartition(estimate, -n_seeds, axis=1)[:, -n_seeds:]
            group = np.take_along_axis(nearest, best, 1)
            inside = np.take_along_axis(self.groups, group[:, :, None], 1).argmax(2)
            places = group * SUB + inside
        self._score(np.repeat(np.arange(m), places.shape[1]), places.ravel())

    def _remaining_pairs(self) -> Iterator[tuple[Places, Places]]:
        """Yield batches of (probe, place) pairs that the bounds cannot rule out."""
        heads = np.maximum.reduceat(self.heads, self.starts, axis=1) * self.scale[:, None]  # (m, b)
        highest = self._clipped(heads + self.slack)
        all_probes = self.bound.at(np.arange(len(self.mu))[:, None])
        probe, bin_ = np.nonzero(all_probes.of_bins(self.ends, highest) >= self.score_to_beat[:, None])
        min_cosine = np.full(highest.shape, np.inf)  # cosine of the codes that a row of the bin must reach
        min_cosine[probe, bin_] = (
            self.bound.at(probe).cosines(self.ends.at(bin_), highest[probe, bin_], self.score_to_beat[probe])
            - self.slack[probe, bin_]
        )
        min_cosine /= self.scale[:, None]
        probe, group = np.nonzero(self.heads > min_cosine[:, self.bin_of])
        for start in range(0, len(probe), _GROUPS):
            p, g = probe[start : start + _GROUPS], group[start : start + _GROUPS]
            bins = self.bin_of[g]
            cosines = self.groups[p, g]  # (pairs, 256)
            pair, inside = np.nonzero(cosines > min_cosine[p, bins][:, None])
            place, p, bins = g[pair] * SUB + inside, p[pair], bins[pair]
            max_cosine = self._clipped(cosines[pair, inside] * self.scale[p] + self.slack[p, bins])
            max_score = self.bound.at(p).of_rows(self.row_kappa[place], max_cosine)
            possible = max_score >= self.score_to_beat[p]
            yield p[possible], place[possible]

    def _score(self, probes: Places, places: Places) -> None:
        """Score pairs in float64, each pair once, and keep the best of each probe."""
        rows = self.row[places]
        pairs = zip(probes.tolist(), rows.tolist())
        unscored = np.array([row > 0 and row not in self.scored[p] for p, row in pairs], bool)
        probes, rows = probes[unscored], rows[unscored]
        for start in range(0, len(rows), _PAIRS):
            self._score_batch(probes[start : start + _PAIRS], rows[start : start + _PAIRS])

    def _score_batch(self, probes: Places, rows: Places) -> None:
        people = self.store.people(np.unique(rows))
        index = np.searchsorted(people.rows, rows)  # row in `people`
        exists = index < len(people.rows)
        exists[exists] = people.rows[index[exists]] == rows[exists]
        probes, index = probes[exists], index[exists]
        scores, cosines = score(
            self.mu[probes], self.kappa[probes], people.mu[index], people.kappa[index], self.radius
        )
        good = scores >= self.score_to_beat[probes]
        new_hits: dict[int, list[Hit]] = {}
        columns = (column[good].tolist() for column in (probes, index, scores, cosines))
        for p, i, value, cosine in zip(*columns):
            hit = Hit(
                -value, people.ids[i], people.names[i], cosine, float(people.kappa[i]), people.images[i]
            )
            new_hits.setdefault(p, []).append(hit)
        for p, row in zip(probes.tolist(), people.rows[index].tolist()):
            self.scored[p].add(row)
        for p, hits in new_hits.items():
            self.best[p] = heapq.nsmallest(self.top, self.best[p] + hits)
            if len(self.best[p]) == self.top:
                self.score_to_beat[p] = -self.best[p][-1].negative_score

    def _clipped(self, cosines: NDArray[Any]) -> Array:
        return np.clip(cosines.astype(np.float64), -1.0, 1.0)


def score(
    mu_a: NDArray[np.float32], kappa_a: Array, mu_b: NDArray[np.float32], kappa_b: Array, radius: float
) -> tuple[Array, Array]:
    """(n,) mutual likelihood scores and cosines of n pairs, in float64."""
    # If kappa_a is 0, kappa_b cancels in the score; without it, ties have no rounding noise.
    kappa_b = np.where(kappa_a == 0, 0.0, kappa_b)
    a, b = torch.from_numpy(mu_a).double(), torch.from_numpy(mu_b).double()
    scores = mutual_likelihood_score(
        a, torch.from_numpy(kappa_a), b, torch.from_numpy(kappa_b), radius=radius
    )
    return scores.numpy(), (a * b).sum(1).clamp(-1, 1).numpy()


def _best_of(people: People, mu: NDArray[np.float32], kappa: float, top: int, radius: float) -> Hits:
    """The best of a few templates for one probe, by scoring all of them."""
    n = len(people.rows)
    scores, cosines = score(np.tile(mu, (n, 1)), np.full(n, kappa), people.mu, people.kappa, radius)
    columns = (-scores).tolist(), people.ids, people.names, cosines.tolist(), people.kappa.tolist()
    return Hits(heapq.nsmallest(top, map(Hit, *columns, people.images)), n)


MIN_APPROXIMATE = 20_000  # templates; below this number, the exact search is as fast
_MIN_APPROXIMATE_CANDIDATES = 256

Limits = tuple[Limit, Limit]
ServerSearch = Callable[[list[float], int, int], list[int]]


class Finder:
    """Searches a gallery.

    Args:
        index: index of the gallery.
        store: store of the gallery.
        radius: radius r of the score.
        calibration: calibration for likelihood ratios.
        server_search: asks a server for rows with high cosines; None if the gallery is not on a server.
    """

    def __init__(
        self,
        index: Index,
        store: Store,
        radius: float,
        calibration: Calibration | None,
        server_search: ServerSearch | None,
    ) -> None:
        self._index, self._store, self._server_search = index, store, server_search
        self._radius, self._calibration = radius, calibration

    def find(self, mu: NDArray[np.float32], kappa: float, top: int, exact: bool = True) -> Hits:
        """The best templates for a probe."""
        if exact or self._server_search is None or len(self._index) < MIN_APPROXIMATE:
            return self.find_all(mu[None], np.array([kappa]), top)[0]
        count = _MIN_APPROXIMATE_CANDIDATES + top
        people = self._store.people(np.unique(self._server_search(mu.tolist(), count, 2 * count)))
        return _best_of(people, mu, kappa, top, self._radius)

    def find_all(self, mu: NDArray[np.float32], kappa: NDArray[Any], top: int) -> list[Hits]:
        """The best templates for each probe, exactly."""
        return search(self._index, self._store, mu, kappa, top, self._radius)

    def candidates(self, hits: Hits, limits: Limits | None = None) -> tuple[Candidate, ...]:
        """Hits as candidates, with thresholds and likelihood ratios if available."""
        return tuple(self._candidate(hit, limits) for hit in hits.best)

    def weighed(
        self, hits: Hits, limits: Limits | None, kappa: float
    ) -> tuple[tuple[Candidate, ...], list[Limit] | None]:
        """Hits as candidates with their evidence, and their limits; see `weigh`."""
        candidates = self.candidates(hits, limits)
        if limits is None:
            return candidates, None
        hit_limits = [limits[int(hit.images > 1)] for hit in hits.best]
        return weigh(candidates, hit_limits, self._calibration, kappa), hit_limits

    def _candidate(self, hit: Hit, limits: Limits | None) -> Candidate:
        pooled, value = hit.images > 1, -hit.negative_score
        limit = None if limits is None else limits[int(pooled)]
        thresholds = (None, None) if limit is None else (limit.accept, limit.reject)
        llr = self._llr(value, pooled)
        return Candidate(hit.identity, hit.id, value, hit.cosine, hit.kappa, llr, *thresholds)

    def _llr(self, value: float, pooled: bool) -> float | None:
        calibration = self._calibration
        if calibration is None:
            return None
        name = calibration.best_score(pooled, evidence=False)
        if name not in calibration.likelihood:
            return None
        return float(calibration.llr(name, value, self._radius))

"""From a probe to candidates: the search, exact or approximate, and what the calibration says of scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import PAIR_SCORE, TEMPLATE_SCORE, Calibration
from spherecf.gallery._approximate import LEAST, Approximate
from spherecf.gallery._identification import Candidate
from spherecf.gallery._limits import Limit
from spherecf.gallery._mirror import Mirror
from spherecf.gallery._search import Hits, rank, search

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

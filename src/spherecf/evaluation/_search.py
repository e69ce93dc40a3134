"""Every probe against a whole gallery, block by block: the best score, the mate's score and its rank."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.evaluation._template_scores import score_tiles
from spherecf.scoring import Templates

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Found:
    """What searching a gallery gave, one entry per probe."""

    best: Array
    """(p,) highest score of any gallery template."""
    own: Array
    """(p,) score of the mate; -inf where the gallery lacks it."""
    rank: Array
    """(p,) place of the mate, 1 = first; 0 where the gallery lacks it. Ties count against the mate."""

    @property
    def mated(self) -> NDArray[np.bool_]:
        """(p,) whether the gallery has the probe's subject."""
        return np.asarray(self.rank > 0)

    def identified(self, max_rank: int) -> NDArray[np.float32]:
        """(mated,) score of the mate where its rank is good enough, else -inf."""
        scores: NDArray[np.float32] = np.where(self.rank <= max_rank, self.own, -np.inf)[self.mated]
        return scores


def search(
    probes: Templates, gallery: Templates, mate: Array, score: str, radius: float, threads: int | None = None
) -> Found:
    """Search every probe; ``mate`` (p,) is the position of its mate in the gallery, -1 if there is none."""
    best, own = np.empty(len(probes), np.float32), np.full(len(probes), -np.inf, np.float32)
    rank = np.zeros(len(probes), np.int64)
    for rows, tile in score_tiles(probes, gallery, score, radius, threads):
        best[rows] = tile.max(1)
        known = np.flatnonzero(mate[rows] >= 0)
        scores = tile[known, mate[rows][known]]
        at = rows.start + known
        own[at] = scores
        rank[at] = (tile[known] >= scores[:, None]).sum(1)  # the mate itself is one of them
    return Found(best, own, rank)

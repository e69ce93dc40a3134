"""Candidates without looking at everybody: an inverted file over the directions, eight bits a number."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.gallery._embedded import missing
from spherecf.gallery._mirror import Mirror

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

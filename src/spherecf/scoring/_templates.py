"""Templates: many images of one person, of several media, as one distribution each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf._directions import SCORE_TOLERANCE, as_array, check_directions, check_kappa
from spherecf.errors import InputError

Array = NDArray[Any]

_LOOKUPS = 1 << 15  # ids looked up at once


@dataclass(frozen=True, eq=False)
class Templates:
    """One von Mises-Fisher distribution per template, made by `pool_templates`.

    Raises:
        InputError: columns of other lengths, directions that are not of unit length (as in `cosine_score`),
            kappas that are NaN, negative or infinite, precisions that are NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from spherecf.scoring import pool_templates
        >>> t = pool_templates(np.eye(3, dtype=np.float32), np.ones(3), [8, 8, 5])
        >>> t.ids.tolist(), t.images.tolist(), t.positions([8, 5, 8]).tolist(), len(t.select([0]))
        ([5, 8], [1, 2], [1, 0, 1], 1)
    """

    ids: NDArray[np.int64]
    """(t,) ascending, unique."""
    mu: NDArray[np.float32]
    """(t, dim) unit directions."""
    kappa: NDArray[np.float32]
    """(t,) concentration, length of the sum over media of the mean kappa_i mu_i; >= 0."""
    images: NDArray[np.int64]
    """(t,) how many images."""
    media: NDArray[np.int64]
    """(t,) how many media."""
    log_precision: NDArray[np.float32] | None = None
    """(t, dim) or (t, 1), of Gaussian embeddings only."""

    def __post_init__(self) -> None:
        for name, dtype in (("ids", None), ("mu", np.float32), ("kappa", np.float32)):
            object.__setattr__(self, name, as_array(getattr(self, name), name, dtype))
        count = len(self)
        if self.mu.ndim != 2 or self.mu.shape[0] != count:
            raise InputError(f"templates: expected mu ({count}, dim) like ids, got {self.mu.shape}")
        for name in ("ids", "kappa", "images", "media"):
            if np.shape(getattr(self, name)) != (count,):
                raise InputError(
                    f"templates: expected {name} ({count},), got {np.shape(getattr(self, name))}"
                )
        check_kappa(self.kappa, "templates: kappa")
        check_directions(self.mu, "templates: mu", SCORE_TOLERANCE, keys=self.ids)
        self._check_precision()

    def _check_precision(self) -> None:
        if self.log_precision is None:
            return
        if self.log_precision.shape not in (self.mu.shape, (len(self), 1)):
            raise InputError(
                f"templates: expected log_precision {self.mu.shape} or ({len(self)}, 1), got "
                f"{self.log_precision.shape}"
            )
        bad = np.flatnonzero(~np.isfinite(self.log_precision).all(1))
        if bad.size:
            raise InputError(
                f"templates: {bad.size} of {len(self)} have precisions that are NaN or infinite, first "
                f"template {self.ids[bad[0]]}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Dimension d of the directions."""
        return int(self.mu.shape[1])

    def positions(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Position of each template id, in the order asked.

        Raises:
            InputError: ids without a template, counted, the first ones named.
        """
        asked = np.asarray(ids)
        if asked.dtype.kind not in "iu" and asked.size:
            raise InputError(f"template ids: expected integers, got {asked.dtype}")
        places = np.empty(asked.shape, np.int64)
        unknown: list[Array] = []
        find = _finder(self.ids, asked.size)
        flat, out = asked.reshape(-1), places.reshape(-1)
        for start in range(0, flat.size, _LOOKUPS):
            block = slice(start, start + _LOOKUPS)
            out[block], known = find(flat[block].astype(np.int64, copy=False))
            if not known.all():
                unknown.append(flat[block][~known])
        if unknown:
            entries = np.concatenate(unknown)
            names = np.unique(entries)
            raise InputError(
                f"{names.size} templates have no image ({entries.size} of {asked.size} entries name them), "
                f"first {', '.join(map(str, names[:5]))}{', ...' if names.size > 5 else ''}; "
                "remove them from the protocol's list or embed their images"
            )
        return places

    def select(self, positions: ArrayLike) -> "Templates":
        """The templates at these positions, ascending, each once (a copy)."""
        at = np.unique(np.asarray(positions, np.int64))
        precision = None if self.log_precision is None else self.log_precision[at]
        return Templates(
            self.ids[at], self.mu[at], self.kappa[at], self.images[at], self.media[at], precision
        )


def _finder(ids: Array, lookups: int) -> Callable[[Array], tuple[Array, Array]]:
    """Maps ids to (positions, known): by a table where ids lie close together, else by bisection."""
    low, high = (int(ids[0]), int(ids[-1])) if ids.size else (0, 0)
    if not ids.size or high - low > 4 * (ids.size + lookups):

        def search(asked: Array) -> tuple[Array, Array]:
            place = np.searchsorted(ids, asked)
            known = place < ids.size
            known[known] = ids[place[known]] == asked[known]
            return place, known

        return search
    table = np.full(high - low + 3, -1, np.int32)  # one more at each end, for what lies beyond
    table[ids - low + 1] = np.arange(ids.size)

    def look(asked: Array) -> tuple[Array, Array]:
        place = table.take(asked - (low - 1), mode="clip")
        return place, place >= 0

    return look

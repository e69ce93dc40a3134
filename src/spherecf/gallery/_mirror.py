"""The templates of a gallery in memory, ordered by kappa so that a search can rule out whole stretches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.gallery._bound import Stretches

_BUCKET = 4096  # templates of one stretch of kappa
_TAIL = 4096  # newcomers that wait behind the ordered ones before all are ordered anew

_COLUMNS = {"key": "U32", "kappa": "f4", "images": "i4", "media": "i4", "alive": "?"}


@dataclass(frozen=True, eq=False)
class Buckets:
    """Stretches of the mirror and the kappas in each."""

    starts: NDArray[np.int64]
    """(b,) first row of each; each ends where the next begins."""
    stretches: Stretches
    """The kappas in each."""


class Mirror:
    """Keys, names, directions and concentrations; newcomers go to the end, and are ordered now and then.

    Example:
        >>> mirror = Mirror(3)
        >>> mirror.extend(["a", "b"], ["Ann", "Bob"], np.eye(3, dtype=np.float32)[:2], [7, 3], [1, 1], [1, 1])
        >>> len(mirror), mirror.names[mirror.find("b")], mirror.kappa.tolist()
        (2, 'Bob', [7.0, 3.0])
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._mu = np.empty((0, dim), np.float32)
        self._columns = {name: np.empty(0, kind) for name, kind in _COLUMNS.items()}
        self.names: list[str] = []
        self._place: dict[str, int] = {}
        self._ordered, self._used = 0, 0
        self._buckets: Buckets | None = None
        self.changes = 0

    def __len__(self) -> int:
        return len(self._place)

    @property
    def mu(self) -> NDArray[np.float32]:
        """(rows, dim), those that were removed among them, as zeros."""
        return self._mu[: self._used]

    @property
    def kappa(self) -> NDArray[np.float32]:
        """(rows,)."""
        return self._column("kappa")

    @property
    def alive(self) -> NDArray[np.bool_]:
        """(rows,) false where a template was removed."""
        return self._column("alive")

    @property
    def images(self) -> NDArray[np.int32]:
        """(rows,) images behind each."""
        return self._column("images")

    @property
    def media(self) -> NDArray[np.int32]:
        """(rows,) media behind each."""
        return self._column("media")

    @property
    def keys(self) -> NDArray[Any]:
        """(rows,) keys, as strings."""
        return self._column("key")

    def find(self, key: str) -> int | None:
        """Row of a key."""
        return self._place.get(key)

    def extend(
        self, keys: Sequence[str], names: Sequence[str], mu: NDArray[np.float32], kappa: Any, images: Any,
        media: Any,
    ) -> None:  # fmt: skip
        """Append templates whose keys are new."""
        first, self._used = self._used, self._used + len(keys)
        self._grow()
        self._mu[first : self._used] = mu
        for name, values in zip(_COLUMNS, (keys, kappa, images, media, True)):
            self._columns[name][first : self._used] = values
        self.names.extend(names)
        self._place.update(zip(keys, range(first, self._used)))
        self._buckets = None
        self.changes += 1

    def put(
        self, key: str, name: str, mu: NDArray[np.float32], kappa: float, images: int, media: int
    ) -> None:
        """Append a template, in the place of the one that had its key."""
        self.drop(key)
        self.extend([key], [name], mu[None], [kappa], [images], [media])

    def drop(self, key: str) -> bool:
        """Remove a template, its direction from memory too; False if there is none."""
        row = self._place.pop(key, None)
        if row is None:
            return False
        self._mu[row] = 0
        self.names[row] = ""
        self._columns["alive"][row] = False
        self.changes += 1
        return True

    def buckets(self) -> Buckets:
        """The stretches; orders the rows by kappa first if many are new."""
        if self._buckets is None:
            if self._used - self._ordered > max(_TAIL, self._ordered // 16) or not self._ordered:
                self._order()
            ordered = np.arange(0, self._ordered, _BUCKET)
            starts = np.append(ordered, np.arange(self._ordered, self._used, _BUCKET))
            kappa = self.kappa.astype(np.float64)
            low, high = np.minimum.reduceat(kappa, starts), np.maximum.reduceat(kappa, starts)
            self._buckets = Buckets(starts, Stretches.of(low, high, self.dim))
        return self._buckets

    def _order(self) -> None:
        alive = np.flatnonzero(self.alive)
        order = alive[np.argsort(self.kappa[alive], kind="stable")]
        self._mu = self._mu[order]
        self._columns = {name: column[order] for name, column in self._columns.items()}
        self.names = [self.names[row] for row in order]
        self._place = {key: row for row, key in enumerate(self._columns["key"].tolist())}
        self._ordered = self._used = len(order)

    def _grow(self) -> None:
        if self._used > len(self._mu):
            room = max(self._used, len(self._mu) * 5 // 4, 64)
            self._mu = _longer(self._mu, room)
            self._columns = {name: _longer(column, room) for name, column in self._columns.items()}

    def _column(self, name: str) -> NDArray[Any]:
        return self._columns[name][: self._used]


def _longer(column: NDArray[Any], room: int) -> NDArray[Any]:
    longer = np.empty((room, *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    return longer

"""Images as they are shown in training: each row of a source in a view that somebody chooses."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.data import ImageSource, Keys, View


class Shown(ImageSource):
    """Rows that are views of another source's images: decoded and shown by whoever reads them, in threads.

    Args:
        source: the images.
        rows: how many rows there are.
        choose: row to (image, view); must be a function of the row alone.
    """

    def __init__(self, source: ImageSource, rows: int, choose: Callable[[int], tuple[int, View]]) -> None:
        self.source, self._choose, self._rows = source, choose, rows
        # The parent's labels serve; a row's own are of no use here, and would be an array of all rows.
        super().__init__(source.name, np.zeros(0, np.int64), [])

    def __len__(self) -> int:
        return self._rows

    def image_of(self, row: int) -> int:
        """The image that a row shows."""
        return self._choose(row)[0]

    @property
    def keys(self) -> Sequence[str]:
        return _ShownKeys(self)

    def read(self, index: int) -> bytes:
        return self.source.read(self.image_of(index))

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return np.zeros(0, np.int64)

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        image, view = self._choose(index)
        return view(self.source.image(image, size), self.source.keys[image]).image


class _ShownKeys(Keys):
    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    def __len__(self) -> int:
        return len(self._shown)

    def _one(self, row: int) -> str:
        return self._shown.source.keys[self._shown.image_of(row)]

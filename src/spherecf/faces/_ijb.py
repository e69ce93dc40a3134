"""The loose crops of IJB-B and IJB-C, aligned by the landmarks of the meta files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.data import IjbMeta, ImageError, ImageSource, decode_image, encode_image
from spherecf.errors import InputError
from spherecf.faces._align import align


class IjbFaces(ImageSource):
    """Every image of a template set once, aligned by its five landmarks; keys are its file names.

    No detector runs, so the crops are those of the published numbers. Whom an image shows is for the template
    protocols to say: labels are -1.

    Args:
        folder: the pictures, ``1.jpg`` and so on, or the folder above its ``loose_crop``.
        meta: from `spherecf.data.read_ijb`, with landmarks.
        size: side of the crops in pixels.

    Raises:
        InputError: the set has no landmarks.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.faces import ARCFACE_POINTS
        >>> one = np.array([1])
        >>> meta = IjbMeta("toy", ["s1/1.pgm"], one, one, points=np.float32(ARCFACE_POINTS[None]))
        >>> IjbFaces(orl_faces().root, meta).image(0).shape
        (112, 112, 3)
    """

    def __init__(self, folder: str | Path, meta: IjbMeta, *, size: int = 112) -> None:
        if meta.points is None:
            raise InputError(
                f"{meta.name}: no landmarks; expected the file *_name_5pts_score.txt among the meta files"
            )
        first = {name: row for row, name in reversed(list(enumerate(meta.files)))}
        self._keys = list(dict.fromkeys(meta.files))
        self._points = meta.points[[first[key] for key in self._keys]]
        self.root, self.size = Path(folder), size
        if (self.root / "loose_crop").is_dir():
            self.root /= "loose_crop"
        super().__init__(meta.name, np.full(len(self._keys), -1, np.int64), [])

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def alignment(self) -> str:
        """What was done to the pictures, for the signature of results."""
        return f"arcface{self.size}+given-points"

    def read(self, index: int) -> bytes:
        """The aligned crop as PNG."""
        return encode_image(self.image(index))

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        where = self.where(index)
        if size not in (None, (self.size, self.size)):
            raise ImageError(where, f"expected a picture of {size}, crops are {self.size}x{self.size}.")
        try:
            data = (self.root / self._keys[index]).read_bytes()
        except OSError as error:
            raise ImageError(
                where, f"cannot read {self.root / self._keys[index]} ({error.strerror})."
            ) from error
        try:
            return align(decode_image(data, where), self._points[index], self.size)
        except InputError as error:
            raise ImageError(where, f"its landmarks are of no use: {error}") from error

    def sizes(self) -> Int64[np.ndarray, " n"]:
        """The most that a crop can take as PNG; the crops themselves are not known before they are made."""
        return np.full(len(self), 3 * self.size**2 + 8 * self.size + 1024, np.int64)

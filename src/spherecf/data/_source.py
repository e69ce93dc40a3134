"""What every reader is: a named list of encoded images with keys and identities."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.data._image import ImageError, decode_image
from spherecf.data._keys import PickedKeys
from spherecf.errors import FileFormatError, InputError

_SAMPLED = 1024  # images whose content goes into a fingerprint
_BLOCK = 65536  # keys hashed at once


class ImageSource(ABC):
    """A fixed, ordered set of encoded images. Reading is thread-safe and touches one image only.

    Attributes:
        name: a short name for messages and reports.
        keys: (n,) one unique, stable name per image, in POSIX style (``person/picture.jpg``): a list, or
            lazy `Keys` that are made when asked for.
        labels: (n,) index into ``identities``, -1 where the identity is unknown.
        identities: the names of the identities; some may have no image here (in a subset, for one).
        ignored: files that the reader saw and left out because they are not images.
        notes: what a user should know of how the set was read; empty if there is nothing.

    Example:
        >>> from spherecf.data import orl_faces
        >>> source = orl_faces().subset(range(8, 12))
        >>> len(source), source.labels.tolist(), source.image(0).shape
        (4, [0, 0, 1, 1], (112, 92, 3))
    """

    name: str
    labels: Int64[np.ndarray, " n"]
    identities: list[str]
    ignored: list[str]
    notes: list[str]

    def __init__(self, name: str, labels: Int64[np.ndarray, " n"], identities: Sequence[str]) -> None:
        self.name, self.labels, self.identities, self.ignored = name, labels, list(identities), []
        self.notes = []
        self._fingerprint = ""
        if len(labels) and not -1 <= labels.min() <= labels.max() < len(identities):
            raise InputError(
                f"{name}: labels must lie in -1..{len(identities) - 1}, got {labels.min()}..{labels.max()}"
            )

    @property
    @abstractmethod
    def keys(self) -> Sequence[str]:
        """One unique name per image."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image as stored.

        Raises:
            ImageError: it is gone, or its record is damaged.
        """

    @abstractmethod
    def sizes(self) -> Int64[np.ndarray, " n"]:
        """Bytes that each image takes where it is stored; known without reading the images."""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, images={len(self)}, identities={len(self.identities)})"

    def where(self, index: int) -> str:
        """What to call one image in a message: source and key."""
        return f"{self.name}:{self.keys[index]}"

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """The decoded image, RGB; see `decode_image` for what is refused."""
        data = self.read(index)
        try:
            return decode_image(data, size=size)
        except ImageError as error:  # named only now: a name for every image would cost 3 % of its decoding
            raise ImageError(self.where(index), error.problem, error.hint) from error

    def fingerprint(self) -> str:
        """Hex SHA-256 over all keys, labels and stored sizes, and over the content of 1,024 evenly spaced
        images.

        Reading all content of a large set would take minutes; this takes well under a second per million
        images. An image that cannot be read counts as such.
        """
        if not self._fingerprint:
            digest = hashlib.sha256(b"spherecf.data/1\0")
            for start in range(0, len(self), _BLOCK):
                keys = b"\0".join(map(os.fsencode, self.keys[start : start + _BLOCK]))
                digest.update(b"\0" + keys if start else keys)
            for column in (self.labels, self.sizes()):
                digest.update(np.ascontiguousarray(column, "<i8").data)
            for index in np.unique(np.linspace(0, len(self) - 1, min(len(self), _SAMPLED)).astype(int)):
                digest.update(hashlib.sha256(self._content(int(index))).digest())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _content(self, index: int) -> bytes:
        try:
            return self.read(index)
        except FileFormatError:
            return b"unreadable"

    def subset(self, indices: Iterable[int] | Int64[np.ndarray, " m"]) -> "ImageSource":
        """The images at ``indices``, in that order; labels keep their meaning.

        Raises:
            InputError: an index is out of range or occurs twice.
        """
        return Subset(self, np.fromiter(indices, np.int64))


class Subset(ImageSource):
    """Some images of another source, its ``parent``; made by `ImageSource.subset`.

    Example:
        >>> from spherecf.data import orl_faces
        >>> few = orl_faces().subset([3, 5])
        >>> few.keys[0], few.parent.name, few.indices.tolist()
        ('s1/3.pgm', 'orl', [3, 5])
    """

    def __init__(self, parent: ImageSource, indices: Int64[np.ndarray, " m"]) -> None:
        outside = indices[(indices < 0) | (indices >= len(parent))]
        if len(outside):
            raise InputError(f"{parent.name}: subset index {outside[0]} is outside 0..{len(parent) - 1}")
        if len(np.unique(indices)) < len(indices):
            raise InputError(f"{parent.name}: an index occurs twice in the subset; keys must stay unique")
        super().__init__(f"{parent.name}[{len(indices)}]", parent.labels[indices], parent.identities)
        self.parent, self.indices = parent, indices
        self._keys = PickedKeys(parent.keys, indices)

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def read(self, index: int) -> bytes:
        return self.parent.read(int(self.indices[index]))

    def where(self, index: int) -> str:
        return self.parent.where(int(self.indices[index]))

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        return self.parent.image(int(self.indices[index]), size)

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return np.asarray(self.parent.sizes()[self.indices])

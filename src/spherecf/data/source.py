"""The base of every reader, a named list of encoded images; and decoding in order, ahead of who asks."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.common.readers import Readers, empty
from spherecf.data.degradations import View
from spherecf.data.image import ImageError, decode_image
from spherecf.data.text import PickedKeys
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


OnError = Literal["raise", "skip"]


class Skipped(NamedTuple):
    """An image that was left out, and the reason."""

    key: str
    reason: str


class ImageBatch(NamedTuple):
    """Images of one size: the result for the rows requested.

    Attributes:
        rows: (b,) rows of the source, in the order asked, without the broken ones.
        images: (b, height, width, 3) RGB.
        encoded: (b,) as stored, or empty if not requested.
        skipped: the broken ones.
    """

    rows: Int64[np.ndarray, " b"]
    images: UInt8[np.ndarray, "b h w 3"]
    encoded: list[bytes]
    skipped: list[Skipped]


def iter_images(
    source: ImageSource,
    indices: Iterable[int] | Int64[np.ndarray, " n"] | None = None,
    *,
    batch: int = 64,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
    on_error: OnError = "raise",
    skipped: list[Skipped] | None = None,
    encoded: bool = False,
) -> Iterator[ImageBatch]:
    """Decode ``source[indices]`` in that order; at most ``workers + 2`` batches are in memory.

    Args:
        indices: rows to decode, in the order wanted; all by default.
        batch: images per batch. Skipped images make a batch shorter (`ImageBatch.rows` says which came);
            where all of a batch are skipped, there is none.
        size: (height, width) that every image must have; by default that of the first good one.
        workers: decoding threads, by default one per processor, at most 4.
        on_error: ``"raise"`` stops at the first bad image; ``"skip"`` appends it to ``skipped`` and goes on.
        skipped: the list that receives what was left out; required with ``"skip"``.
        encoded: give the bytes as stored as well.

    Raises:
        ImageError: with ``on_error="raise"``, the first image that is damaged or of another size.
        InputError: a parameter out of range.

    Example:
        >>> from spherecf.data import orl_faces
        >>> [batch.images.shape for batch in iter_images(orl_faces(), range(100))]
        [(64, 112, 92, 3), (36, 112, 92, 3)]
    """
    if on_error not in ("raise", "skip") or (on_error == "skip") != (skipped is not None):
        raise InputError(
            'on_error must be "raise", or "skip" together with a list that receives what is skipped'
        )
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    _threads(workers)
    return _iter_images(source, _rows(source, indices), batch, size, workers, on_error, skipped, encoded)


def _iter_images(
    source: ImageSource,
    rows: Int64[np.ndarray, " n"],
    batch: int,
    size: tuple[int, int] | None,
    workers: int | None,
    on_error: OnError,
    skipped: list[Skipped] | None,
    encoded: bool,
) -> Iterator[ImageBatch]:
    size = size or _first_size(source, rows, on_error)
    parts = (rows[start : start + batch] for start in range(0, len(rows), batch))
    batches = load_batches(source, parts, size=size, workers=workers, on_error=on_error, encoded=encoded)
    with closing(batches):  # stops the threads also when this raises or the consumer leaves early
        for loaded in batches:
            if skipped is not None:
                skipped.extend(loaded.skipped)
            if len(loaded.rows):
                yield loaded


def load_batches(
    source: ImageSource,
    batches: Iterable[Int64[np.ndarray, "_"] | Sequence[int]],
    *,
    size: tuple[int, int],
    workers: int | None = None,
    on_error: OnError = "skip",
    encoded: bool = False,
) -> Generator[ImageBatch, None, None]:
    """Decode the given batches of rows, of any lengths: one `ImageBatch` for each, in order, read ahead.

    A batch keeps its place also when some or all of it is broken; `ImageBatch.skipped` says what is missing.
    At most ``workers + 1`` batches wait. Close the generator (`contextlib.closing`) to stop early.

    Args:
        batches: rows of each batch; taken one by one, so that they may never end.
        size: (height, width) that every image must have.
        workers: decoding threads, by default one per processor, at most 4.
        on_error: ``"raise"`` stops at the first bad image.
        encoded: give the bytes as stored as well.

    Raises:
        ImageError: with ``on_error="raise"``, the first image that is damaged or of another size.
        InputError: a row that the source does not have, or fewer than one worker.

    Example:
        >>> from spherecf.data import orl_faces
        >>> loaded = load_batches(orl_faces(), [[5, 0, 3], [], [7]], size=(112, 92))
        >>> [batch.rows.tolist() for batch in loaded]
        [[5, 0, 3], [], [7]]
    """
    read = partial(load_batch, source, size, on_error=on_error, encoded=encoded)
    return Readers(read, threads=_threads(workers), name="decode")(batches)


class Shown(NamedTuple):
    """A batch of images, each seen through one of a few views.

    Attributes:
        rows: (b,) what the result calls them.
        images: (b,) rows of the source.
        views: that there are.
        view: (b,) index of each image's view.
    """

    rows: Int64[np.ndarray, " b"]
    images: Int64[np.ndarray, " b"]
    views: Sequence[View]
    view: Int64[np.ndarray, " b"]


def load_batch(
    source: ImageSource,
    size: tuple[int, int],
    wanted: Shown | Int64[np.ndarray, "_"] | Sequence[int],
    *,
    on_error: OnError = "skip",
    encoded: bool = False,
) -> ImageBatch:
    """Decode one batch of `load_batches`, for `Readers`; ``wanted`` may say how each image is shown."""
    shown = wanted if isinstance(wanted, Shown) else None
    rows = _rows(source, wanted.images if isinstance(wanted, Shown) else wanted)
    # Each picture is copied to its place while it is in the processor's cache; stacking them at the end, by
    # the consumer, costs a tenth of the decoding.
    images = empty((len(rows), *size, 3))
    good, skipped, stored = list[int](), list[Skipped](), list[bytes]()
    for index, row in enumerate(rows.tolist()):
        try:
            if encoded:
                data = source.read(row)
                image = decode_image(data, source.where(row), size)
                stored.append(data)
            else:
                image = source.image(row, size)
        except FileFormatError as error:
            if on_error == "raise":
                raise
            skipped.append(Skipped(source.keys[row], str(error)))
            continue
        if shown is not None:
            view = shown.views[shown.view[index]]
            # A key for every image would cost 3 % of its decoding.
            image = view(image, source.keys[row] if view.degradation else "").image
        images[len(good)] = image
        good.append(index)
    rows = rows if shown is None else shown.rows
    return ImageBatch(rows[good] if skipped else rows, images[: len(good)], stored, skipped)


def batch_bytes(images: int, size: tuple[int, int]) -> int:
    """Bytes of the arrays of an `ImageBatch` of so many images, for the memory of `Readers`."""
    return images * (size[0] * size[1] * 3 + 8) + 4096


def _rows(
    source: ImageSource, indices: Iterable[int] | Int64[np.ndarray, " n"] | None
) -> Int64[np.ndarray, " n"]:
    if indices is None:
        return np.arange(len(source))
    rows = (
        indices.astype(np.int64, copy=False)
        if isinstance(indices, np.ndarray)
        else np.fromiter(indices, np.int64)
    )
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(source):
        raise InputError(
            f"{source.name}: rows must lie in 0..{len(source) - 1}, got {rows.min()}..{rows.max()}"
        )
    return rows


def _first_size(source: ImageSource, rows: Int64[np.ndarray, " n"], on_error: OnError) -> tuple[int, int]:
    for row in rows.tolist():
        try:
            height, width = source.image(row).shape[:2]
            return height, width
        except FileFormatError:
            if on_error == "raise":
                raise
    return 1, 1  # no good image: any size will do, and each is reported when its turn comes


def _threads(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    return workers or 0


def split_identities(
    source: ImageSource | Int64[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " held_out"]]:
    """(rows to train on, rows held out), where about ``fraction`` of the identities is held out entirely.

    At least one identity lands on each side. Rows without identity (label -1) are in neither: they could show
    anybody.

    Args:
        source: a source, or its labels.
        fraction: of the identities to hold out, 0 <= fraction < 1; 0 holds out nobody.
        seed: the same seed and identities give the same split.

    Raises:
        InputError: ``fraction`` is out of range, or fewer than two identities are there to split.

    Example:
        >>> train, held_out = split_identities(np.array([0, 0, 1, 1, 2, -1]), 0.3, seed=1)
        >>> len(train) + len(held_out)
        5
    """
    labels = source.labels if isinstance(source, ImageSource) else np.asarray(source)
    known = np.unique(labels[labels >= 0])
    if not 0 <= fraction < 1:
        raise InputError(f"fraction must be at least 0 and below 1, got {fraction}")
    if fraction > 0 and len(known) < 2:
        raise InputError(f"expected at least 2 identities to split, got {len(known)}")
    count = min(max(round(fraction * len(known)), 1), len(known) - 1) if fraction > 0 else 0
    chosen = np.random.default_rng(seed).permutation(known)[:count]
    held_out = np.isin(labels, chosen)
    return np.flatnonzero((labels >= 0) & ~held_out), np.flatnonzero(held_out)

"""The base class of all image readers, and decoding of batches in order, ahead of the consumer."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.common.arrays import row_numbers
from spherecf.common.readers import Readers, empty
from spherecf.data.degradations import View
from spherecf.data.image import ImageError, decode_image
from spherecf.data.text import PickedKeys
from spherecf.errors import FileFormatError, InputError

_SAMPLED = 1024  # images whose content enters a fingerprint
_BLOCK = 65536  # keys per hash update


class ImageSource(ABC):
    """A fixed, ordered set of encoded images. Reading is thread-safe, and reads one image only.

    Attributes:
        name: a short name for messages and reports.
        keys: (n,) one unique, stable name per image, in POSIX style (``person/image.jpg``): a list, or lazy
            `Keys` that are created on access.
        labels: (n,) index into ``identities``, -1 if the identity is unknown.
        identities: names of the identities; some may have no image here, e.g. in a subset.
        ignored: files that were skipped because they are not images.
        notes: what a user should know about how the set was read; may be empty.

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
                f"{name}: labels must be in -1..{len(identities) - 1}, got {labels.min()}..{labels.max()}"
            )

    @property
    @abstractmethod
    def keys(self) -> Sequence[str]:
        """One unique name per image."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image as stored.

        Raises:
            ImageError: the image is missing, or its record is damaged.
        """

    @abstractmethod
    def sizes(self) -> Int64[np.ndarray, " n"]:
        """Stored size of each image in bytes, found without reading the images."""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, images={len(self)}, identities={len(self.identities)})"

    def where(self, index: int) -> str:
        """The name of one image in messages: source and key."""
        return f"{self.name}:{self.keys[index]}"

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """The decoded image, RGB; `decode_image` lists what is rejected."""
        data = self.read(index)
        try:
            return decode_image(data, size=size)
        except ImageError as error:  # build the name only now: for every image it would cost 3 % of decoding
            raise ImageError(self.where(index), error.problem, error.hint) from error

    def fingerprint(self) -> str:
        """Hex SHA-256 over all keys, labels and stored sizes, and over the content of 1,024 evenly spaced
        images.

        Reading the whole content of a large set would take minutes; this takes well under a second per
        million images. An image that cannot be read enters the hash as unreadable.
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
        """The images at ``indices``, in that order; labels still refer to this source's ``identities``.

        Args:
            indices: 0 <= index < n, or a mask of n booleans.

        Raises:
            InputError: an index is out of range or occurs twice.
        """
        return Subset(self, row_numbers(indices, len(self), f"{self.name}: subset index"))


class Subset(ImageSource):
    """Selected images of another source, its ``parent``; created by `ImageSource.subset`.

    Example:
        >>> from spherecf.data import orl_faces
        >>> few = orl_faces().subset([3, 5])
        >>> few.keys[0], few.parent.name, few.indices.tolist()
        ('s1/3.pgm', 'orl', [3, 5])
    """

    def __init__(self, parent: ImageSource, indices: Int64[np.ndarray, " m"]) -> None:
        if len(np.unique(indices)) < len(indices):
            raise InputError(f"{parent.name}: an index occurs twice in the subset; keys must be unique")
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
    """An image that was skipped, and the reason."""

    key: str
    reason: str


class ImageBatch(NamedTuple):
    """The decoded images of the requested rows, all of one size.

    Attributes:
        rows: (b,) rows of the source, in the requested order, without broken images.
        images: (b, height, width, 3) RGB.
        encoded: (b,) encoded images as stored; empty if not requested.
        skipped: the broken images.
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
    """Decode ``source[indices]`` in that order, with at most ``workers + 2`` batches in memory.

    Args:
        source: the images.
        indices: rows to decode, in order; by default all.
        batch: images per batch. Skipped images make a batch shorter (`ImageBatch.rows` lists the rows that
            remain); a batch without any image left is not yielded.
        size: (height, width) that every image must have; by default that of the first good image.
        workers: number of decoding threads, by default one per processor up to 4.
        on_error: ``"raise"`` stops at the first bad image; ``"skip"`` adds it to ``skipped`` and continues.
        skipped: list that receives the skipped images; required with ``"skip"``.
        encoded: also return the encoded bytes as stored.

    Raises:
        ImageError: with ``on_error="raise"``, at the first image that is damaged or of another size.
        InputError: a parameter is out of range.

    Example:
        >>> from spherecf.data import orl_faces
        >>> [batch.images.shape for batch in iter_images(orl_faces(), range(100))]
        [(64, 112, 92, 3), (36, 112, 92, 3)]
    """
    if on_error not in ("raise", "skip") or (on_error == "skip") != (skipped is not None):
        raise InputError(
            'on_error must be "raise", or "skip" together with a list `skipped` for the skipped images'
        )
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    _checked_workers(workers)
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
    with closing(batches):  # stops the threads even if this raises or the consumer stops early
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
    """Decode batches of rows, of any length: yields one `ImageBatch` for each, in order, read ahead.

    A batch with broken images is still yielded, even if it is empty; `ImageBatch.skipped` lists what is
    missing. At most ``workers + 1`` batches are queued. Close the generator (`contextlib.closing`) to stop
    early.

    Args:
        source: the images.
        batches: rows of each batch; consumed one by one, so the iterable may be infinite.
        size: (height, width) that every image must have.
        workers: number of decoding threads, by default one per processor up to 4.
        on_error: ``"raise"`` stops at the first bad image.
        encoded: also return the encoded bytes as stored.

    Raises:
        ImageError: with ``on_error="raise"``, at the first image that is damaged or of another size.
        InputError: a row is out of range, or fewer than one worker.

    Example:
        >>> from spherecf.data import orl_faces
        >>> loaded = load_batches(orl_faces(), [[5, 0, 3], [], [7]], size=(112, 92))
        >>> [batch.rows.tolist() for batch in loaded]
        [[5, 0, 3], [], [7]]
    """
    read = partial(load_batch, source, size, on_error=on_error, encoded=encoded)
    return Readers(read, threads=_checked_workers(workers), name="decode")(batches)


class ViewRequest(NamedTuple):
    """A request for a batch of images, each to be transformed by one of several views.

    Attributes:
        rows: (b,) row numbers of the result (`ImageBatch.rows`).
        images: (b,) rows of the source.
        views: the available views.
        view: (b,) index of each image's view.
    """

    rows: Int64[np.ndarray, " b"]
    images: Int64[np.ndarray, " b"]
    views: Sequence[View]
    view: Int64[np.ndarray, " b"]


def load_batch(
    source: ImageSource,
    size: tuple[int, int],
    request: ViewRequest | Int64[np.ndarray, "_"] | Sequence[int],
    *,
    on_error: OnError = "skip",
    encoded: bool = False,
) -> ImageBatch:
    """Decode one batch of `load_batches`, for `Readers`; ``request`` may also give a view for each image."""
    views_request = request if isinstance(request, ViewRequest) else None
    rows = _rows(source, request.images if isinstance(request, ViewRequest) else request)
    # Copy each image into the batch while it is in the processor's cache; stacking them all at the end, in
    # the consumer, costs a tenth of the decoding time.
    images = empty((len(rows), *size, 3))
    good_positions, skipped, stored = list[int](), list[Skipped](), list[bytes]()
    for position, row in enumerate(rows.tolist()):
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
        if views_request is not None:
            view = views_request.views[views_request.view[position]]
            # Building a key for every image would cost 3 % of the decoding time.
            image = view(image, source.keys[row] if view.degradation else "").image
        images[len(good_positions)] = image
        good_positions.append(position)
    rows = rows if views_request is None else views_request.rows
    return ImageBatch(
        rows[good_positions] if skipped else rows, images[: len(good_positions)], stored, skipped
    )


def batch_bytes(images: int, size: tuple[int, int]) -> int:
    """Bytes of the arrays in an `ImageBatch` of ``images`` images: the memory that `Readers` reserve."""
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
            f"{source.name}: rows must be in 0..{len(source) - 1}, got {rows.min()}..{rows.max()}"
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
    return 1, 1  # no good image: any size will do, since every image will be reported as broken


def _checked_workers(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    return workers or 0


def split_identities(
    source: ImageSource | Int64[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " held_out"]]:
    """Split by identity: (training rows, held-out rows), with about ``fraction`` of the identities held out.

    There is at least one identity on each side. Images of unknown identity (label -1) are in neither, since
    they could show a held-out person.

    Args:
        source: a source, or its labels.
        fraction: fraction of the identities to hold out, 0 <= fraction < 1; 0 holds out none.
        seed: the same seed and identities give the same split.

    Raises:
        InputError: ``fraction`` or ``seed`` is out of range, or there are fewer than two identities to split.

    Example:
        >>> train, held_out = split_identities(np.array([0, 0, 1, 1, 2, -1]), 0.3, seed=1)
        >>> len(train) + len(held_out)
        5
    """
    labels = source.labels if isinstance(source, ImageSource) else np.asarray(source)
    identities = np.unique(labels[labels >= 0])
    if not 0 <= fraction < 1:
        raise InputError(f"fraction must be at least 0 and below 1, got {fraction}")
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}")
    if fraction > 0 and len(identities) < 2:
        raise InputError(f"expected at least 2 identities to split, got {len(identities)}")
    count = min(max(round(fraction * len(identities)), 1), len(identities) - 1) if fraction > 0 else 0
    held_out_identities = np.random.default_rng(seed).permutation(identities)[:count]
    held_out = np.isin(labels, held_out_identities)
    return np.flatnonzero((labels >= 0) & ~held_out), np.flatnonzero(held_out)

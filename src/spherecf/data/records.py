"""RecordIO training sets: ``train.rec``, ``train.idx`` and ``property``, memory-mapped, without MXNet.

The usual layout: record 0, the header, has two labels and no content: the numbers of the first identity
record and of one past the last. Then come the images, then the identity records, which also have two labels:
the first image and one past the last. All of these numbers are float32, which has steps of 2 beyond 2^24 and
of 4 beyond 2^25. Images and identity records are therefore distinguished by flag and content, and where the
header or a range is rounded, the index and the images' own labels decide.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from spherecf.common.files import write_atomically
from spherecf.common.progress import progress
from spherecf.data.image import ImageError
from spherecf.data.recordio import (
    EXACT,
    MAX_NUMBER,
    Record,
    has_no_content,
    have_no_content,
    map_records,
    only_padding_follows,
    read_content,
    read_labels,
    read_ranges,
    read_record,
    record_end,
    scan_records,
)
from spherecf.data.source import ImageSource
from spherecf.data.text import NumberKeys, PackedKeys, PickedKeys, iter_lines, refuse_duplicates
from spherecf.errors import FileFormatError, InputError

_BLOCK = 1 << 20  # bytes of an index parsed at once
_INDEX_LINES = re.compile(rb"\s*(?:\d++[ \t]++\d++[ \t]*+(?:[\r\n]\s*+|\Z))*+")
_PROGRESS_BYTES = 1 << 26  # bytes per step of the progress bar
_MAX_NUMBER = np.iinfo(np.int64).max


def read_index(path: Path, size: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(record numbers in increasing order, their byte offsets), checked against a file of ``size`` bytes.

    Raises:
        FileFormatError: with the line or record, if the index is damaged or belongs to another file.
    """
    numbers, offsets = _parse_index(path)
    outside = np.flatnonzero((offsets < 0) | (offsets > size - 8) | (offsets % 4 != 0))
    if len(outside):
        row = outside[0]
        raise FileFormatError(
            path,
            f"record {numbers[row]}: expected an offset that is a multiple of 4 within the {size} bytes of "
            f"{path.with_suffix('.rec').name}, got {offsets[row]} ({len(outside)} such records).",
            "The .rec is truncated, or the index belongs to another file.",
        )
    if not _is_increasing(numbers):
        order = np.argsort(numbers)
        numbers, offsets = numbers[order], offsets[order]
    for column, label in ((numbers, "record number"), (offsets, "offset")):
        ordered = column if _is_increasing(column) else np.sort(column)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            raise FileFormatError(
                path,
                f"{label} {repeated[0]} occurs more than once.",
                "The index is damaged; copy it again, or move it away and run `spherecf data index`.",
            )
    return numbers, offsets


def write_index(path: str | Path) -> Path:
    """Write the ``.idx`` of a ``.rec`` next to it, by walking from record to record.

    The record numbers are those in the records' headers. If they are not unique (some tools leave them 0),
    records are numbered from 0 in file order.

    Args:
        path: the ``.rec``, or the folder of ``train.rec``.

    Returns:
        Path of the index.

    Raises:
        InputError: an index exists already; move it away first.
        FileFormatError: a record is damaged, with its byte position.
        StorageError: the disk is full or not writable; no partial index is left behind.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces, write_records
        >>> path = write_records(orl_faces().subset(range(20)), f"{tempfile.mkdtemp()}/orl").path
        >>> index = path.with_suffix(".idx")
        >>> before = index.read_text()
        >>> index.unlink()
        >>> write_index(path).read_text() == before
        True
    """
    path = Path(path) / "train.rec" if Path(path).is_dir() else Path(path)
    index = path.with_suffix(".idx")
    if index.exists():
        raise InputError(f"{index}: exists already and is not overwritten; move it away first.")
    data, numbers, offsets, reported = map_records(path), array("Q"), array("Q"), 0
    with progress("indexing bytes", len(data)) as advance:
        for number, offset in scan_records(data, path):
            numbers.append(number)
            offsets.append(offset)
            if offset - reported > _PROGRESS_BYTES:
                advance(offset - reported)
                reported = offset
    if not numbers:
        raise FileFormatError(path, "expected records, but the file has none.")
    if len(np.unique(numbers)) < len(numbers) or max(numbers) >= _MAX_NUMBER:
        numbers = array("Q", range(len(offsets)))
    lines = (b"%d\t%d\n" % line for line in zip(numbers, offsets))
    return write_atomically(index, lambda stream: stream.writelines(lines))


def _is_increasing(column: Int64[np.ndarray, " n"]) -> bool:
    return bool((column[1:] > column[:-1]).all())


def _parse_index(path: Path) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Both columns in file order, parsed block by block so that the whole text is never in memory."""
    columns = array("q"), array("q")
    try:
        with path.open("rb") as stream:
            while text := stream.read(_BLOCK) + stream.readline():
                if text.isspace():
                    continue
                if not _INDEX_LINES.fullmatch(text):
                    raise _bad_line(path)
                numbers = np.fromstring(text, np.int64, sep=" ")
                if numbers.max() == _MAX_NUMBER:  # NumPy clips larger numbers to this
                    raise _bad_line(path)
                for offset, column in enumerate(columns):
                    column.frombytes(numbers[offset::2].tobytes())
    except OSError as error:
        raise FileFormatError(
            path,
            f"cannot read the index ({error.strerror}).",
            "It must be next to the .rec; `spherecf data index FILE.rec` creates it from the records.",
        ) from error
    if not columns[0]:
        raise FileFormatError(path, "expected lines `number<TAB>offset`, but the index is empty.")
    numbers, offsets = (np.frombuffer(column, np.int64) for column in columns)
    return numbers, offsets


def _bad_line(path: Path) -> FileFormatError:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.split()
            if fields and (len(fields) != 2 or not all(field.isdigit() for field in fields)):
                line = line.rstrip(b"\r\n")
                return FileFormatError(
                    path, f"line {number}: expected `number<TAB>offset`, got {line[:60]!r}."
                )
            if any(int(field) >= _MAX_NUMBER for field in fields):
                return FileFormatError(
                    path, f"line {number}: a record number or offset is too large, {line[:60]!r}."
                )
    return FileFormatError(path, "expected lines `number<TAB>offset`.")


def read_property(path: Path) -> tuple[tuple[int, int] | None, int | None]:
    """((height, width), number of identities) from the ``property`` file; (None, None) if there is none."""
    try:
        text = path.read_bytes()[:200].decode("latin-1").strip()
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error
    fields = [field.strip() for field in text.split(",")]
    if len(fields) != 3 or not all(field.isdecimal() and int(field) > 0 for field in fields):
        raise FileFormatError(
            path, f"expected `identities,height,width`, got {text[:60]!r}.", "Correct or remove this file."
        )
    identities, height, width = map(int, fields)
    return (height, width), identities


def read_names(path: Path, numbers: Int64[np.ndarray, " n"]) -> Sequence[str]:
    """The name of each record, from lines ``record number<TAB>name`` in any order.

    If a record is listed more than once, its last name counts.

    Raises:
        FileFormatError: a line is malformed, a record has no name, or two records have the same name.
    """
    record_numbers = array("q")

    def names() -> Iterator[str]:
        for line_number, line in iter_lines(path):
            number, tab, name = line.partition("\t")
            if not tab or not name or not (number.isascii() and number.isdecimal() and len(number) < 19):
                raise FileFormatError(
                    path, f"line {line_number}: expected `record number<TAB>name`, got {line[:60]!r}."
                )
            record_numbers.append(int(number))
            yield name

    packed = PackedKeys(names())
    numbers_by_line = np.array(record_numbers, np.int64)
    order = np.argsort(numbers_by_line, kind="stable")
    positions = np.searchsorted(numbers_by_line, numbers, side="right", sorter=order) - 1
    rows = order[positions] if len(order) else np.zeros(0, np.int64)
    missing = numbers[numbers_by_line[rows] != numbers] if len(rows) else numbers
    if len(missing):
        raise FileFormatError(
            path,
            f"expected a name for every record, but {len(missing)} of {len(numbers)} have none, e.g. "
            f"{missing[:3].tolist()}.",
        )
    keys = packed if np.array_equal(rows, np.arange(len(packed))) else PickedKeys(packed, rows)
    refuse_duplicates(keys, path)
    return keys


_BARE_RECORD_BYTES = 40  # bytes of a record with two labels and no content
_REINDEX = (
    "If the index is incomplete or belongs to another set, move it away and create a new one: `spherecf data "
    "index {}`. If the new one has no more records, copy the .rec again."
)
_AS_IT_IS = (
    "If the set is complete as it is, keep only the lines of images in the index: the images' own labels are "
    "then used."
)


class Layout(NamedTuple):
    """Rows of the index that are images, and rows that are identity records."""

    images: slice
    identities: slice


def find_images(
    data: mmap, numbers: Int64[np.ndarray, " n"], offsets: Int64[np.ndarray, " n"], path: Path
) -> Layout:
    """Find which records are images and which are identity records, by flag and content.

    Only records that may not be images are read: those with the size of an identity record, those that
    record 0 declares to be identity records, and the last one.

    Raises:
        FileFormatError: header, index and records contradict each other, or images are missing.
    """
    head = read_record(data, int(offsets[0]), path)
    first = int(head.flag > 0 and not head.content)
    candidates = record_spans(offsets, len(data)) == _BARE_RECORD_BYTES
    candidates[offsets.argmax()] = True
    if first:
        if head.flag != 2 or not all(map(_is_count, head.labels)):
            raise FileFormatError(
                path, f"header record {numbers[0]}: expected two record numbers, got {list(head.labels[:3])}."
            )
        declared = np.array(head.labels[0], np.int64)
        candidates |= numbers >= declared - _rounding(declared)
        candidates[0] = False
    rows = np.flatnonzero(candidates)
    bare = rows[have_no_content(data, offsets[rows], path)]
    trailing = bare - np.arange(len(bare)) == len(numbers) - len(bare)  # not followed by an image
    stop = len(numbers) - int(trailing.sum())
    if not first and _is_pictured_header(head, data, numbers[:stop], offsets, path):
        first = 1
    if first >= stop:
        raise FileFormatError(path, "expected images, but the index lists none.")
    layout = Layout(slice(first, stop), slice(stop, len(numbers)))
    if first:
        _check_header(head, numbers, layout, path)
    elif not trailing.all():
        row = bare[~trailing][0]
        raise FileFormatError(
            path,
            f"record {numbers[row]} looks like an identity record (labels, no image), but images follow it.",
            "If two sets were joined in one file, separate them: their labels mean different people.",
        )
    _check_ends(data, offsets, layout, path)
    return layout


def record_spans(offsets: Int64[np.ndarray, " n"], size: int) -> Int64[np.ndarray, " n"]:
    """Bytes from each record to the next one, or to the end of a file of ``size`` bytes."""
    if (offsets[1:] > offsets[:-1]).all():
        between = np.empty_like(offsets)
        np.subtract(offsets[1:], offsets[:-1], out=between[:-1])
        between[-1] = size - offsets[-1]
        return between
    starts = np.append(np.sort(offsets), size)
    return np.asarray(starts[np.searchsorted(starts, offsets) + 1] - offsets)


def image_labels(
    data: mmap,
    numbers: Int64[np.ndarray, " n"],
    offsets: Int64[np.ndarray, " n"],
    identities: Int64[np.ndarray, " m"],
    path: Path,
) -> Int64[np.ndarray, " n"]:
    """The label of each image, taken from its identity's range if the first and last image there agree.

    The label is read from the image's own header if it is in no range, if the range is rounded or its ends
    disagree, and for all images if ranges overlap or the index does not list them in the order of the file.

    Args:
        data: the records.
        numbers: record numbers of the images, increasing.
        offsets: byte offsets of the images.
        identities: byte offsets of the identity records.
        path: name of the file in messages.

    Raises:
        FileFormatError: a record is damaged, a label is not a class number, or images of a range are missing
            from the index.
    """
    ranges = read_ranges(data, identities, path)
    rounding = _rounding(ranges)
    rows = np.searchsorted(numbers, ranges)
    incomplete = np.flatnonzero(np.diff(ranges - rows, axis=1)[:, 0] > rounding.sum(1))
    if len(incomplete):
        (start, end), (low, high) = ranges[incomplete[0]], rows[incomplete[0]]
        raise FileFormatError(
            path,
            f"the identity record at byte {identities[incomplete[0]]} declares images {start} to {end - 1}, "
            f"but the index lists only {high - low} of them ({len(incomplete)} such identities).",
            f"{_REINDEX.format(path)} {_AS_IT_IS}",
        )
    if rounding.any():
        rows = np.searchsorted(numbers, ranges + rounding * (1, -1))
    rows = rows[rows[:, 0] < rows[:, 1]]
    rows = rows[rows[:, 0].argsort(kind="stable")]
    if (rows[1:, 0] < rows[:-1, 1]).any() or not _is_increasing(offsets):
        rows = rows[:0]
    first, last = (read_labels(data, offsets[column], path) for column in (rows[:, 0], rows[:, 1] - 1))
    values = np.full(2 * len(rows) + 1, -1, np.int64)
    values[1::2] = np.where(first == last, first, -1)
    labels = np.repeat(values, np.diff(rows.ravel(), prepend=0, append=len(numbers)))
    unlabelled = np.flatnonzero(labels < 0)
    labels[unlabelled] = read_labels(data, offsets[unlabelled], path)
    return labels


def _is_pictured_header(
    head: Record, data: mmap, numbers: Int64[np.ndarray, " n"], offsets: Int64[np.ndarray, " m"], path: Path
) -> bool:
    """Whether record 0 is a header although it has content, as some tools write.

    Such a header has two labels, the first of which is the number after the last image.
    """
    if head.flag != 2 or len(numbers) < 2 or head.labels[0] != np.float32(numbers[-1] + 1):
        return False
    return read_record(data, int(offsets[1]), path).flag == 0


def _check_header(head: Record, numbers: Int64[np.ndarray, " n"], layout: Layout, path: Path) -> None:
    images = numbers[layout.images]
    end = numbers[layout.images.stop] if layout.images.stop < len(numbers) else images[-1] + 1
    # Without identity records the images must follow the header; with them the first range is checked later.
    starts_after_header = len(images) < len(numbers) - 1 or images[0] == numbers[0] + 1
    if np.float32(end) != head.labels[0] or len(images) != end - images[0] or not starts_after_header:
        raise FileFormatError(
            path,
            f"record {numbers[0]} declares images up to record {head.labels[0] - 1:.0f}, but the index lists "
            f"{len(images)} images, from {images[0]} to {images[-1]}, and "
            f"{len(numbers) - layout.images.stop} identity records.",
            f"{_REINDEX.format(path)} {_AS_IT_IS}",
        )


def _check_ends(data: mmap, offsets: Int64[np.ndarray, " n"], layout: Layout, path: Path) -> None:
    """Reject an index that lacks images at the start or the end of the file."""
    start, last = int(offsets.min()), int(offsets.max())
    end = record_end(data, last, path)
    before = 0
    if start and has_no_content(data, 0, path):  # record 0 itself is not in the index
        before = record_end(data, 0, path)
    if before != start:
        raise FileFormatError(
            path, f"the index starts at byte {start} and does not list the record at byte {before}.",
            _REINDEX.format(path),
        )  # fmt: skip
    if only_padding_follows(data, end):
        return
    summary = f"the index lists {len(offsets)} records, the last of which ends at byte {end}"
    try:
        is_identity_record = has_no_content(data, end, path)
    except FileFormatError as error:
        raise FileFormatError(
            path,
            f"{summary}; the {len(data) - end} bytes after it are not a record.",
            f"Copy the file again. If its last record is incomplete for good, remove that part: "
            f"`truncate -s {end} {path}`.",
        ) from error
    only_images = len(offsets) == layout.images.stop - layout.images.start
    # Identity records may be missing from the index, since images have their own labels.
    if not (only_images and is_identity_record):
        raise FileFormatError(
            path, f"{summary}; another record follows ({len(data) - end} bytes).", _REINDEX.format(path)
        )


def _is_count(value: float) -> bool:
    return 0 <= value < MAX_NUMBER and value == int(value)


def _rounding(numbers: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
    """Maximum difference between each record number and the float32 that it is stored as."""
    return np.where(numbers < EXACT, 0, np.spacing(numbers.astype(np.float32)) / 2).astype(np.int64)


_MAX_EMPTY_IDENTITIES = 1 << 22  # limit on the number of identities of a set with fewer images than that


class RecordFile(ImageSource):
    """A RecordIO set; memory holds only the pages of records that are read, and 24 bytes per record.

    Labels are those in the images' own headers. If there are identity records, opening the set need not read
    every image: the label of a range is that of its first and last image. If these disagree, all images of
    the range are read, as are those at the ends of ranges that float32 rounds (numbers beyond 2^24), and all
    images of the set if the index is not in the order of the file. Header, index and records are checked
    against each other, so a missing image is an error. Identities are named by the label numbers or, with a
    names file, by the folder part of the images' names, provided that it is the same for all images of an
    identity and differs between identities.

    Args:
        path: the folder with ``train.rec``, or a ``.rec`` file with its ``.idx`` next to it.
        names: file of lines ``record number<TAB>name``, which become the keys; by default ``names.txt`` in
            the folder. Without it the record numbers are the keys.
        name: name used in messages and reports; by default that of the folder or file.

    Raises:
        FileFormatError: with the line or byte position, if index, records, property or names contradict each
            other.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces, write_records
        >>> folder = write_records(orl_faces().subset(range(20)), f"{tempfile.mkdtemp()}/orl").path.parent
        >>> source = RecordFile(folder)
        >>> len(source), source.picture_size, source.keys[-1]
        (20, (112, 92), 's10/9.pgm')
    """

    def __init__(self, path: str | Path, names: str | Path | None = None, name: str = "") -> None:
        self.path = Path(path) / "train.rec" if Path(path).is_dir() else Path(path)
        folder = self.path.parent
        default_names = folder / "names.txt"
        self.names = Path(names) if names is not None else default_names if default_names.exists() else None
        self._data = map_records(self.path)
        numbers, self._starts = read_index(self.path.with_suffix(".idx"), len(self._data))
        self._images, identities = find_images(self._data, numbers, self._starts, self.path)
        self._numbers, self._offsets = numbers[self._images], self._starts[self._images]
        labels = image_labels(self._data, self._numbers, self._offsets, self._starts[identities], self.path)
        self.picture_size, declared_identities = read_property(folder / "property")
        identity_names = [str(label) for label in range(self._count_identities(labels, declared_identities))]
        default = folder.resolve().name if self.path.stem == "train" else self.path.stem
        super().__init__(name or default, labels, identity_names)
        if self.names is not None:
            self._name_identities()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_data": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy, e.g. in another process, maps the records again; the parsed index is copied.
        vars(self).update(state)
        self._data = map_records(self.path)

    @cached_property
    def keys(self) -> Sequence[str]:
        return NumberKeys(self._numbers) if self.names is None else read_names(self.names, self._numbers)

    def read(self, index: int) -> bytes:
        try:
            return read_content(self._data, int(self._offsets[index]), self.path)
        except FileFormatError as error:
            raise ImageError(self.where(index), f"damaged record in {error}") from error

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return record_spans(self._starts, len(self._data))[self._images]

    def _count_identities(self, labels: Int64[np.ndarray, " n"], declared: int | None) -> int:
        """Number of identities: from ``property`` if there is one, otherwise as many as the labels need."""
        path, needed = self.path.parent / "property", int(labels.max()) + 1
        if declared is not None and needed > declared:
            raise FileFormatError(
                path,
                f"declares {declared} identities, but labels go up to {needed - 1} in {self.path} (they "
                "count from 0).",
                "It may belong to another set.",
            )
        count = needed if declared is None else declared
        if count > max(_MAX_EMPTY_IDENTITIES, len(labels)):
            where = self.path if declared is None else path
            raise FileFormatError(
                where,
                f"{count} identities for only {len(labels)} images.",
                "Labels must number the identities from 0.",
            )
        return count

    def _name_identities(self) -> None:
        """Name identities by the first folder of their keys, or the whole path, if that is one to one."""
        if not all("/" in key for key in self.keys):
            return
        for cut in (str.partition, str.rpartition):
            named = {(int(label), cut(key, "/")[0]) for label, key in zip(self.labels, self.keys)}
            if len({label for label, _ in named}) == len(named) == len({folder for _, folder in named}):
                for label, folder in named:
                    self.identities[label] = folder
                return

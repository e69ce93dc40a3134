"""RecordIO training sets: ``train.rec``, ``train.idx`` and ``property``, memory-mapped, without MXNet.

The field's layout: record 0 holds two labels and no content, the numbers of the first identity record and of
one past the last; then come the images, then the identity records, which hold two labels as well, the first
image and one past the last. All of these numbers are float32, which counts by 2 beyond 2^24 and by 4 beyond
2^25. So images and identity records are told apart by flag and content, and where header or ranges are
rounded, the index and the labels of the images themselves decide.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from mmap import mmap
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from spherecf.common.files import write_atomically
from spherecf.common.progress import progress
from spherecf.data.image import ImageError
from spherecf.data.recordio import (
    EXACT,
    MAX_NUMBER,
    Record,
    are_bare,
    ends_at,
    is_bare,
    map_records,
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
_SHOWN = 1 << 26  # bytes between two steps of the progress bar
_MAX_NUMBER = np.iinfo(np.int64).max


def read_index(path: Path, size: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(record numbers in increasing order, their byte offsets), each offset inside a file of ``size`` bytes.

    Raises:
        FileFormatError: with the line or record, if the index is damaged, or of another file.
    """
    numbers, offsets = _parse(path)
    outside = np.flatnonzero((offsets < 0) | (offsets > size - 8) | (offsets % 4 != 0))
    if len(outside):
        row = outside[0]
        raise FileFormatError(
            path,
            f"record {numbers[row]}: offset {offsets[row]} is not a multiple of 4 within the {size} bytes of "
            f"{path.with_suffix('.rec').name} ({len(outside)} such records).",
            "The .rec is truncated or the index belongs to another file.",
        )
    if not _increases(numbers):
        order = np.argsort(numbers)
        numbers, offsets = numbers[order], offsets[order]
    for column, what in ((numbers, "record number"), (offsets, "offset")):
        ordered = column if _increases(column) else np.sort(column)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise FileFormatError(path, f"{what} {twice[0]} occurs more than once.")
    return numbers, offsets


def write_index(path: str | Path) -> Path:
    """Write the ``.idx`` of a ``.rec`` beside it, by walking from record to record.

    The numbers are those in the records' headers; where some are alike, as tools write that leave them 0, the
    records are counted from 0 in their order.

    Args:
        path: the ``.rec``, or the folder of ``train.rec``.

    Returns:
        Where the index is.

    Raises:
        InputError: there is an index already; move it away first.
        FileFormatError: the walk meets a byte where a record should start and none does.
        StorageError: the disk is full or not writable; nothing is left behind.

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
        raise InputError(f"{index}: exists, and nothing is overwritten; move it away first.")
    data, numbers, offsets, shown = map_records(path), array("Q"), array("Q"), 0
    with progress("indexing bytes", len(data)) as advance:
        for number, offset in scan_records(data, path):
            numbers.append(number)
            offsets.append(offset)
            if offset - shown > _SHOWN:
                advance(offset - shown)
                shown = offset
    if not numbers:
        raise FileFormatError(path, "expected records, the file holds none.")
    if len(np.unique(numbers)) < len(numbers) or max(numbers) >= _MAX_NUMBER:
        numbers = array("Q", range(len(offsets)))

    def write(stream: IO[bytes]) -> None:
        stream.writelines(b"%d\t%d\n" % line for line in zip(numbers, offsets))

    write_atomically(index, write)
    return index


def _increases(column: Int64[np.ndarray, " n"]) -> bool:
    return bool((column[1:] > column[:-1]).all())


def _parse(path: Path) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Both columns as they stand, block by block: neither the text nor a copy is ever held as a whole."""
    columns = array("q"), array("q")
    try:
        with path.open("rb") as stream:
            while text := stream.read(_BLOCK) + stream.readline():
                if text.isspace():
                    continue
                if text.translate(None, b"0123456789 \t\r\n"):
                    raise _bad_line(path)
                numbers = np.fromstring(text, np.int64, sep=" ")
                if len(numbers) % 2 or numbers.max() == _MAX_NUMBER:  # NumPy stops at the largest number
                    raise _bad_line(path)
                for offset, column in enumerate(columns):
                    column.frombytes(numbers[offset::2].tobytes())
    except OSError as error:
        raise FileFormatError(
            path,
            f"cannot read the index ({error.strerror}).",
            "It belongs beside the .rec; `spherecf data index FILE.rec` makes it from the records.",
        ) from error
    if not columns[0]:
        raise FileFormatError(path, "expected lines `number<TAB>offset`, the index is empty.")
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
                return FileFormatError(path, f"line {number}: a number beyond all records, {line[:60]!r}.")
    return FileFormatError(path, "expected lines `number<TAB>offset`.")


def read_property(path: Path) -> tuple[tuple[int, int] | None, int | None]:
    """((height, width), identities) of the ``property`` file, (None, None) without one."""
    if not path.exists():
        return None, None
    text = path.read_bytes()[:200].decode("latin-1").strip()
    fields = [field.strip() for field in text.split(",")]
    if len(fields) != 3 or not all(field.isdecimal() and int(field) > 0 for field in fields):
        raise FileFormatError(path, f"expected `identities,height,width`, got {text[:60]!r}.")
    classes, height, width = map(int, fields)
    return (height, width), classes


def read_names(path: Path, numbers: Int64[np.ndarray, " n"]) -> Sequence[str]:
    """The name of each record, from lines ``record number<TAB>name`` in any order; the last one counts.

    Raises:
        FileFormatError: with the line; or records without name, or a name for two of them.
    """
    listed = array("q")

    def names() -> Iterator[str]:
        for line_number, line in iter_lines(path):
            number, tab, name = line.partition("\t")
            if not tab or not name or not (number.isascii() and number.isdecimal() and len(number) < 19):
                raise FileFormatError(
                    path, f"line {line_number}: expected `record number<TAB>name`, got {line[:60]!r}."
                )
            listed.append(int(number))
            yield name

    packed = PackedKeys(names())
    named = np.array(listed, np.int64)
    order = np.argsort(named, kind="stable")
    positions = np.searchsorted(named, numbers, side="right", sorter=order) - 1
    rows = order[positions] if len(order) else np.zeros(0, np.int64)
    missing = numbers[named[rows] != numbers] if len(rows) else numbers
    if len(missing):
        raise FileFormatError(
            path,
            f"no name for {len(missing)} of {len(numbers)} records, among them {missing[:3].tolist()}.",
        )
    keys = packed if np.array_equal(rows, np.arange(len(packed))) else PickedKeys(packed, rows)
    refuse_duplicates(keys, path)
    return keys


_BARE = 40  # bytes of a record of two labels and no content
_REINDEX = (
    "If the index is short or of another set, move it away and make a new one: `spherecf data index {}`. If "
    "that is as short, copy the .rec again."
)
_AS_IT_IS = (
    "If the set is right as it is, keep only the lines of images in the index; their own labels count."
)


class Layout(NamedTuple):
    """Rows of the index."""

    images: slice
    identities: slice


def find_images(
    data: mmap, numbers: Int64[np.ndarray, " n"], offsets: Int64[np.ndarray, " n"], path: Path
) -> Layout:
    """Which records are images, and which are identity records, by flag and content.

    Only the records that may be something else than an image are touched: those of the bytes of an identity
    record, those that record 0 promises to be some, and the last one.

    Raises:
        FileFormatError: header, index and records contradict each other, or images are missing.
    """
    head = read_record(data, int(offsets[0]), path)
    first = int(head.flag > 0 and not head.content)
    maybe = spaces(offsets, len(data)) == _BARE
    maybe[offsets.argmax()] = True
    if first:
        if head.flag != 2 or not all(map(_is_count, head.labels)):
            raise FileFormatError(
                path, f"header record {numbers[0]}: expected two record numbers, got {head.labels[:3]}."
            )
        promised = np.array(head.labels[0], np.int64)
        maybe |= numbers >= promised - _rounding(promised)
        maybe[0] = False
    rows = np.flatnonzero(maybe)
    bare = rows[are_bare(data, offsets[rows], path)]
    behind = bare - np.arange(len(bare)) == len(numbers) - len(bare)  # those that no image follows
    stop = len(numbers) - int(behind.sum())
    if not first and _is_pictured_header(head, data, numbers[:stop], offsets, path):
        first = 1
    if first >= stop:
        raise FileFormatError(path, "expected images, the index lists none.")
    layout = Layout(slice(first, stop), slice(stop, len(numbers)))
    if first:
        _check_promise(head, numbers, layout, path)
    elif not behind.all():
        row = bare[~behind][0]
        raise FileFormatError(
            path,
            f"record {numbers[row]} has labels and no picture, as an identity record has, but images follow.",
            "Two sets in one file? Their labels would mean different people.",
        )
    _check_ends(data, offsets, layout, path)
    return layout


def spaces(offsets: Int64[np.ndarray, " n"], size: int) -> Int64[np.ndarray, " n"]:
    """Bytes from each record to the next one, or to the end of the file of ``size`` bytes."""
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
    """The label of each image: that of the first and last image of its range, where these agree.

    All others come from the images' own headers: where there is no range, where a range is rounded, where its
    ends disagree, and everywhere if ranges overlap.

    Args:
        data: the records.
        numbers: of the images, increasing.
        offsets: of the images.
        identities: offsets of the identity records.
        path: for messages.

    Raises:
        FileFormatError: a damaged record, a label that is no class, a range whose images are not all listed.
    """
    ranges = read_ranges(data, identities, path)
    rounding = _rounding(ranges)
    rows = np.searchsorted(numbers, ranges)
    missing = np.flatnonzero(np.diff(ranges - rows, axis=1)[:, 0] > rounding.sum(1))
    if len(missing):
        (start, end), (low, high) = ranges[missing[0]], rows[missing[0]]
        raise FileFormatError(
            path,
            f"the identity record at byte {identities[missing[0]]} promises images {start} to {end - 1}; the "
            f"index lists {high - low} of them ({len(missing)} such identities).",
            f"{_REINDEX.format(path)} {_AS_IT_IS}",
        )
    if rounding.any():
        rows = np.searchsorted(numbers, ranges + rounding * (1, -1))
    rows = rows[rows[:, 0] < rows[:, 1]]
    rows = rows[rows[:, 0].argsort(kind="stable")]
    if (rows[1:, 0] < rows[:-1, 1]).any():
        rows = rows[:0]
    first, last = (read_labels(data, offsets[column], path) for column in (rows[:, 0], rows[:, 1] - 1))
    values = np.full(2 * len(rows) + 1, -1, np.int64)
    values[1::2] = np.where(first == last, first, -1)
    labels = np.repeat(values, np.diff(rows.ravel(), prepend=0, append=len(numbers)))
    unknown = np.flatnonzero(labels < 0)
    labels[unknown] = read_labels(data, offsets[unknown], path)
    return labels


def _is_pictured_header(
    head: Record, data: mmap, numbers: Int64[np.ndarray, " n"], offsets: Int64[np.ndarray, " m"], path: Path
) -> bool:
    """Some tools put a picture into the header: its labels are two, of which the first is past the images."""
    if head.flag != 2 or len(numbers) < 2 or head.labels[0] != np.float32(numbers[-1] + 1):
        return False
    return read_record(data, int(offsets[1]), path).flag == 0


def _check_promise(head: Record, numbers: Int64[np.ndarray, " n"], layout: Layout, path: Path) -> None:
    images = numbers[layout.images]
    end = numbers[layout.images.stop] if layout.images.stop < len(numbers) else images[-1] + 1
    begins = len(images) < len(numbers) - 1 or images[0] == numbers[0] + 1  # else the first range tells
    if np.float32(end) != head.labels[0] or len(images) != end - images[0] or not begins:
        raise FileFormatError(
            path,
            f"record {numbers[0]} promises images up to record {head.labels[0] - 1:.0f}; the index lists "
            f"{len(images)}, from {images[0]} to {images[-1]}, and {len(numbers) - layout.images.stop} "
            "identity records.",
            f"{_REINDEX.format(path)} {_AS_IT_IS}",
        )


def _check_ends(data: mmap, offsets: Int64[np.ndarray, " n"], layout: Layout, path: Path) -> None:
    """Refuse records before the first and behind the last one of the index, unless they are no images."""
    start, last = int(offsets.min()), int(offsets.max())
    end = record_end(data, last, path)
    before = 0
    if start and is_bare(data, 0, path):  # record 0 itself is not in the index
        before = record_end(data, 0, path)
    if before != start:
        raise FileFormatError(
            path, f"the index lists no record before byte {start}, but one starts at byte {before}.",
            _REINDEX.format(path),
        )  # fmt: skip
    if ends_at(data, end):
        return
    listed = f"the index lists {len(offsets)} records, the last of which ends at byte {end}"
    try:
        bare = is_bare(data, end, path)
    except FileFormatError as error:
        raise FileFormatError(
            path,
            f"{listed}; the {len(data) - end} bytes behind it are no record.",
            f"Copy the file again. If it is cut off in the middle of a record, nothing of it counts: "
            f"`truncate -s {end} {path}`.",
        ) from error
    only_images = len(offsets) == layout.images.stop - layout.images.start
    if not (only_images and bare):  # the identity records may be left out: images have labels of their own
        raise FileFormatError(
            path, f"{listed}; another one follows ({len(data) - end} bytes).", _REINDEX.format(path)
        )


def _is_count(value: float) -> bool:
    return 0 <= value < MAX_NUMBER and value == int(value)


def _rounding(numbers: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
    """By how much record numbers may differ from the float32 that they are stored as."""
    return np.where(numbers < EXACT, 0, np.spacing(numbers.astype(np.float32)) / 2).astype(np.int64)


_MAX_EMPTY_IDENTITIES = 1 << 22  # identities that a set may have without having as many images


class RecordFile(ImageSource):
    """A RecordIO set; only the pages of records that are read enter memory, and 24 bytes per record.

    Labels are those in the images' own headers. Where there are identity records, their ranges give the
    labels without touching every image: the first and last image of each range are asked, and if they do not
    agree, all images are, as are those at the ends of ranges that float32 rounds (numbers beyond 2^24).
    Header, index and records are checked against each other, so that a missing image is an error.
    Identities are the label numbers as strings, or with a names file the folder part of the names where that
    is the same for all images of the identity and for no other.

    Args:
        path: the folder with ``train.rec``, or a ``.rec`` file with its ``.idx`` beside it.
        names: lines ``record number<TAB>name`` that become the keys; ``names.txt`` in the folder by default.
            Without it the record numbers are the keys.

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
        beside = folder / "names.txt"
        self.names = Path(names) if names is not None else beside if beside.exists() else None
        self._data = map_records(self.path)
        numbers, self._starts = read_index(self.path.with_suffix(".idx"), len(self._data))
        self._images, identities = find_images(self._data, numbers, self._starts, self.path)
        self._numbers, self._offsets = numbers[self._images], self._starts[self._images]
        labels = image_labels(self._data, self._numbers, self._offsets, self._starts[identities], self.path)
        self.picture_size, classes = read_property(folder / "property")
        identity_names = [str(label) for label in range(self._count_identities(labels, classes))]
        default = folder.resolve().name if self.path.stem == "train" else self.path.stem
        super().__init__(name or default, labels, identity_names)
        if self.names is not None:
            self._name_identities()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_data": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy, say in another process, maps the records again; what was read of the index comes with it.
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
        return spaces(self._starts, len(self._data))[self._images]

    def _count_identities(self, labels: Int64[np.ndarray, " n"], promised: int | None) -> int:
        """As many as ``property`` says, or as the labels need."""
        path, needed = self.path.parent / "property", int(labels.max()) + 1
        if promised is not None and needed > promised:
            raise FileFormatError(
                path,
                f"promises {promised} identities, but labels reach {needed - 1} in {self.path}.",
                "Is it of another set? Labels count from 0.",
            )
        count = needed if promised is None else promised
        if count > max(_MAX_EMPTY_IDENTITIES, len(labels)):
            where = self.path if promised is None else path
            raise FileFormatError(
                where, f"{count} identities for {len(labels)} images.", "Labels number the identities from 0."
            )
        return count

    def _name_identities(self) -> None:
        """Call identities by the first folder of their keys, or else the whole, if that is one to one."""
        if not all("/" in key for key in self.keys):
            return
        for cut in (str.partition, str.rpartition):
            named = {(int(label), cut(key, "/")[0]) for label, key in zip(self.labels, self.keys)}
            if len({label for label, _ in named}) == len(named) == len({folder for _, folder in named}):
                for label, folder in named:
                    self.identities[label] = folder
                return

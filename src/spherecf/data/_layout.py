"""Which records of a RecordIO set are images, and what their labels are.

The field's layout: record 0 holds two labels and no content, the numbers of the first identity record and of
one past the last; then come the images, then the identity records, which hold two labels as well, the first
image and one past the last. All of these numbers are float32, which counts by 2 beyond 2^24 and by 4 beyond
2^25. So images and identity records are told apart by flag and content, and where header or ranges are
rounded, the index and the labels of the images themselves decide.
"""

from mmap import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from spherecf.data._headers import EXACT, LARGEST, are_bare, is_bare, read_labels, read_ranges
from spherecf.data._recordio import Record, ends_at, read_record, record_end
from spherecf.errors import FileFormatError

_BARE = 40  # bytes of a record of two labels and no content
_REINDEX = (
    "If the index is short or of another set, move it away and make it anew: `spherecf data index {}`. If "
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
    return 0 <= value < LARGEST and value == int(value)


def _rounding(numbers: Int64[np.ndarray, "*n"]) -> Int64[np.ndarray, "*n"]:
    """By how much record numbers may differ from the float32 that they are stored as."""
    return np.where(numbers < EXACT, 0, np.spacing(numbers.astype(np.float32)) / 2).astype(np.int64)

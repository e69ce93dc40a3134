"""RecordIO training sets: ``train.rec``, ``train.idx`` and ``property``, memory-mapped, without MXNet."""

import math
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from spherecf.data._image import ImageError
from spherecf.data._list import read_lines
from spherecf.data._recordio import Record, read_record
from spherecf.data._source import ImageSource, refuse_duplicates
from spherecf.errors import FileFormatError


class RecordFile(ImageSource):
    """A RecordIO set; only the pages of records that are read enter memory.

    Labels are those in the images' own headers. Where record 0 announces identity records, their ranges give
    the labels without touching every image: the first and last image of each range are asked, and if they do
    not agree, all images are. Identities are the label numbers as strings, or with a names file the folder
    part of the names where that is the same for all images of the identity and for no other.

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
        self._data = _map(self.path)
        numbers, offsets = _read_index(self.path.with_suffix(".idx"), len(self._data))
        self._order = np.argsort(numbers)
        self._all_numbers, self._all_offsets = numbers[self._order], offsets[self._order]
        self._choose_images()
        labels = self._labels()
        self.picture_size, classes = _read_property(folder / "property")
        if classes is not None and labels.max() >= classes:
            raise FileFormatError(
                folder / "property",
                f"promises {classes} identities, but labels reach {labels.max()} in {self.path}.",
            )
        identities = [str(label) for label in range(classes or int(labels.max()) + 1)]
        default = folder.resolve().name if self.path.stem == "train" else self.path.stem
        super().__init__(name or default, labels, identities)
        if self.names is not None:
            self._name_identities()

    def __reduce__(self) -> tuple[type["RecordFile"], tuple[Path, Path | None, str]]:
        return type(self), (self.path, self.names, self.name)

    @cached_property
    def keys(self) -> list[str]:
        numbers = self._numbers.tolist()
        return list(map(str, numbers)) if self.names is None else _read_names(self.names, numbers)

    def read(self, index: int) -> bytes:
        try:
            return self._record(int(self._offsets[index])).content
        except FileFormatError as error:
            raise ImageError(self.where(index), f"damaged record in {error}") from error

    def sizes(self) -> Int64[np.ndarray, " n"]:
        starts = np.sort(self._all_offsets)
        ends = np.append(starts[1:], len(self._data))
        return np.asarray(ends[np.searchsorted(starts, self._offsets)] - self._offsets)

    def _record(self, offset: int) -> Record:
        return read_record(self._data, offset, self.path)

    def _choose_images(self) -> None:
        """Split the records into images and, if there is a header record 0, identity records."""
        numbers, offsets = self._all_numbers, self._all_offsets
        images, identities = np.ones(len(numbers), bool), np.zeros(len(numbers), bool)
        header = self._record(int(offsets[0]))
        if header.flag > 0 and not header.content:
            if header.flag != 2 or not all(map(_is_count, header.labels)):
                raise FileFormatError(
                    self.path,
                    f"header record {numbers[0]}: expected two record numbers, got {header.labels}.",
                )
            first, end = (int(value) for value in header.labels)
            images = (numbers > numbers[0]) & (numbers < first)
            identities = (numbers >= first) & (numbers < end)
        if not images.any():
            raise FileFormatError(self.path, "expected images, the index lists none.")
        self._numbers, self._offsets = numbers[images], offsets[images]
        self._identity_offsets = offsets[identities]

    def _labels(self) -> Int64[np.ndarray, " n"]:
        labels = np.full(len(self._numbers), -1, np.int64)
        for offset in self._identity_offsets.tolist():
            record = self._record(offset)
            if len(record.labels) != 2 or not all(map(_is_count, record.labels)):
                raise FileFormatError(
                    self.path, f"identity record at byte {offset}: expected a range, got {record.labels}."
                )
            start, end = np.searchsorted(self._numbers, [int(value) for value in record.labels]).tolist()
            if start < end:
                label = self._label(start)
                labels[start:end] = label if label == self._label(end - 1) else -1
        for index in np.flatnonzero(labels < 0).tolist():
            labels[index] = self._label(index)
        return labels

    def _label(self, index: int) -> int:
        offset = int(self._offsets[index])
        label = self._record(offset).labels[0]
        if not _is_count(label):
            raise FileFormatError(
                self.path, f"record at byte {offset}: expected a whole number as label, got {label}."
            )
        return int(label)

    def _name_identities(self) -> None:
        """Call identities by the first folder of their keys, or else the whole, if that is one to one."""
        if not all("/" in key for key in self.keys):
            return
        for cut in (str.partition, str.rpartition):
            folders = [cut(key, "/")[0] for key in self.keys]
            named = set(zip(self.labels.tolist(), folders))
            if len({label for label, _ in named}) == len(named) == len({folder for _, folder in named}):
                for label, folder in named:
                    self.identities[label] = folder
                return


def _is_count(value: float) -> bool:
    return math.isfinite(value) and value >= 0 and value == int(value)


def _map(path: Path) -> mmap:
    try:
        with path.open("rb") as stream:
            return mmap(stream.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error
    except ValueError as error:  # what mmap says of a file without bytes
        raise FileFormatError(path, "expected records, the file is empty.") from error


def _read_index(path: Path, size: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(record numbers, byte offsets) as listed, each offset inside a file of ``size`` bytes."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise FileFormatError(
            path, f"cannot read the index ({error.strerror}).", "It belongs beside the .rec."
        ) from error
    fields = text.split()
    try:
        table = np.array(fields, dtype=np.int64).reshape(-1, 2)
    except (ValueError, OverflowError) as error:
        raise _bad_index_line(path, text) from error
    if len(table) == 0:
        raise FileFormatError(path, "expected lines `number<TAB>offset`, the index is empty.")
    numbers, offsets = table.T
    outside = np.flatnonzero((offsets < 0) | (offsets > size - 8) | (offsets % 4 != 0))
    if len(outside):
        row = outside[0]
        raise FileFormatError(
            path,
            f"record {numbers[row]}: offset {offsets[row]} is not a multiple of 4 within the {size} bytes of "
            f"{path.with_suffix('.rec').name} ({len(outside)} such records).",
            "The .rec is truncated or the index belongs to another file.",
        )
    for column, what in ((numbers, "record number"), (offsets, "offset")):
        values, counts = np.unique(column, return_counts=True)
        if len(values) < len(column):
            raise FileFormatError(path, f"{what} {values[counts > 1][0]} occurs more than once.")
    return numbers, offsets


def _bad_index_line(path: Path, text: bytes) -> FileFormatError:
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if fields and (len(fields) != 2 or not all(field.isdigit() for field in fields)):
            return FileFormatError(path, f"line {number}: expected `number<TAB>offset`, got {line[:60]!r}.")
        if any(int(field) >= 1 << 63 for field in fields):
            return FileFormatError(path, f"line {number}: a number beyond all records, {line[:60]!r}.")
    return FileFormatError(path, "expected lines `number<TAB>offset`.")


def _read_property(path: Path) -> tuple[tuple[int, int] | None, int | None]:
    """((height, width), identities) of the ``property`` file, (None, None) without one."""
    if not path.exists():
        return None, None
    text = path.read_bytes()[:200].decode("latin-1").strip()
    fields = [field.strip() for field in text.split(",")]
    if len(fields) != 3 or not all(field.isdecimal() and int(field) > 0 for field in fields):
        raise FileFormatError(path, f"expected `identities,height,width`, got {text[:60]!r}.")
    classes, height, width = map(int, fields)
    return (height, width), classes


def _read_names(path: Path, numbers: list[int]) -> list[str]:
    names: dict[str, str] = {}
    for line_number, line in read_lines(path):
        number, tab, name = line.partition("\t")
        if not tab or not name:
            raise FileFormatError(
                path, f"line {line_number}: expected `record number<TAB>name`, got {line[:60]!r}."
            )
        names[number] = name
    missing = [number for number in numbers if str(number) not in names]
    if missing:
        raise FileFormatError(
            path, f"no name for {len(missing)} of {len(numbers)} records, among them {missing[:3]}."
        )
    keys = [names[str(number)] for number in numbers]
    refuse_duplicates(keys, str(path))
    return keys

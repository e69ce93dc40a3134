"""RecordIO training sets: ``train.rec``, ``train.idx`` and ``property``, memory-mapped, without MXNet."""

from collections.abc import Sequence
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from spherecf.data._headers import is_count, read_labels, read_ranges
from spherecf.data._image import ImageError
from spherecf.data._index import read_index, read_names, read_property
from spherecf.data._keys import NumberKeys
from spherecf.data._recordio import read_content, read_record
from spherecf.data._source import ImageSource
from spherecf.errors import FileFormatError


class RecordFile(ImageSource):
    """A RecordIO set; only the pages of records that are read enter memory, and 24 bytes per record.

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
        self._numbers, self._offsets = read_index(self.path.with_suffix(".idx"), len(self._data))
        self._starts = self._offsets  # of all records, of which images are one range
        self._identity_offsets = self._choose_images()
        labels = self._labels()
        self.picture_size, classes = read_property(folder / "property")
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
    def keys(self) -> Sequence[str]:
        return NumberKeys(self._numbers) if self.names is None else read_names(self.names, self._numbers)

    def read(self, index: int) -> bytes:
        try:
            return read_content(self._data, int(self._offsets[index]), self.path)
        except FileFormatError as error:
            raise ImageError(self.where(index), f"damaged record in {error}") from error

    def sizes(self) -> Int64[np.ndarray, " n"]:
        starts = np.append(np.sort(self._starts), len(self._data))
        return np.asarray(starts[np.searchsorted(starts, self._offsets) + 1] - self._offsets)

    def _choose_images(self) -> Int64[np.ndarray, " m"]:
        """Keep the images among the records; the offsets of the identity records, where record 0 tells."""
        numbers, offsets = self._numbers, self._offsets
        header = read_record(self._data, int(offsets[0]), self.path)
        chosen, identities = slice(0, len(numbers)), slice(0, 0)
        if header.flag > 0 and not header.content:
            if header.flag != 2 or not all(map(is_count, header.labels)):
                raise FileFormatError(
                    self.path,
                    f"header record {numbers[0]}: expected two record numbers, got {header.labels}.",
                )
            first, end = np.searchsorted(numbers, [int(value) for value in header.labels]).tolist()
            chosen, identities = slice(1, first), slice(first, max(first, end))
        self._numbers, self._offsets = numbers[chosen], offsets[chosen]
        if not len(self._numbers):
            raise FileFormatError(self.path, "expected images, the index lists none.")
        return offsets[identities]

    def _labels(self) -> Int64[np.ndarray, " n"]:
        labels = np.full(len(self._numbers), -1, np.int64)
        ranges = read_ranges(self._data, self._identity_offsets, self.path)
        starts, ends = np.searchsorted(self._numbers, ranges).T
        starts, ends = starts[starts < ends], ends[starts < ends]
        first, last = (read_labels(self._data, self._offsets[rows], self.path) for rows in (starts, ends - 1))
        for start, end, label in zip(starts.tolist(), ends.tolist(), np.where(first == last, first, -1)):
            labels[start:end] = label
        unknown = np.flatnonzero(labels < 0)
        labels[unknown] = read_labels(self._data, self._offsets[unknown], self.path)
        return labels

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


def _map(path: Path) -> mmap:
    try:
        with path.open("rb") as stream:
            return mmap(stream.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error
    except ValueError as error:  # what mmap says of a file without bytes
        raise FileFormatError(path, "expected records, the file is empty.") from error

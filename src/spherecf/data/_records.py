"""RecordIO training sets: ``train.rec``, ``train.idx`` and ``property``, memory-mapped, without MXNet."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from spherecf.data._image import ImageError
from spherecf.data._index import read_index, read_names, read_property
from spherecf.data._keys import NumberKeys
from spherecf.data._layout import find_images, image_labels, spaces
from spherecf.data._recordio import map_records, read_content
from spherecf.data._source import ImageSource
from spherecf.errors import FileFormatError

_MANY = 1 << 22  # identities that a set may have without having as many images


class RecordFile(ImageSource):
    """A RecordIO set; only the pages of records that are read enter memory, and 24 bytes per record.

    Labels are those in the images' own headers. Where there are identity records, their ranges give the
    labels without touching every image: the first and last image of each range are asked, and if they do not
    agree, all images are, as are those at the ends of ranges that float32 rounds (numbers beyond 2^24).
    Header, index and records are checked against each other, so that no image is missing without a word.
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
        if count > max(_MANY, len(labels)):
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

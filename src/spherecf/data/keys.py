"""Names of images without a Python object for each: memory is that of their bytes and 8 more per key."""

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Int64

from spherecf.data.text import read_lines
from spherecf.errors import FileFormatError


class Keys(Sequence[str]):
    """A sequence of strings, each made on access; equal to any sequence of the same strings.

    Slices are lists. It is immutable and, like a list, not hashable.

    Example:
        >>> from spherecf.data import orl_faces
        >>> keys = orl_faces().subset([0, 399]).keys
        >>> keys, keys[-1], keys == ["s1/1.pgm", "s9/9.pgm"]
        (Keys(2: 's1/1.pgm', ...), 's9/9.pgm', True)
    """

    __hash__ = None  # type: ignore[assignment]

    @abstractmethod
    def _get(self, row: int) -> str:
        """The key at ``row``, 0 <= row < len(self)."""

    @overload
    def __getitem__(self, row: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: SupportsIndex | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self._get(each) for each in range(*row.indices(len(self)))]
        position = index(row)
        position += len(self) * (position < 0)
        if not 0 <= position < len(self):
            raise IndexError(f"key {row} of {len(self)}")
        return self._get(position)

    def __iter__(self) -> Iterator[str]:
        return map(self._get, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(key == given for key, given in zip(self, other))

    def __repr__(self) -> str:
        return f"Keys({len(self)}: {', '.join(map(repr, self[:1]))}{', ...' * (len(self) > 1)})"


class NumberKeys(Keys):
    """Whole numbers as strings.

    Example:
        >>> NumberKeys(np.arange(7, 9))[:]
        ['7', '8']
    """

    def __init__(self, numbers: Int64[np.ndarray, " n"]) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def _get(self, row: int) -> str:
        return str(self._numbers.item(row))


class PackedKeys(Keys):
    """Any strings, as one block of UTF-8 and the offsets of their ends.

    Example:
        >>> PackedKeys(["ann/1.jpg", "bob/1.jpg"])[1]
        'bob/1.jpg'
    """

    def __init__(self, keys: Iterable[str]) -> None:
        blob, ends = bytearray(), array("q", [0])
        for key in keys:
            blob += key.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        self._blob, self._ends = bytes(blob), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _get(self, row: int) -> str:
        start, end = self._ends[row : row + 2].tolist()
        return str(self._blob[start:end], "utf-8", "surrogateescape")

    def __reduce_ex__(self, protocol: Any) -> Any:
        made: Any = super().__reduce_ex__(protocol)
        if protocol < 5:
            return made
        kind, arguments, state = made[:3]  # processes may share the bytes of all names
        return kind, arguments, {**state, "_blob": PickleBuffer(self._blob)}


class PickedKeys(Keys):
    """Some keys of another sequence.

    Example:
        >>> PickedKeys("abc", np.array([2, 0]))[:]
        ['c', 'a']
    """

    def __init__(self, keys: Sequence[str], rows: Int64[np.ndarray, " n"]) -> None:
        self._keys, self._rows = keys, rows

    def __len__(self) -> int:
        return len(self._rows)

    def _get(self, row: int) -> str:
        return self._keys[int(self._rows[row])]


def repeats(keys: Sequence[str]) -> list[tuple[int, int]]:
    """(row, earlier row) of every key that is already at an earlier row; 8 bytes per key are needed.

    Example:
        >>> repeats(["a", "b", "a"])
        [(2, 0)]
    """
    hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
    ordered = np.sort(hashes)
    suspects = ordered[1:][ordered[1:] == ordered[:-1]]
    first: dict[str, int] = {}
    rows = np.flatnonzero(np.isin(hashes, suspects)).tolist() if len(suspects) else []
    return [(row, first[keys[row]]) for row in rows if first.setdefault(keys[row], row) != row]


def refuse_duplicates(keys: Sequence[str], where: Any) -> None:
    """Raise `FileFormatError` naming the first keys that occur more than once."""
    twice = list(dict.fromkeys(keys[row] for row, _ in repeats(keys)))
    if twice:
        raise FileFormatError(
            where,
            f"{len(twice)} keys occur more than once: {', '.join(twice[:3])}.",
            "Keys must be unique; remove the copies.",
        )


def read_keys(path: str | Path) -> list[str]:
    """The keys of a text file, one per line; blank lines do not count, and backslashes become slashes.

    Raises:
        FileFormatError: no such file, or not UTF-8 text.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "names.txt"
        >>> _ = path.write_text("ann/1.jpg\\nbob 2.jpg\\n")
        >>> read_keys(path)
        ['ann/1.jpg', 'bob 2.jpg']
    """
    return [line.replace("\\", "/") for _, line in read_lines(Path(path))]

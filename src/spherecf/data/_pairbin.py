"""Pair files (``lfw.bin``, ``cfp_fp.bin``, ...): a pickle of (encoded images, mated flags)."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from spherecf.common.files import describe_content
from spherecf.data._pairs import PairList
from spherecf.data._source import ImageSource
from spherecf.data._unpickle import PlainArray, load_plain_pickle
from spherecf.errors import FileFormatError

_FOLDS = 10


class PairBin(ImageSource):
    """The images of a pair file, in memory; images 2i and 2i+1 are pair i. Identities are unknown.

    The pickle is read by stand-ins only, so a hostile file can run nothing. Images may be bytes (Python 2 or
    3), bytearrays or uint8 arrays, flags bool, 0/1, or NumPy's.

    Attributes:
        pairs: the `PairList`, ten folds in order (as even as the number of pairs allows). Where a fold has
            one kind of pairs only, ``notes`` say so.

    Raises:
        FileFormatError: not such a pickle; the message says what it holds instead.

    Example:
        >>> import pickle, tempfile
        >>> from spherecf.data import orl_faces
        >>> images = [orl_faces().read(index) for index in range(20)]
        >>> path = Path(tempfile.mkdtemp()) / "orl.bin"
        >>> _ = path.write_bytes(pickle.dumps((images, [True] * 10)))
        >>> source = PairBin(path)
        >>> len(source), source.keys[-1], len(source.pairs), source.pairs.folds
        (20, 'orl/000019', 10, 10)
    """

    def __init__(self, path: str | Path, name: str = "") -> None:
        self.path = Path(path)
        self._images, mated = _checked(self.path, load_plain_pickle(self.path))
        name = name or self.path.stem
        super().__init__(name, np.full(len(self._images), -1, np.int64), [])
        self._keys = [f"{name}/{index:06d}" for index in range(len(self._images))]
        folds = fold_numbers(len(mated))
        self.pairs = PairList(name, self._keys[::2], self._keys[1::2], mated, folds)
        one_sided = np.setxor1d(folds[mated], folds[~mated])
        if len(one_sided):
            self.notes.append(
                f"{len(one_sided)} of {self.pairs.folds} folds hold mated pairs alone or non-mated pairs "
                "alone: ten-fold accuracy needs both in each; write the file with both kinds in turn."
            )

    def __reduce__(self) -> tuple[type["PairBin"], tuple[Path, str]]:
        return type(self), (self.path, self.name)

    @property
    def keys(self) -> list[str]:
        return self._keys

    def read(self, index: int) -> bytes:
        return self._images[index]

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return np.fromiter(map(len, self._images), np.int64)


def fold_numbers(pairs: int) -> Int64[np.ndarray, " pairs"]:
    """Fold of each pair when ten folds follow each other, the first ones larger by one if need be.

    Example:
        >>> fold_numbers(12).tolist()
        [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    sizes = np.full(_FOLDS, pairs // _FOLDS) + (np.arange(_FOLDS) < pairs % _FOLDS)
    return np.repeat(np.arange(_FOLDS, dtype=np.int64), sizes)


def _checked(path: Path, content: Any) -> tuple[list[bytes], Bool[np.ndarray, " pairs"]]:
    expected = "expected a pickle of (list of encoded images, list of bool)"
    if not isinstance(content, tuple | list) or len(content) != 2:
        got = f"{type(content).__name__}{f' of {len(content)}' if isinstance(content, tuple | list) else ''}"
        raise FileFormatError(path, f"{expected}, got {got}. The file is {describe_content(path)}.")
    columns = [column.items() if isinstance(column, PlainArray) else column for column in content]
    if not all(isinstance(column, list | tuple) for column in columns):
        raise FileFormatError(
            path, f"{expected}, got ({', '.join(type(column).__name__ for column in columns)})."
        )
    if len(columns[0]) != 2 * len(columns[1]) or not columns[1]:
        raise FileFormatError(
            path,
            f"expected two images for each flag, got {len(columns[0])} images and {len(columns[1])} flags.",
        )
    texts: dict[int, bytes] = {}  # by identity: a text that is listed again takes no memory again
    images = [
        item if isinstance(item, bytes) else _image(path, index, item, texts)
        for index, item in enumerate(columns[0])
    ]
    flags = [_flag(path, index, item) for index, item in enumerate(columns[1])]
    return images, np.array(flags, bool)


def _image(path: Path, index: int, item: Any, texts: dict[int, bytes]) -> bytes:
    if isinstance(item, PlainArray) and item.dtype is np.uint8 and item.flat:
        return bytes(item.content)
    if isinstance(item, str) and id(item) not in texts:  # bytes of Python 2, taken for latin-1
        try:
            texts[id(item)] = item.encode("latin-1")
        except UnicodeEncodeError as error:
            raise FileFormatError(path, f"image {index}: expected encoded bytes, got text.") from error
    if id(item) in texts:
        return texts[id(item)]
    kind = str(item) if isinstance(item, PlainArray) else type(item).__name__
    raise FileFormatError(path, f"image {index}: expected encoded bytes, got {kind}.")


def _flag(path: Path, index: int, item: Any) -> bool:
    if isinstance(item, int | float) and item in (0, 1):
        return bool(item)
    shown = repr(item[:40]) if isinstance(item, str) else type(item).__name__
    if isinstance(item, int | float) and abs(item) < 2**63:
        shown = str(item)
    raise FileFormatError(path, f"flag {index}: expected True or False, got {shown}.")

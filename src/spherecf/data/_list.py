"""List files: one ``image_path label`` per line."""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64

from spherecf.data._folder import file_sizes, read_image_file
from spherecf.data._keys import PackedKeys, repeats
from spherecf.data._source import ImageSource
from spherecf.errors import FileFormatError


class ListFile(ImageSource):
    """A text file of lines ``image_path label``, separated by a tab or by the last blank; keys are the paths.

    Labels may be numbers or names; identities come in numeric order when all are whole numbers, else in
    alphabetical order, and are numbered from 0 (``identities[label]`` is what the file says). -1 means
    unknown. Empty lines and lines starting with ``#`` do not count.

    Args:
        path: the list.
        root: where relative paths start; the folder of the list by default.

    Raises:
        FileFormatError: with the line number, if a line does not fit, a path comes twice, or the first image
            is missing.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces
        >>> path = Path(tempfile.mkdtemp()) / "list.txt"
        >>> _ = path.write_text("s1/1.pgm Ann\\ns2/1.pgm Bo\\ns1/2.pgm Ann\\n")
        >>> source = ListFile(path, root=orl_faces().root)
        >>> source.identities, source.labels.tolist()
        (['Ann', 'Bo'], [0, 1, 0])
    """

    def __init__(self, path: str | Path, root: str | Path | None = None, name: str = "") -> None:
        self.path = Path(path)
        self.root = Path(root) if root is not None else self.path.parent
        self._lines, tokens = array("q"), _Tokens()
        self._keys = PackedKeys(self._parse(tokens))
        if not self._keys:
            raise FileFormatError(path, "expected lines `image_path label`, the file has none.")
        for row, earlier in repeats(self._keys)[:1]:
            raise FileFormatError(
                path,
                f"line {self._lines[row]}: {self._keys[row]} is already on line {self._lines[earlier]}.",
                "Remove one of them.",
            )
        first = self.root / self._keys[0]
        if not first.exists():  # the usual mistake is a wrong root: say so at once, not an hour later
            raise FileFormatError(
                path,
                f"line {self._lines[0]}: no such image {first}.",
                "Give the folder that the paths start from as root.",
            )
        labels, identities = tokens.ordered()
        super().__init__(name or self.path.stem, labels, identities)

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def read(self, index: int) -> bytes:
        return read_image_file(self.root, self._keys[index], self.where, index)

    def where(self, index: int) -> str:
        return f"{self.path} line {self._lines[index]}: {self._keys[index]}"

    def _parse(self, tokens: "_Tokens") -> Iterator[str]:
        """The keys, line by line; what else the lines say goes into ``tokens`` and ``_lines``."""
        for number, line in iter_lines(self.path):
            if line.startswith("#"):
                continue
            fields = line.split("\t") if "\t" in line else line.rsplit(maxsplit=1)
            if len(fields) != 2 or not all(field.strip() for field in fields):
                raise FileFormatError(
                    self.path, f"line {number}: expected `image_path label`, got {line[:80]!r}."
                )
            self._lines.append(number)
            tokens.add(fields[1].strip())
            yield str(PurePosixPath(fields[0].strip()))

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return file_sizes(self.root / key for key in self._keys)


class _Tokens:
    """The labels as the file says them, each kept once, and for every image which one it is."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._images = array("q")

    def add(self, token: str) -> None:
        self._images.append(self._known.setdefault(token, len(self._known)))

    def ordered(self) -> tuple[Int64[np.ndarray, " n"], list[str]]:
        """(labels, identities): in numeric order if all are whole numbers, -1 unknown."""
        known = self._known.keys() - {"-1"}
        identities = sorted(known, key=int) if all(map(_is_number, known)) else sorted(known)
        index = {identity: row for row, identity in enumerate(identities)} | {"-1": -1}
        return np.array([index[token] for token in self._known], np.int64)[np.array(self._images)], identities


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, line) for the lines that are not blank.

    Raises:
        FileFormatError: no such file, or not UTF-8 text.
    """
    return list(iter_lines(path))


def iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The same, one by one."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if text := line.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise FileFormatError(path, f"expected UTF-8 text, byte {_bad_byte(path)} is not.") from error
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error


def _bad_byte(path: Path) -> int:
    """Where the first byte stands that is no UTF-8."""
    position = 0
    with path.open("rb") as stream:
        for line in stream:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return position + error.start
            position += len(line)
    return position


def _is_number(token: str) -> bool:
    return token.lstrip("-").isascii() and token.lstrip("-").isdecimal()

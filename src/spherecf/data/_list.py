"""List files: one ``image_path label`` per line."""

from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int64

from spherecf.data._folder import file_sizes, read_image_file
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
        keys, tokens, self._lines = _parse(self.path)
        first = self.root / keys[0]
        if not first.exists():  # the usual mistake is a wrong root: say so at once, not an hour later
            raise FileFormatError(
                path,
                f"line {self._lines[0]}: no such image {first}.",
                "Give the folder that the paths start from as root.",
            )
        known = set(tokens) - {"-1"}
        identities = sorted(known, key=int) if all(map(_is_number, known)) else sorted(known)
        index = {identity: row for row, identity in enumerate(identities)} | {"-1": -1}
        labels = np.array([index[token] for token in tokens], np.int64)
        super().__init__(name or self.path.stem, labels, identities)
        self._keys = keys

    @property
    def keys(self) -> list[str]:
        return self._keys

    def read(self, index: int) -> bytes:
        where = f"{self.path} line {self._lines[index]}"
        return read_image_file(self.root / self._keys[index], where)

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return file_sizes(self.root / key for key in self._keys)


def _parse(path: Path) -> tuple[list[str], list[str], list[int]]:
    seen: dict[str, int] = {}
    tokens: list[str] = []
    for number, line in read_lines(path):
        if line.startswith("#"):
            continue
        fields = line.split("\t") if "\t" in line else line.rsplit(maxsplit=1)
        if len(fields) != 2 or not all(field.strip() for field in fields):
            raise FileFormatError(path, f"line {number}: expected `image_path label`, got {line[:80]!r}.")
        key = str(PurePosixPath(fields[0].strip()))
        if key in seen:
            raise FileFormatError(
                path, f"line {number}: {key} is already on line {seen[key]}.", "Remove one of them."
            )
        seen[key] = number
        tokens.append(fields[1].strip())
    if not seen:
        raise FileFormatError(path, "expected lines `image_path label`, the file has none.")
    return list(seen), tokens, list(seen.values())


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, line) for the lines that are not blank.

    Raises:
        FileFormatError: no such file, or not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(path, f"expected UTF-8 text, byte {error.start} is not.") from error
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _is_number(token: str) -> bool:
    return token.lstrip("-").isascii() and token.lstrip("-").isdecimal()

"""Text files as people have them: numbered lines, cells, names of images."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from spherecf.errors import FileFormatError

SEPARATORS = ("\t", ",", ";", None)
"""What stands between cells, in the order in which it is looked for; None is blanks."""

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_LONGEST = 255  # bytes of one part of a path, on all usual file systems
UTF16 = (b"\xff\xfe", b"\xfe\xff")


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
        raise _no_utf8(path) from error
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error


def split_cells(line: str, separator: str | None) -> list[str]:
    """The cells of a line without blanks around them, none where quotes do not close.

    Example:
        >>> split_cells('"Lee, Ann/1.jpg",1', ","), split_cells("a b  c", None)
        (['Lee, Ann/1.jpg', '1'], ['a', 'b', 'c'])
    """
    if separator is None or separator == "\t":
        return [cell.strip() for cell in line.split(separator)]
    try:
        (cells,) = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
    except csv.Error:
        return []
    return [cell.strip() for cell in cells]


def check_name(path: Path, number: int, name: str) -> None:
    """Refuse what can be no name of an image on this machine.

    Raises:
        FileFormatError: empty, too long, with a zero byte, or below a drive of Windows.
    """
    if not name or "\0" in name:
        raise FileFormatError(path, f"line {number}: expected the path of an image, got {name[:80]!r}.")
    if name[1:2] == ":" and _DRIVE.match(name):
        raise FileFormatError(
            path,
            f"line {number}: {name[:80]!r} starts at a drive of Windows.",
            "Write the paths relative to the folder of the images, say Ann/1.jpg.",
        )
    if len(name) * 4 <= _LONGEST:  # most are: no character takes more than 4 bytes
        return
    longest = max(len(part.encode("utf-8", "surrogateescape")) for part in re.split(r"[\\/]", name))
    if longest > _LONGEST:
        raise FileFormatError(
            path, f"line {number}: a name of {longest} bytes, {name[:40]!r}...; none is longer than 255."
        )


def _no_utf8(path: Path) -> FileFormatError:
    """Where the first byte stands that is no UTF-8."""
    position = 0
    with path.open("rb") as stream:
        for line in stream:
            if not position and line.startswith(UTF16):
                return FileFormatError(path, "expected UTF-8 text, this is UTF-16.", "Save it as UTF-8.")
            try:
                line.decode()
            except UnicodeDecodeError as error:
                position += error.start
                break
            position += len(line)
    return FileFormatError(
        path,
        f"expected UTF-8 text, byte {position} is not.",
        "If it is Latin-1 (or cp1252), convert it: iconv -f CP1252 -t UTF-8 FILE.",
    )

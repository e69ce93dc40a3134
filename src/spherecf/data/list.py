"""List files: one ``image_path label`` per line, and the ``.lst`` files of MXNet and insightface."""

import os
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from spherecf.common.files import describe_content
from spherecf.common.parsing import composed, has_image_suffix, identity_order, is_number, is_whole
from spherecf.data.folder import file_sizes, read_image_file
from spherecf.data.source import ImageSource
from spherecf.data.text import PackedKeys, check_name, iter_lines, repeats, split_cells
from spherecf.errors import FileFormatError

_LISTS = (
    "Known are `image_path label` (a tab, a comma or the last blank between them), "
    "`index<TAB>label<TAB>image_path` (.lst of MXNet) and `aligned<TAB>image_path<TAB>label` (.lst of "
    "insightface)."
)
_INSIGHTFACE_WIDTHS = (3, 7, 17)  # with a box, with a box and five landmarks
_IMAGE_WORDS = (
    "image", "imagepath", "img", "imgpath", "path", "file", "filename", "filepath", "key", "imagename",
)  # fmt: skip
_LABEL_WORDS = (
    "label", "identity", "identityid", "id", "class", "classid", "subject", "person", "target", "name",
)  # fmt: skip
_SHOWN = 3
_UNTIDY = re.compile(r"//|/$|(?:^|/)\.(?:/|$)")


class _Layout(NamedTuple):
    name: str
    separator: str | None
    widths: tuple[int, ...]
    image: int
    label: int


class ListFile(ImageSource):
    """A text file of lines ``image_path label``, separated by a tab, a comma or the last blank; keys are the
    paths.

    A ``.lst`` opens too, of MXNet (``index<TAB>label<TAB>image_path``; of several labels the first) or of
    insightface (``aligned<TAB>image_path<TAB>label``, perhaps box and landmarks behind); the first line tells
    which. It may also be a header such as ``path,label``.

    Labels may be numbers or names; identities come in numeric order when all are whole numbers (``3.000000``
    is 3), else in alphabetical order, and are numbered from 0 (``identities[label]`` is what the file says).
    -1 means unknown. Empty lines and lines starting with ``#`` do not count. Backslashes separate folders,
    unless the first path that has one is there as it stands. Names of one person in two Unicode forms are one
    identity, and an image is found under the other form of its name.

    Attributes:
        notes: what of this was needed.

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
        self._lines, tokens, notes = array("q"), _Tokens(), dict[str, int]()
        self._keys = PackedKeys(self._parse(tokens, notes))
        if not self._keys:
            raise FileFormatError(path, "expected lines `image_path label`, the file has none.", _LISTS)
        for row, earlier in repeats(self._keys)[:1]:
            raise FileFormatError(
                path,
                f"line {self._lines[row]}: {self._keys[row]} is already on line {self._lines[earlier]}.",
                "Remove one of them.",
            )
        self._require_first()  # the usual mistake is a wrong root: say so at once, not an hour later
        labels, identities = tokens.ordered(self.path, self._lines)
        super().__init__(name or self.path.stem, labels, identities)
        self.notes = [f"{text} ({count} lines)" for text, count in notes.items()]

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def read(self, index: int) -> bytes:
        return read_image_file(self.root, self._keys[index], self.where, index)

    def where(self, index: int) -> str:
        return f"{self.path} line {self._lines[index]}: {self._keys[index]}"

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return file_sizes(self.root, self._keys)

    def _parse(self, tokens: "_Tokens", notes: dict[str, int]) -> Iterator[str]:
        """The keys, line by line; what else the lines say goes into ``tokens``, ``notes`` and ``_lines``."""
        layout: _Layout | None = None
        for number, line in iter_lines(self.path):
            if line.startswith("#"):
                continue
            if layout is None:
                layout, is_header = _layout(self.path, number, line)
                if is_header:
                    continue
            cells = _cells(line, layout)
            if len(cells) not in layout.widths or not cells[layout.image] or not cells[layout.label]:
                raise FileFormatError(
                    self.path,
                    f"line {number}: expected {layout.name}, got {line[:80]!r}{_kind(self.path)}.",
                    _LISTS,
                )
            check_name(self.path, number, cells[layout.image])
            self._lines.append(number)
            tokens.add(composed(cells[layout.label]))
            yield self._on_disk(_tidy(cells[layout.image]), notes)

    def _on_disk(self, name: str, notes: dict[str, int]) -> str:
        """The name as the file system has it, with slashes, and in the Unicode form that is there."""
        if "\\" in name and (_BACKSLASH in notes or not os.path.exists(self.root / name)):  # noqa: PTH110
            name = _tidy(name.replace("\\", "/"))
            notes[_BACKSLASH] = notes.get(_BACKSLASH, 0) + 1
        if name.isascii() or os.path.exists(self.root / name):  # noqa: PTH110, pathlib's may raise
            return name
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, name)
            if other != name and os.path.exists(self.root / other):  # noqa: PTH110
                notes[_FORMS] = notes.get(_FORMS, 0) + 1
                return other
        return name

    def _require_first(self) -> None:
        """Refuse a list whose first image is not there, and say how many are not."""
        first = self.root / self._keys[0]
        if first.is_file():
            return
        if first.is_dir():
            raise FileFormatError(
                self.path, f"line {self._lines[0]}: {self._keys[0][:80]!r} is a folder, not an image.", _LISTS
            )
        missing = np.flatnonzero(self.sizes() < 0)
        shown = ", ".join(
            f"{self._keys[row][:80]} (line {self._lines[row]})" for row in missing[:_SHOWN].tolist()
        )
        raise FileFormatError(
            self.path,
            f"line {self._lines[0]}: no such image {str(first)[:200]}; {len(missing)} of {len(self._keys)} "
            f"are missing: {shown}{', ...' * (len(missing) > _SHOWN)}{_kind(self.path)}.",
            "Give the folder that the paths start from as root."
            if len(missing) == len(self._keys)
            else "Bring them, or take their lines out.",
        )


_BACKSLASH = "backslashes are read as separators of folders"
_FORMS = "names are spelt in the other Unicode form on disk"


def _kind(path: Path) -> str:
    """What the file is, in brackets, if it is no common text."""
    kind = describe_content(path)
    return "" if kind.startswith("a text") else f" (it is {kind})"


def _tidy(name: str) -> str:
    """Without ``.`` and double slashes; most names have none, and a path object for each costs time."""
    return str(PurePosixPath(name)) if _UNTIDY.search(name) else name


def _layout(path: Path, number: int, line: str) -> tuple[_Layout, bool]:
    """How the lines are cut, as the first one tells, and whether it is a header."""
    if "\t" in line:
        cells = split_cells(line, "\t")
        return (
            (_two_columns(cells, "\t"), _is_header(cells))
            if len(cells) == 2
            else (_lst(path, number, cells), False)
        )
    blanks = line.split()
    if len(blanks) > 2 and has_image_suffix(blanks[-1]) and _is_mxnet(blanks):
        return _mxnet(len(blanks), None), False
    for separator in (",", ";"):
        cells = split_cells(line, separator)
        if len(cells) == 2 and (len(blanks) < 2 or _is_header(cells) or any(map(has_image_suffix, cells))):
            return _two_columns(cells, separator), _is_header(cells)
    cells = line.rsplit(maxsplit=1)
    return _two_columns(cells, None), _is_header(cells)


def _two_columns(cells: Sequence[str], separator: str | None) -> _Layout:
    first = _is_header(cells) and _word(cells[0]) in _LABEL_WORDS and _word(cells[1]) in _IMAGE_WORDS
    if first or (len(cells) == 2 and is_whole(cells[0]) and has_image_suffix(cells[1])):
        return _Layout("`label image_path`", separator, (2,), 1, 0)
    return _Layout("`image_path label`", separator, (2,), 0, 1)


def _is_header(cells: Sequence[str]) -> bool:
    words = set(map(_word, cells))
    return len(cells) == 2 and not words.isdisjoint(_IMAGE_WORDS) and not words.isdisjoint(_LABEL_WORDS)


def _word(cell: str) -> str:
    """What a cell of a header says, however it is spaced."""
    return cell.lower().replace("_", "").replace(" ", "")


def _lst(path: Path, number: int, cells: list[str]) -> _Layout:
    """Of MXNet or of insightface, by where the path stands; both readings are refused."""
    mxnet = _is_mxnet(cells)
    insightface = (
        len(cells) in _INSIGHTFACE_WIDTHS and cells[0] in ("0", "1") and all(map(is_number, cells[2:]))
    )
    if mxnet and insightface:
        raise FileFormatError(
            path, f"line {number}: {cells[1]!r} could be the label and {cells[-1]!r} the path (MXNet), "
            f"or {cells[1]!r} the path and {cells[2]!r} the label (insightface).",
            "Write lines `image_path<TAB>label`.",
        )  # fmt: skip
    if not mxnet and not insightface:
        shown = "\t".join(cells)[:80]
        raise FileFormatError(path, f"line {number}: expected `image_path label`, got {shown!r}.", _LISTS)
    if mxnet:
        return _mxnet(len(cells), "\t")
    return _Layout("`aligned<TAB>image_path<TAB>label` (.lst)", "\t", _INSIGHTFACE_WIDTHS, 1, 2)


def _is_mxnet(cells: Sequence[str]) -> bool:
    return is_whole(cells[0]) and len(cells) > 2 and all(map(is_number, cells[1:-1]))


def _mxnet(width: int, separator: str | None) -> _Layout:
    return _Layout("`index<TAB>label<TAB>image_path` (.lst)", separator, (width,), width - 1, 1)


def _cells(line: str, layout: _Layout) -> list[str]:
    if layout.separator in (None, "\t") and layout.widths == (2,):
        if "\t" in line:
            return split_cells(line, "\t")
        return line.split(maxsplit=1) if layout.label == 0 else line.rsplit(maxsplit=1)
    return split_cells(line, layout.separator)


class _Tokens:
    """The labels as the file says them, each kept once, and for every image which one it is."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._images = array("q")

    def add(self, token: str) -> None:
        self._images.append(self._known.setdefault(token, len(self._known)))

    def ordered(self, path: Path, lines: Sequence[int]) -> tuple[Int64[np.ndarray, " n"], list[str]]:
        """(labels, identities): in numeric order if all are numbers, -1 unknown.

        Raises:
            FileFormatError: all are numbers, but one is not whole.
        """
        images = np.array(self._images)
        names = [*self._known]
        if not all(map(is_whole, names)) and all(map(is_number, names)):
            names = [_whole(name) or name for name in names]
            for row, name in enumerate(names):
                if not is_whole(name):
                    line = lines[int(np.argmax(images == row))]
                    raise FileFormatError(
                        path,
                        f"line {line}: label {name[:40]!r} is no whole number; all labels are numbers.",
                    )
        identities = identity_order({*names} - {"-1"})
        index = {identity: row for row, identity in enumerate(identities)} | {"-1": -1}
        return np.array([index[name] for name in names], np.int64)[images], identities


def _whole(token: str) -> str:
    """``3`` of ``3.000000``; empty if it is no whole number of at most 18 digits."""
    try:
        number = Decimal(token)
    except InvalidOperation:
        return ""
    if not number.is_finite() or number.copy_abs() >= 10**18 or number != int(number):
        return ""
    return str(int(number))

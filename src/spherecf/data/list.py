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
    "Supported lines: `image_path label` (separated by a tab, a comma or the last space), "
    "`index<TAB>label<TAB>image_path` (MXNet's .lst) and `aligned<TAB>image_path<TAB>label` (insightface's "
    ".lst)."
)
_INSIGHTFACE_WIDTHS = (3, 7, 17)  # cells: plain, with a box, with a box and five landmarks
_IMAGE_WORDS = (
    "image", "imagepath", "img", "imgpath", "path", "file", "filename", "filepath", "key", "imagename",
)  # fmt: skip
_LABEL_WORDS = (
    "label", "identity", "identityid", "id", "class", "classid", "subject", "person", "target", "name",
)  # fmt: skip
_MAX_QUOTED = 3  # missing images named in a message
_NOT_NORMALISED = re.compile(r"//|/$|(?:^|/)\.(?:/|$)")


class _Layout(NamedTuple):
    name: str
    separator: str | None
    widths: tuple[int, ...]
    image: int
    label: int


class ListFile(ImageSource):
    """A text file of lines ``image_path label``, separated by a tab, a comma or the last space; keys are the
    paths.

    ``.lst`` files are read as well: MXNet's (``index<TAB>label<TAB>image_path``; of several labels the first)
    and insightface's (``aligned<TAB>image_path<TAB>label``, optionally followed by box and landmarks). The
    layout is inferred from the first line, which may also be a header such as ``path,label``.

    Labels are numbers or names. Identities are sorted numerically if all are whole numbers (``3.000000`` is
    3), otherwise alphabetically, and numbered from 0; ``identities[label]`` is the label as written in the
    file. -1 means unknown. Empty lines and lines starting with ``#`` are ignored. Backslashes are read as
    folder separators, unless the first path that contains one exists as written. Labels that differ only in
    Unicode form are one identity, and an image is also found under the other Unicode form of its name.

    Attributes:
        notes: which of these adjustments were made.

    Args:
        path: the list.
        root: folder that relative paths start from; by default the folder of the list.

    Raises:
        FileFormatError: with the line number, if a line does not fit the layout, a path is listed twice, or
            the first image is missing.

    Example:
        >>> from pathlib import Path
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
            raise FileFormatError(path, "expected lines `image_path label`, but the file has none.", _LISTS)
        for row, earlier in repeats(self._keys)[:1]:
            raise FileFormatError(
                path,
                f"line {self._lines[row]}: {self._keys[row]} is already on line {self._lines[earlier]}.",
                "Remove one of them.",
            )
        self._require_first()  # the usual mistake is a wrong root: report it now, not an hour later
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
        """Yield the keys, line by line; fill ``tokens`` (labels), ``notes`` and ``_lines`` (line numbers)."""
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
                    f"line {number}: expected {layout.name}, got {line[:80]!r}{_content_note(self.path)}.",
                    _LISTS,
                )
            check_name(self.path, number, cells[layout.image])
            self._lines.append(number)
            tokens.add(composed(cells[layout.label]))
            yield self._name_on_disk(_normalise_path(cells[layout.image]), notes)

    def _name_on_disk(self, name: str, notes: dict[str, int]) -> str:
        """The name as it exists on disk: with slashes, and in the Unicode form of the file name."""
        if "\\" in name and (_BACKSLASH in notes or not os.path.exists(self.root / name)):  # noqa: PTH110
            name = _normalise_path(name.replace("\\", "/"))
            notes[_BACKSLASH] = notes.get(_BACKSLASH, 0) + 1
        if name.isascii() or os.path.exists(self.root / name):  # noqa: PTH110, pathlib may raise
            return name
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, name)
            if other != name and os.path.exists(self.root / other):  # noqa: PTH110
                notes[_FORMS] = notes.get(_FORMS, 0) + 1
                return other
        return name

    def _require_first(self) -> None:
        """Reject a list whose first image is missing; the message counts all missing images."""
        first = self.root / self._keys[0]
        if first.is_file():
            return
        if first.is_dir():
            raise FileFormatError(
                self.path, f"line {self._lines[0]}: {self._keys[0][:80]!r} is a folder, not an image.", _LISTS
            )
        missing = np.flatnonzero(self.sizes() < 0)
        examples = ", ".join(
            f"{self._keys[row][:80]} (line {self._lines[row]})" for row in missing[:_MAX_QUOTED].tolist()
        )
        raise FileFormatError(
            self.path,
            f"line {self._lines[0]}: no such image {str(first)[:200]}; {len(missing)} of {len(self._keys)} "
            "images are missing: "
            f"{examples}{', ...' * (len(missing) > _MAX_QUOTED)}{_content_note(self.path)}.",
            "Pass the folder that the paths start from as root."
            if len(missing) == len(self._keys)
            else "Add the missing images, or remove their lines.",
        )


_BACKSLASH = "backslashes are read as folder separators"
_FORMS = "file names on disk are in the other Unicode form"


def _content_note(path: Path) -> str:
    """What kind of file it is, in brackets; empty for plain text."""
    kind = describe_content(path)
    return "" if kind.startswith("a text") else f" (it is {kind})"


def _normalise_path(name: str) -> str:
    """The path without ``.`` parts and double slashes; a path object is made only where it has some."""
    return str(PurePosixPath(name)) if _NOT_NORMALISED.search(name) else name


def _layout(path: Path, number: int, line: str) -> tuple[_Layout, bool]:
    """(layout inferred from the first line, whether that line is a header)."""
    if "\t" in line:
        cells = split_cells(line, "\t")
        return (
            (_two_columns(cells, "\t"), _is_header(cells))
            if len(cells) == 2
            else (_lst_layout(path, number, cells), False)
        )
    words = line.split()
    if len(words) > 2 and has_image_suffix(words[-1]) and _is_mxnet(words):
        return _mxnet_layout(len(words), None), False
    for separator in (",", ";"):
        cells = split_cells(line, separator)
        if len(cells) == 2 and (len(words) < 2 or _is_header(cells) or any(map(has_image_suffix, cells))):
            return _two_columns(cells, separator), _is_header(cells)
    cells = line.rsplit(maxsplit=1)
    return _two_columns(cells, None), _is_header(cells)


def _two_columns(cells: Sequence[str], separator: str | None) -> _Layout:
    first = (
        _is_header(cells)
        and _header_word(cells[0]) in _LABEL_WORDS
        and _header_word(cells[1]) in _IMAGE_WORDS
    )
    if first or (len(cells) == 2 and is_whole(cells[0]) and has_image_suffix(cells[1])):
        return _Layout("`label image_path`", separator, (2,), 1, 0)
    return _Layout("`image_path label`", separator, (2,), 0, 1)


def _is_header(cells: Sequence[str]) -> bool:
    words = set(map(_header_word, cells))
    return len(cells) == 2 and not words.isdisjoint(_IMAGE_WORDS) and not words.isdisjoint(_LABEL_WORDS)


def _header_word(cell: str) -> str:
    """A header cell in lower case, without spaces and underscores."""
    return cell.lower().replace("_", "").replace(" ", "")


def _lst_layout(path: Path, number: int, cells: list[str]) -> _Layout:
    """MXNet's or insightface's layout, by the column of the path; a line that fits both is rejected."""
    mxnet = _is_mxnet(cells)
    insightface = (
        len(cells) in _INSIGHTFACE_WIDTHS and cells[0] in ("0", "1") and all(map(is_number, cells[2:]))
    )
    if mxnet and insightface:
        raise FileFormatError(
            path, f"line {number} is ambiguous: {cells[1]!r} could be the label and {cells[-1]!r} the path "
            f"(MXNet), or {cells[1]!r} the path and {cells[2]!r} the label (insightface).",
            "Write lines `image_path<TAB>label` instead.",
        )  # fmt: skip
    if not mxnet and not insightface:
        quoted = "\t".join(cells)[:80]
        raise FileFormatError(path, f"line {number}: expected `image_path label`, got {quoted!r}.", _LISTS)
    if mxnet:
        return _mxnet_layout(len(cells), "\t")
    return _Layout("`aligned<TAB>image_path<TAB>label` (.lst)", "\t", _INSIGHTFACE_WIDTHS, 1, 2)


def _is_mxnet(cells: Sequence[str]) -> bool:
    return is_whole(cells[0]) and len(cells) > 2 and all(map(is_number, cells[1:-1]))


def _mxnet_layout(width: int, separator: str | None) -> _Layout:
    return _Layout("`index<TAB>label<TAB>image_path` (.lst)", separator, (width,), width - 1, 1)


def _cells(line: str, layout: _Layout) -> list[str]:
    if layout.separator in (None, "\t") and layout.widths == (2,):
        if "\t" in line:
            return split_cells(line, "\t")
        return line.split(maxsplit=1) if layout.label == 0 else line.rsplit(maxsplit=1)
    return split_cells(line, layout.separator)


class _Tokens:
    """The distinct labels as written in the file, and for each image the index of its label."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._image_tokens = array("q")

    def add(self, token: str) -> None:
        self._image_tokens.append(self._index.setdefault(token, len(self._index)))

    def ordered(self, path: Path, lines: Sequence[int]) -> tuple[Int64[np.ndarray, " n"], list[str]]:
        """(label of each image, -1 if unknown; identities, sorted numerically if all are numbers).

        Raises:
            FileFormatError: all labels are numbers, but one is not a whole number.
        """
        image_tokens = np.array(self._image_tokens)
        names = [*self._index]
        if not all(map(is_whole, names)) and all(map(is_number, names)):
            names = [_whole(name) or name for name in names]
            for row, name in enumerate(names):
                if not is_whole(name):
                    line = lines[int(np.argmax(image_tokens == row))]
                    raise FileFormatError(
                        path,
                        f"line {line}: label {name[:40]!r} is not a whole number, but all labels are "
                        "numbers.",
                        "Write whole numbers, or names.",
                    )
        identities = identity_order({*names} - {"-1"})
        index = {identity: row for row, identity in enumerate(identities)} | {"-1": -1}
        return np.array([index[name] for name in names], np.int64)[image_tokens], identities


def _whole(token: str) -> str:
    """``3`` for ``3.000000``; empty if it is not a whole number of at most 18 digits."""
    try:
        number = Decimal(token)
    except InvalidOperation:
        return ""
    if not number.is_finite() or number.copy_abs() >= 10**18 or number != int(number):
        return ""
    return str(int(number))

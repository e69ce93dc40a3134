"""Which group an image, a person or a template belongs to: a two-column CSV."""

from pathlib import Path
from typing import NamedTuple

from spherecf.common.names import composed
from spherecf.data.text import iter_lines, split_cells
from spherecf.errors import FileFormatError

_KINDS = {"key": "image", "image": "image", "subject": "subject", "template": "template"}


class Groups(NamedTuple):
    """Groups by name."""

    of: str
    """What the names are of: "image", "subject" or "template"."""
    groups: dict[str, str]


def read_groups(path: str | Path) -> Groups:
    """Read lines ``name,group`` below a header that says what the names are of.

    The header's first word is ``image`` (or ``key``), ``subject`` or ``template``; names may hold commas, the
    last one separates. Names may stand in quotes; they come in composed Unicode form, those of images with
    slashes. Blank lines do not count.

    Raises:
        FileFormatError: with the line number: another header, a line without a comma, a name in two groups.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "groups.csv"
        >>> _ = path.write_text("subject,group\\nAnn_Lee,A\\nBo_Ray,B\\n")
        >>> read_groups(path)
        Groups(of='subject', groups={'Ann_Lee': 'A', 'Bo_Ray': 'B'})
    """
    path = Path(path)
    kind, groups = "", dict[str, str]()
    for number, line in iter_lines(path):
        cells = split_cells(line, ",") if '"' in line else []
        name, group = cells if len(cells) == 2 else map(str.strip, line.rpartition(",")[::2])
        name = composed(name).replace("\\", "/") if kind == "image" else composed(name)
        if not kind:
            if name not in _KINDS or group != "group":
                raise FileFormatError(
                    path, f"line {number}: expected the header `image,group`, `subject,group` or "
                    f"`template,group`, got {line[:80]!r}."
                )  # fmt: skip
            kind = _KINDS[name]
        elif not name or not group:
            raise FileFormatError(path, f"line {number}: expected `{kind},group`, got {line[:80]!r}.")
        elif groups.setdefault(name, group) != group:
            raise FileFormatError(
                path,
                f"line {number}: {kind} {name!r} is in group {group!r} here and in {groups[name]!r} above.",
            )
    if not groups:
        raise FileFormatError(path, "expected a header and lines `image,group`, the file has none.")
    return Groups(kind, groups)

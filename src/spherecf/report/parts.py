"""What a report is made of: tables, plots, strips of pictures, and sections of these."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spherecf.errors import InputError


@dataclass(frozen=True)
class Strip:
    """A row of pictures with a line under each.

    Args:
        title: what they are and how they are sorted.
        images: encoded PNG or JPEG, as bytes.
        captions: one per image, e.g. "κ 512".
        beside: of pairs, the second picture of each, shown to the right of the first.

    Raises:
        InputError: numbers differ, or an image is neither PNG nor JPEG.
    """

    title: str
    images: Sequence[bytes]
    captions: Sequence[str]
    beside: Sequence[bytes] = ()

    def __post_init__(self) -> None:
        if len(self.images) != len(self.captions) or len(self.beside) not in (0, len(self.images)):
            raise InputError(
                f"strip {self.title!r}: {len(self.images)} images, {len(self.captions)} captions, "
                f"{len(self.beside)} images beside"
            )
        for place, image in enumerate([*self.images, *self.beside]):
            media_type(image, f"strip {self.title!r}, image {place}")

    def to_dict(self) -> dict[str, Any]:
        """Title and captions; pictures stay in the page."""
        return {"title": self.title, "captions": list(self.captions)}


@dataclass(frozen=True)
class Table:
    """A summary table.

    Args:
        title: above it.
        header: names of the columns.
        rows: of as many entries as the header; numbers as text.
        note: a sentence below it, how to read it.
        signatures: one per row, where rows are results: everything their numbers depend on.

    Raises:
        InputError: a row is longer or shorter than the header, or signatures are fewer or more than rows.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    signatures: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.signatures and len(self.signatures) != len(self.rows):
            raise InputError(
                f"table {self.title!r}: {len(self.rows)} rows, {len(self.signatures)} signatures"
            )
        for place, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise InputError(
                    f"table {self.title!r}: row {place} has {len(row)} entries, the header {len(self.header)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return asdict(self)


@dataclass(frozen=True)
class Plot:
    """A drawing as inline SVG, its caption, and what it shows in words for those who do not see it."""

    svg: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Section:
    """A part of a report: what one protocol found.

    Args:
        title: of the section.
        notes: sentences at its top.
        tables: of results.
        plots: from `line_plot`, `det_lines` or `histogram_plot`.
        strips: rows of pictures.
    """

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    strips: Sequence[Strip] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists: plots as their words, strips as their captions."""
        return {
            "title": self.title,
            "notes": list(self.notes),
            "tables": [table.to_dict() for table in self.tables],
            "plots": [{"caption": plot.caption, "alt": plot.alt} for plot in self.plots],
            "strips": [strip.to_dict() for strip in self.strips],
        }


def media_type(image: bytes, where: str) -> str:
    """Of an encoded picture, by its first bytes."""
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    if image[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    raise InputError(f"{where}: expected an encoded PNG or JPEG, got bytes starting {bytes(image[:8])!r}")

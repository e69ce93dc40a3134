"""What a report is made of beside pair lists: tables, plots, strips of pictures, and sections of these."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError


@dataclass(frozen=True)
class Strip:
    """A row of pictures with a line under each.

    Args:
        title: what they are and how they are sorted.
        images: encoded PNG or JPEG, as bytes.
        captions: one per image, e.g. "κ 512".

    Raises:
        InputError: numbers differ, or an image is neither PNG nor JPEG.
    """

    title: str
    images: Sequence[bytes]
    captions: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.captions):
            raise InputError(
                f"strip {self.title!r}: {len(self.images)} images, {len(self.captions)} captions"
            )
        for place, image in enumerate(self.images):
            media_type(image, f"strip {self.title!r}, image {place}")


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
        plots: from `line_plot`.
        strips: rows of pictures.
    """

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    strips: Sequence[Strip] = ()


def media_type(image: bytes, where: str) -> str:
    """Of an encoded picture, by its first bytes."""
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    if image[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    raise InputError(f"{where}: expected an encoded PNG or JPEG, got bytes starting {bytes(image[:8])!r}")


def strip_by_kappa(
    title: str,
    embeddings: Embeddings,
    picture: Callable[[str], bytes],
    *,
    keys: Sequence[str] | None = None,
    count: int = 14,
) -> Strip:
    """Faces from the least to the most sure, evenly spaced by rank, with kappa under each.

    Args:
        title: of the strip.
        embeddings: gives kappa.
        picture: the encoded PNG or JPEG of a key.
        keys: those to choose from; default: all. Keys without an embedding are passed over.
        count: number of faces.

    Raises:
        InputError: nothing to show, or pictures that are neither PNG nor JPEG.

    Example:
        >>> e = Embeddings(np.eye(3), np.log([30.0, 10.0, 20.0]), ["a", "b", "c"])
        >>> strip_by_kappa("faces", e, lambda key: b"\\xff\\xd8\\xff", count=2).captions
        ['κ 10', 'κ 30']
    """
    known = set(embeddings.keys)
    chosen = embeddings.keys if keys is None else [key for key in dict.fromkeys(keys) if key in known]
    if not chosen or count < 1:
        raise InputError(f"strip {title!r}: nothing to show ({len(chosen)} embedded images, {count} wanted)")
    rows = embeddings.rows(chosen)
    rows = rows[np.argsort(embeddings.log_kappa[rows], kind="stable")]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    return Strip(
        title,
        [picture(embeddings.keys[row]) for row in rows],
        [f"κ {kappa:.3g}" if kappa < 100 else f"κ {kappa:,.0f}" for kappa in embeddings.kappa[rows].tolist()],
    )

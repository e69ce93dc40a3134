"""The report: one HTML page that needs nothing else, the same in Markdown, and every number as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spherecf.common.files import write_atomically
from spherecf.common.version import __version__
from spherecf.errors import InputError
from spherecf.evaluation._canvas import require_matplotlib
from spherecf.evaluation._content import Content
from spherecf.evaluation._html import page
from spherecf.evaluation._markdown import markdown
from spherecf.evaluation._parts import Section, Strip, Table
from spherecf.evaluation._result import PairReport


@dataclass(frozen=True)
class ReportFiles:
    """Where the report is."""

    html: Path
    json: Path
    markdown: Path


def write_report(
    folder: str | Path,
    reports: Sequence[PairReport] = (),
    *,
    title: str,
    sections: Sequence[Section] = (),
    results: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    strips: Sequence[Strip] = (),
    provenance: Mapping[str, Any] | None = None,
    tables: Sequence[Table] = (),
) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``report.json``; an earlier report in the folder is replaced.

    The page is self-contained (inline SVG, pictures as data), follows the reader's light or dark setting and
    fits a phone. It has a section per pair list and in it one per condition; several reports of the same list
    and condition (seeds) share tables and plots. The Markdown says the same without pictures: plots and
    strips in words, signatures below their tables. ``docs/evaluation.md`` explains how to read it.

    Args:
        folder: made if it is not there.
        reports: from `evaluate_pairs`, in the order to show them.
        title: of the page.
        sections: what other protocols found, shown after the pair lists.
        results: JSON-able numbers behind the sections, kept in ``report.json``.
        notes: sentences for the top: what the data can and cannot show.
        strips: rows of pictures, e.g. sorted by kappa; see `strip_by_kappa`.
        provenance: JSON-able facts about how it was made, shown at the end.
        tables: summary tables for the top.

    Returns:
        Paths of the files.

    Raises:
        InputError: neither reports nor sections.
        MissingDependencyError: matplotlib is not installed.
        StorageError: the folder is not writable or the disk is full.

    Example:
        >>> from tempfile import mkdtemp
        >>> import numpy as np
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.evaluation import evaluate_pairs
        >>> e = Embeddings(np.eye(8, 9), np.full(8, 5.0), list("abcdefgh"))
        >>> report = evaluate_pairs(
        ...     e, e, list("abcd"), list("efgh"), [1, 0, 1, 0], [0, 0, 1, 1], name="toy", draws=0
        ... )
        >>> write_report(mkdtemp(), [report], title="Toy").html.name
        'report.html'
    """
    require_matplotlib()
    if not reports and not sections:
        raise InputError("write_report: expected at least one report or section, got none")
    content = Content(title, reports, sections, notes, strips, tables, results or {}, provenance or {})
    text = json.dumps(
        content.to_dict(__version__), indent=1, ensure_ascii=False, allow_nan=False, default=str
    )
    folder = Path(folder)
    return ReportFiles(
        html=_write(folder / "report.html", page(content)),
        json=_write(folder / "report.json", text),
        markdown=_write(folder / "report.md", markdown(content)),
    )


def _write(path: Path, text: str) -> Path:
    return write_atomically(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))

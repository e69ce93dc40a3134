"""The report: one HTML page that needs nothing else, and one JSON file with every number."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spherecf._files import write_atomically
from spherecf._version import __version__
from spherecf.errors import InputError
from spherecf.evaluation._html import page
from spherecf.evaluation._parts import Section, Strip, Table
from spherecf.evaluation._plots import require_matplotlib
from spherecf.evaluation._result import PairReport, plain


@dataclass(frozen=True)
class ReportFiles:
    """Where the report is."""

    html: Path
    json: Path


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
    """Write ``report.html`` and ``report.json``; files of an earlier report in the folder are replaced.

    The page is self-contained (inline SVG, pictures as data), follows the reader's light or dark setting and
    fits a phone. It has a section per pair list and in it one per condition; several reports of the same list
    and condition (seeds) share tables and plots. ``docs/evaluation.md`` explains how to read it.

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
        Paths of both files.

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
    folder = Path(folder)
    facts = plain(dict(provenance or {}))
    content = {
        "title": title,
        "spherecf": __version__,
        "notes": list(notes),
        "tables": [table.to_dict() for table in tables],
        "reports": [report.to_dict() for report in reports],
        "results": plain(dict(results or {})),
        "strips": [{"title": strip.title, "captions": list(strip.captions)} for strip in strips],
        "provenance": facts,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    html = page(title, reports, sections, notes, strips, tables, json.loads(json.dumps(facts, default=str)))
    return ReportFiles(
        html=write_atomically(folder / "report.html", lambda stream: stream.write(html.encode())),
        json=write_atomically(folder / "report.json", lambda stream: stream.write(text.encode())),
    )

"""The report: one HTML page that needs nothing else, the same in Markdown, and every number as JSON."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from spherecf.common.files import write_atomically
from spherecf.common.version import __version__
from spherecf.errors import InputError
from spherecf.evaluation import PairReport, plain
from spherecf.report.figures import Plot, Strip, require_matplotlib
from spherecf.report.html import Content, anchor, page
from spherecf.report.sections import Section
from spherecf.report.tables import (
    Table,
    areas_table,
    counts_text,
    difference_table,
    run_names,
    score_table,
    unresolved_text,
)


def markdown(content: Content) -> str:
    """The whole document; no word from outside becomes markup."""
    parts = [f"# {words(content.title)}", f"spherecf {__version__}, {content.counted()}"]
    parts += [*_notes(content.notes), *(part for table in content.tables for part in _table(table))]
    for place, (name, conditions) in enumerate(content.lists.items()):
        runs = [run for found in conditions.values() for run in found]
        unresolved = [f"Unresolved: {why}." for why in unresolved_text(runs)]
        parts += [f"## {words(name)}", *_notes([*_counts(conditions), *unresolved])]
        parts += _table(score_table(conditions))
        for inner, (condition, found) in enumerate(conditions.items()):
            parts.append(f"### {words(name)}: {words(condition)}")
            for table in (difference_table(found), areas_table(found)):
                parts += _table(table) if table else []
            parts += _plots(content.plots[anchor("list", place, inner)])
    parts += [part for section in content.sections for part in _section(section)]
    if content.strips:
        parts += ["## Faces", *map(_strip, content.strips)]
    facts = json.dumps(plain(dict(content.provenance)), indent=2, ensure_ascii=False, default=str)
    parts += ["## Provenance", "\n".join(f"    {line}" for line in facts.splitlines())]
    return "\n\n".join(parts) + "\n"


def words(text: str) -> str:
    r"""Text that stays text: signs of Markdown and HTML escaped, line breaks gone.

    >>> print(words("<b> a|b\n*c* _d_ e_f [0.1, 0.2]"), words("1. first"))
    &lt;b&gt; a\|b \*c\* \_d\_ e_f \[0.1, 0.2] 1\. first
    """
    flat = " ".join(escape(text, quote=False).split())
    marked = re.sub(r"([\\`*\[|#~$]|(?<!\w)_|_(?!\w))", r"\\\1", flat)
    return re.sub(r"^(\d*)([-+.)])(?= |$)", r"\1\\\2", marked)  # would begin a list


def _section(section: Section) -> list[str]:
    tables = [part for table in section.tables for part in _table(table)]
    strips = [_strip(strip) for strip in section.strips]
    return [f"## {words(section.title)}", *_notes(section.notes), *tables, *_plots(section.plots), *strips]


def _notes(notes: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {words(note)}" for note in notes)] if notes else []


def _counts(conditions: dict[str, list[PairReport]]) -> list[str]:
    lines = []
    for condition, runs in conditions.items():
        for run, label in zip(runs, run_names(runs)):
            named = f"{condition}, {label}" if label else condition
            lines.append(f"{named}: {counts_text(run)}; intervals: {run.resampling}")
    return lines


def _table(table: Table) -> list[str]:
    lines = [_line(table.header), "|" + " --- |" * len(table.header), *map(_line, table.rows)]
    parts = [f"**{words(table.title)}**"] if table.title else []
    parts += ["\n".join(lines), *([words(table.note)] if table.note else [])]
    return [*parts, *_signatures(table)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(words, cells))} |"


def _signatures(table: Table) -> list[str]:
    """Each signature once, with the numbers of its rows."""
    rows: dict[str, list[str]] = {}
    for place, signature in enumerate(table.signatures, 1):
        rows.setdefault(signature, []).append(str(place))
    lines = [f"- row {', '.join(numbers)}: {_code(signature)}" for signature, numbers in rows.items()]
    return ["Signatures:", "\n".join(lines)] if lines else []


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _plots(plots: Sequence[Plot]) -> list[str]:
    return ["\n".join(f"- Plot. {words(plot.caption)} {words(plot.alt)}" for plot in plots)] if plots else []


def _strip(strip: Strip) -> str:
    captions = [words(caption.replace("\n", ", ")) for caption in strip.captions]
    return f"Faces. {words(strip.title)}: {'; '.join(captions)}"


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

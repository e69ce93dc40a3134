"""The report as Markdown, for repositories and issues: tables, notes, and pictures in words."""

import json
import re
from collections.abc import Sequence
from html import escape

from spherecf.common.version import __version__
from spherecf.evaluation._content import Content, anchor
from spherecf.evaluation._parts import Plot, Section, Strip, Table
from spherecf.evaluation._result import PairReport, plain
from spherecf.evaluation._tables import (
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

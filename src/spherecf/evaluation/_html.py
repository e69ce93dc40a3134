"""The page: sections, tables and figures. Every word that comes from outside passes through `escape`."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from spherecf._version import __version__
from spherecf.evaluation._html_pieces import anchor, figure, strip_section, summary_table
from spherecf.evaluation._html_results import condition_section, score_rows_table
from spherecf.evaluation._parts import Section, Strip, Table
from spherecf.evaluation._result import PairReport
from spherecf.evaluation._style import CSS
from spherecf.evaluation._tables import grouped

_READING = """
<p>All numbers are exact counts over the listed pairs, from sorted scores; no score is transformed, no
threshold grid is used. Brackets are 95 % intervals from resampling people, not pairs, because pairs that
share a person are not independent.</p>
<ul>
<li><b>Accuracy</b>: the threshold is chosen on all folds but one and used on that one; mean ± standard
deviation over folds.</li>
<li><b>TMR (TAR) at FMR (FAR) ≤ x</b>: the largest share of mated pairs accepted by a threshold that
accepts at most the share x of the non-mated ones. With fewer than 1/x non-mated pairs this is
<i>unresolved</i>: no number is given.</li>
<li><b>EER</b>: where both error rates are equal. <b>AUC</b>: the chance that a mated pair scores above a
non-mated one.</li>
<li><b>Minus cosine</b>: both scores on the same draws of people. Green or red: the whole interval lies on
one side of zero.</li>
<li><b>DET</b>: both error rates at every threshold, on normal-deviate axes.</li>
<li><b>Error versus discard (EDC)</b>: the threshold stays; mated pairs are discarded by the smaller
confidence of their two images. A confidence that knows where the errors are brings the line down fast.
The table gives the area up to 20 % discarded over that of a confidence that knows nothing: 1 tells
nothing, smaller is better.</li>
<li><b>Rejection</b>: images are rejected from the least sure on, and TMR at FMR is measured anew on the
pairs whose images both remain.</li>
<li><b>κ</b>: the concentration of the von Mises-Fisher distribution around the image's direction. Larger
is surer.</li>
<li><b>Signature</b>: everything the number depends on. Compare two numbers only if their signatures agree
in what you do not mean to compare.</li>
</ul>
"""


def page(
    title: str,
    reports: Sequence[PairReport],
    sections: Sequence[Section],
    notes: Sequence[str],
    strips: Sequence[Strip],
    tables: Sequence[Table],
    provenance: dict[str, Any],
) -> str:
    """The whole document."""
    lists = grouped(reports)
    body = [_header(title, reports, len(lists)), _contents(lists, bool(strips)), "<main>"]
    body.append(_summary(notes, tables))
    for place, (name, conditions) in enumerate(lists.items()):
        body.append(f'<section id="{anchor("list", place)}"><h2>{escape(name)}</h2>')
        body.append(score_rows_table(conditions))
        for inner, (condition, runs) in enumerate(conditions.items()):
            where = anchor("list", place, inner)
            body.append(f'<section id="{where}"><h3>{escape(name)}: {escape(condition)}</h3>')
            body.append(condition_section(runs, where))
            body.append("</section>")
        body.append("</section>")
    body += [_section(section, anchor("section", place)) for place, section in enumerate(sections)]
    if strips:
        body.append('<section id="faces"><h2>Faces by confidence</h2>')
        body += [strip_section(strip) for strip in strips]
        body.append("</section>")
    body.append(f'<section id="reading"><h2>How to read this page</h2>{_READING}</section>')
    facts = escape(json.dumps(provenance, indent=2, ensure_ascii=False))
    body.append('<section id="provenance"><h2>Provenance</h2>')
    body.append(f"<details><summary>How these numbers were made</summary><pre>{facts}</pre></details>")
    body.append(
        f'<footer class="dim">Written by spherecf {__version__}. Every number is in report.json.</footer>'
    )
    body.append("</section></main>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _section(section: Section, where: str) -> str:
    parts = [f'<section id="{where}"><h2>{escape(section.title)}</h2>']
    if section.notes:
        parts.append('<ul class="notes">' + "".join(f"<li>{escape(n)}</li>" for n in section.notes) + "</ul>")
    parts += [summary_table(table) for table in section.tables]
    if section.plots:
        parts.append(f'<div class="plots">{"".join(figure(plot) for plot in section.plots)}</div>')
    parts += [strip_section(strip) for strip in section.strips]
    return "".join([*parts, "</section>"])


def _header(title: str, reports: Sequence[PairReport], lists: int) -> str:
    counted = f"{lists} pair list{'s' * (lists != 1)}, {len(reports)} result{'s' * (len(reports) != 1)}"
    return f'<header><h1>{escape(title)}</h1><p class="dim">spherecf {__version__} · {counted}</p></header>'


def _contents(lists: dict[str, dict[str, list[PairReport]]], faces: bool) -> str:
    lines = ['<nav aria-label="Contents"><ul><li><a href="#summary">Summary</a></li>']
    lines += [f'<li><a href="#{anchor("list", i)}">{escape(name)}</a></li>' for i, name in enumerate(lists)]
    ends = [*([("faces", "Faces by confidence")] if faces else []), ("reading", "How to read this page")]
    ends.append(("provenance", "Provenance"))
    lines += [f'<li><a href="#{where}">{text}</a></li>' for where, text in ends]
    lines.append("</ul>")
    for i, (name, conditions) in enumerate(lists.items()):
        lines.append('<ul class="sub">')
        lines += [
            f'<li><a href="#{anchor("list", i, j)}">{escape(name)} {escape(condition)}</a></li>'
            for j, condition in enumerate(conditions)
        ]
        lines.append("</ul>")
    return "".join([*lines, "</nav>"])


def _summary(notes: Sequence[str], tables: Sequence[Table]) -> str:
    parts = ['<section id="summary"><h2>Summary</h2>']
    if notes:
        parts.append('<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    parts += [summary_table(table) for table in tables]
    if not notes and not tables:
        parts.append("<p>The tables of the pair lists follow; below them is how to read them.</p>")
    return "".join([*parts, "</section>"])

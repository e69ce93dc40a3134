"""The page: sections, tables and figures. Every word that comes from outside passes through `escape`."""

import json
from html import escape

from spherecf.common.version import __version__
from spherecf.evaluation._content import Content, anchor
from spherecf.evaluation._html_pieces import note_list, section_body, strip_section, summary_table
from spherecf.evaluation._html_results import condition_section, score_rows_table
from spherecf.evaluation._reading import reading
from spherecf.evaluation._result import plain
from spherecf.evaluation._style import CSS


def page(content: Content) -> str:
    """The whole document."""
    results = [_summary(content), *_pair_lists(content)]
    for place, section in enumerate(content.sections):
        body = f"<h2>{escape(section.title)}</h2>{section_body(section)}"
        results.append(f'<section id="{anchor("section", place)}">{body}</section>')
    if content.strips:
        strips = "".join(map(strip_section, content.strips))
        results.append(f'<section id="faces"><h2>Faces</h2>{strips}</section>')
    results.append(
        f'<section id="reading"><h2>How to read this page</h2>{reading("".join(results))}</section>'
    )
    body = "\n".join([_header(content), _contents(content), "<main>", *results, _provenance(content)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(content.title)}</title><style>{CSS}</style></head>\n<body>\n{body}"
        "</main>\n</body></html>\n"
    )


def _pair_lists(content: Content) -> list[str]:
    parts = []
    for place, (name, conditions) in enumerate(content.lists.items()):
        parts.append(f'<section id="{anchor("list", place)}"><h2>{escape(name)}</h2>')
        parts.append(score_rows_table(conditions))
        for inner, (condition, runs) in enumerate(conditions.items()):
            where = anchor("list", place, inner)
            parts.append(f'<section id="{where}"><h3>{escape(name)}: {escape(condition)}</h3>')
            parts.append(f"{condition_section(runs, content.plots[where])}</section>")
        parts.append("</section>")
    return parts


def _header(content: Content) -> str:
    said = f"spherecf {__version__} · {content.counted()}"
    return f'<header><h1>{escape(content.title)}</h1><p class="dim">{said}</p></header>'


def _contents(content: Content) -> str:
    places = [("summary", "Summary")]
    places += [(anchor("list", i), name) for i, name in enumerate(content.lists)]
    places += [(anchor("section", i), section.title) for i, section in enumerate(content.sections)]
    places += [("faces", "Faces")] if content.strips else []
    places += [("reading", "How to read this page"), ("provenance", "Provenance")]
    below = [
        [(anchor("list", i, j), f"{name} {condition}") for j, condition in enumerate(conditions)]
        for i, (name, conditions) in enumerate(content.lists.items())
    ]
    return f'<nav aria-label="Contents">{_links(places)}{"".join(_links(one, "sub") for one in below)}</nav>'


def _links(places: list[tuple[str, str]], kind: str = "main") -> str:
    lines = "".join(f'<li><a href="#{where}">{escape(text)}</a></li>' for where, text in places)
    return f'<ul class="{kind}">{lines}</ul>'


def _summary(content: Content) -> str:
    parts = [note_list(content.notes), *map(summary_table, content.tables)]
    if not any(parts):
        parts = ["<p>The results follow; below them is how to read them.</p>"]
    return f'<section id="summary"><h2>Summary</h2>{"".join(parts)}</section>'


def _provenance(content: Content) -> str:
    facts = json.dumps(plain(dict(content.provenance)), indent=2, ensure_ascii=False, default=str)
    return (
        '<section id="provenance"><h2>Provenance</h2><details><summary>How these numbers were made</summary>'
        f'<pre>{escape(facts)}</pre></details><footer class="dim">Written by spherecf {__version__}. '
        "Every number is in report.json.</footer></section>"
    )

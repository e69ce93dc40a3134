"""The HTML page: style, sections, tables and figures. Every word from outside passes through `escape`."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from spherecf.common.version import __version__
from spherecf.evaluation import PairReport, ScoreResult, plain
from spherecf.report.figures import Plot, Strip, condition_plots, media_type, score_colour
from spherecf.report.sections import Section
from spherecf.report.tables import (
    Grouped,
    Table,
    areas_table,
    compared_metrics,
    counts_text,
    difference_text,
    grouped,
    heading,
    metric_names,
    run_names,
    unresolved_text,
    value_text,
    verdict,
)

CSS = """
:root{color-scheme:light dark;--back:#fff;--card:#f6f7f9;--text:#1c2026;--dim:#5d6673;--line:#dde1e7;
--accent:#0b6fc0;--good:#1b7f45;--bad:#bd3232}
@media(prefers-color-scheme:dark){:root{--back:#14171c;--card:#1c2027;--text:#e6e9ee;--dim:#9aa3b0;
--line:#313842;--accent:#5ab0f5;--good:#5fce90;--bad:#f08080}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.55 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif}
header,nav,main{max-width:1180px;margin:0 auto;padding:0 1.25rem}
header{padding-top:2.2rem}
h1{font-size:clamp(1.5rem,4.5vw,2.2rem);line-height:1.2;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.4rem;margin:2.8rem 0 .6rem;padding-top:.9rem;border-top:2px solid var(--line);
overflow-wrap:anywhere}
h3{font-size:1.12rem;margin:2rem 0 .4rem;overflow-wrap:anywhere}
h4{font-size:1rem;margin:1.3rem 0 .3rem}
p,li{max-width:76ch;overflow-wrap:anywhere}
.dim,figcaption,.note{color:var(--dim)}
.note,figcaption,.counts{font-size:.87rem}
a{color:var(--accent)}
nav{margin-top:1rem}
nav ul{list-style:none;padding:0;margin:.2rem 0;display:flex;flex-wrap:wrap;gap:.3rem .5rem}
nav li{max-width:none}
nav a{display:inline-block;padding:.12rem .7rem;border:1px solid var(--line);border-radius:1rem;
text-decoration:none;font-size:.9rem;background:var(--card)}
nav .sub a{font-size:.82rem;background:none}
.notes{background:var(--card);border-left:4px solid var(--accent);border-radius:0 .4rem .4rem 0;
padding:.7rem 1rem .7rem 2rem;margin:1.2rem 0}
.scroll{overflow-x:auto;margin:.7rem 0;border:1px solid var(--line);border-radius:.5rem}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .7rem;text-align:right;vertical-align:top;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--dim);font-weight:600;font-size:.8rem;vertical-align:bottom;min-width:6.2em}
th:first-child,td:first-child{text-align:left;min-width:7.5em}
tbody th{font-weight:600}
th .name,td{white-space:nowrap}
.scroll tr:not(.group) th:first-child,.scroll tr:not(.group) td:first-child{position:sticky;left:0;
background:var(--back);background-clip:padding-box}
tr.group th{background:var(--card);text-align:left;font-weight:600}
tr.group span{display:block;position:sticky;left:.7rem;width:fit-content;
max-width:min(100%,calc(100vw - 3.4rem));white-space:normal}
tr.group .counts{font-weight:400;color:var(--dim)}
td .ci{display:block;color:var(--dim);font-size:.8rem;white-space:nowrap}
td .value{white-space:nowrap}
td.better .value{color:var(--good);font-weight:650}
td.worse .value{color:var(--bad);font-weight:650}
td.missing{color:var(--dim);font-style:italic}
.swatch{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
details{margin:.15rem 0}
summary{cursor:pointer;color:var(--accent);font-size:.85rem}
th summary{white-space:nowrap}
details code,pre{font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere;
white-space:pre-wrap}
th details code{display:block;max-width:min(34em,60vw);font-weight:400;text-align:left}
pre{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.8rem;overflow:auto}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,335px),1fr));gap:1rem;
margin:.8rem 0}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:inherit!important}
figcaption{margin-top:.35rem}
.strip{display:flex;overflow-x:auto;gap:.5rem;padding:.3rem 0 .6rem}
.strip figure{padding:.3rem;flex:0 0 auto;text-align:center}
.strip div{display:flex;gap:.2rem;justify-content:center}
.strip img{display:block;width:84px;height:84px;object-fit:cover;border-radius:.35rem}
.strip figcaption{font-variant-numeric:tabular-nums;white-space:pre-line;margin:.25rem 0 0}
footer{margin:3rem 0 2rem}
@media(max-width:600px){header,nav,main{padding:0 .9rem}th,td{padding:.38rem .5rem}body{font-size:15px}}
@media print{details{display:block}.scroll,.strip{overflow:visible}}
"""


_OPENING = """
<p>All numbers are exact counts over the listed pairs or searches, from sorted scores; no score is
transformed, no threshold grid is used. Brackets are 95 % intervals from resampling people, not pairs, because
pairs that share a person are not independent.</p>
"""

_ENTRIES = {
    "Accuracy": """
<b>Accuracy</b>: the threshold is chosen on all folds but one and used on that one; mean ±
standard deviation over folds.""",
    "TMR": """
<b>TMR (TAR) at FMR (FAR) ≤ x</b>: the largest share of mated pairs accepted by a threshold that
accepts at most the share x of the non-mated ones. With fewer than 1/x non-mated pairs this is
<i>unresolved</i>: no number is given.""",
    "EER": """
<b>EER</b>: where both error rates are equal.""",
    "AUC": """
<b>AUC</b>: the chance that a mated pair scores above a non-mated one.""",
    "Minus cosine": """
<b>Minus cosine</b>: both scores on the same draws of people. Green or red: the whole
interval lies on one side of zero.""",
    "DET": """
<b>DET</b>: both error rates at every threshold, on normal-deviate axes.""",
    "FNIR": """
<b>FNIR at FPIR ≤ x</b>: the smallest share of enrolled probes that are not found (or not first),
at a threshold that reports a match for at most the share x of the probes that nobody enrolled.""",
    "CMC": """
<b>CMC, rank-k</b>: the share of enrolled probes whose own entry is among the k best of the
gallery.""",
    "EDC": """
<b>Error versus discard (EDC)</b>: the threshold stays; mated pairs are discarded by the smaller
confidence of their two images. A confidence that knows where the errors are brings the line down fast.
The table gives the area up to 20 % discarded over that of a confidence that knows nothing: 1 tells
nothing, smaller is better.""",
    "Rejection": """
<b>Rejection</b>: images are rejected from the least sure on, and TMR at FMR is measured anew
on the pairs whose images both remain.""",
    "PRR": """
<b>PRR</b>: the area between a rejection curve and that of random rejection, over the same area of
an oracle that rejects the mistakes first: 1 is the oracle, 0 tells nothing.""",
    "Cllr": """
<b>Cllr</b>: the cost, in bits, of scores read as log-likelihood ratios: 0 is perfect, 1 is what a
constant costs. Minimum Cllr: the same after the best monotone map, so the difference is what calibration
loses.""",
    "κ": """
<b>κ</b>: the concentration of the von Mises-Fisher distribution around the image's direction. Larger
is surer.""",
    "signature": """
<b>Signature</b>: everything the number depends on. Compare two numbers only if their
signatures agree in what you do not mean to compare.""",
}


def reading(body: str) -> str:
    """HTML that explains the terms which stand in the body of a page."""
    said = re.sub(r'base64,[^"]*', "", body)  # pictures may spell anything
    shown = "".join(f"<li>{text.strip()}</li>\n" for term, text in _ENTRIES.items() if term in said)
    return f"{_OPENING}<ul>\n{shown}</ul>" if shown else _OPENING


@dataclass(frozen=True)
class Content:
    """The arguments of `write_report`, the reports grouped, and their plots."""

    title: str
    reports: Sequence[PairReport] = ()
    sections: Sequence[Section] = ()
    notes: Sequence[str] = ()
    strips: Sequence[Strip] = ()
    tables: Sequence[Table] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    lists: Grouped = field(init=False)
    plots: dict[str, list[Plot]] = field(init=False)
    """By the anchor of the condition they belong to."""

    def __post_init__(self) -> None:
        lists = grouped(self.reports)
        plots = {
            anchor("list", i, j): condition_plots(runs, anchor("list", i, j))
            for i, conditions in enumerate(lists.values())
            for j, runs in enumerate(conditions.values())
        }
        object.__setattr__(self, "lists", lists)
        object.__setattr__(self, "plots", plots)

    def counted(self) -> str:
        """How much there is, in words."""
        counts = {"pair list": len(self.lists), "result": len(self.reports), "section": len(self.sections)}
        return ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items() if n)

    def to_dict(self, version: str) -> dict[str, Any]:
        """Plain dicts and lists; plots as their words, strips as their captions."""
        return {
            "title": self.title,
            "spherecf": version,
            "notes": list(self.notes),
            "tables": [table.to_dict() for table in self.tables],
            "reports": [report.to_dict() for report in self.reports],
            "sections": [section.to_dict() for section in self.sections],
            "results": plain(dict(self.results)),
            "strips": [strip.to_dict() for strip in self.strips],
            "provenance": plain(dict(self.provenance)),
        }


def anchor(*parts: object) -> str:
    """An id made of our own words and numbers only, never of names from outside."""
    return "-".join(map(str, parts))


def note_list(notes: Sequence[str]) -> str:
    """Sentences set apart; nothing where there are none."""
    return f'<ul class="notes">{"".join(f"<li>{escape(n)}</li>" for n in notes)}</ul>' if notes else ""


def section_body(section: Section) -> str:
    """Everything of a `Section` but its title."""
    parts = [note_list(section.notes), *map(summary_table, section.tables), figures(section.plots)]
    return "".join([*parts, *map(strip_section, section.strips)])


def summary_table(table: Table) -> str:
    """A `Table` under its title, if it has one."""
    title = f"<h4>{escape(table.title)}</h4>" if table.title else ""
    return title + rows_and_note(table)


def rows_and_note(table: Table) -> str:
    """Text cells under a header, scrolling inside their own box; signatures folded in the first cells."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    signatures = table.signatures or [""] * len(table.rows)
    body = "".join(_row(row, signature) for row, signature in zip(table.rows, signatures))
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'
    )


def _row(row: Sequence[str], signature: str) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in (row[1:] if signature else row))
    first = f'<th scope="row"><span class="name">{escape(row[0])}</span>{folded(signature)}</th>'
    return f"<tr>{first if signature else ''}{cells}</tr>"


def folded(signature: str) -> str:
    """A signature behind a word to click on."""
    return f"<details><summary>signature</summary><code>{escape(signature)}</code></details>"


def figures(plots: Sequence[Plot]) -> str:
    """Plots with their captions; what each shows in words is the SVG's label."""
    shown = "".join(
        f"<figure>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>" for plot in plots
    )
    return f'<div class="plots">{shown}</div>' if plots else ""


def strip_section(strip: Strip) -> str:
    """Pictures as data inside the page, pairs side by side."""
    faces = []
    for place, caption in enumerate(strip.captions):
        pictures = [strip.images[place], *strip.beside[place : place + 1]]
        shown = "".join(_image(image, strip.title, caption) for image in pictures)
        faces.append(f"<figure><div>{shown}</div><figcaption>{escape(caption)}</figcaption></figure>")
    kind = "strip pairs" if strip.beside else "strip"
    return f'<h4>{escape(strip.title)}</h4><div class="{kind}">{"".join(faces)}</div>'


def _image(image: bytes, title: str, caption: str) -> str:
    source = f"data:{media_type(image, title)};base64,{base64.b64encode(image).decode()}"
    return f'<img src="{source}" alt="{escape(f"face, {caption}")}">'


_LISTED = 50  # failures shown on the page; the JSON has all


def score_rows_table(conditions: dict[str, list[PairReport]]) -> str:
    """Every score of every condition and run, each with its signature and counts."""
    members = [run for runs in conditions.values() for run in runs]
    metrics = metric_names(members)
    head = "".join(f'<th scope="col">{escape(heading(metric))}</th>' for metric in metrics)
    rows = []
    for condition, runs in conditions.items():
        for run, label in zip(runs, run_names(runs)):
            named = f"{condition}, {label}" if label else condition
            counts = (
                f'<span class="counts">{escape(counts_text(run))}; intervals: {escape(run.resampling)}</span>'
            )
            rows.append(
                f'<tr class="group"><th colspan="{len(metrics) + 1}" scope="colgroup">'
                f"<span>{escape(named)}</span>{counts}</th></tr>"
            )
            rows += [_score_row(run, result, metrics) for result in run.scores.values()]
    reasons = "".join(f'<p class="note">Unresolved: {escape(why)}.</p>' for why in unresolved_text(members))
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">Score</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{reasons}"
    )


def _score_row(run: PairReport, result: ScoreResult, metrics: Sequence[str]) -> str:
    swatch = f'<span class="swatch" style="background:{score_colour(result.score, run)}"></span>'
    cells = [_cell(*value_text(result, metric)) for metric in metrics]
    name = f'<span class="name">{swatch}{escape(result.score)}</span>'
    return f'<tr><th scope="row">{name}{folded(result.signature)}</th>{"".join(cells)}</tr>'


def _cell(value: str, interval: str, kind: str = "") -> str:
    kind = kind or ("missing" if value in ("unresolved", "–") else "")
    below = f'<span class="ci">{escape(interval)}</span>' if interval else ""
    mark = f' class="{kind}"' if kind else ""
    return f'<td{mark}><span class="value">{escape(value)}</span>{below}</td>'


def condition_section(runs: Sequence[PairReport], plots: Sequence[Plot]) -> str:
    """Differences to the cosine, plots, areas under EDC, and failures of one condition."""
    parts = [_differences(runs), _plots(runs, plots), _areas(runs)]
    absent = dict.fromkeys(name for run in runs for name in run.absent_confidences)
    if absent:
        parts.append(
            f'<p class="note">Confidences that these embeddings lack: {escape(", ".join(absent))}.</p>'
        )
    parts.append(_failures(runs[0]))
    return "".join(parts)


def _differences(runs: Sequence[PairReport]) -> str:
    metrics = compared_metrics(runs)
    rows = []
    for run, label in zip(runs, run_names(runs)):
        for score in run.scores:
            found = [run.differences.get(f"{score}-cosine:{metric}") for metric in metrics]
            if not any(found):
                continue
            named = f"{score}, {label}" if label else score
            cells = [
                _cell("–", "") if one is None else _cell(*difference_text(one), verdict(metric, one))
                for metric, one in zip(metrics, found)
            ]
            rows.append(f'<tr><th scope="row">{escape(named)}</th>{"".join(cells)}</tr>')
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(heading(metric))}</th>' for metric in metrics)
    return (
        '<h4>Minus cosine</h4><div class="scroll"><table><thead><tr><th scope="col">Score</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plots(runs: Sequence[PairReport], plots: Sequence[Plot]) -> str:
    thin = ""
    if len(runs) > 1:
        bold = escape(run_names(runs)[0])
        thin = f'<p class="note">Bold: {bold}. Thin: the other runs. κ is that of the first.</p>'
    return figures(plots) + thin


def _areas(runs: Sequence[PairReport]) -> str:
    table = areas_table(runs)
    if table is None:
        return ""
    return f"<details><summary>{escape(table.title)}</summary>{rows_and_note(table)}</details>"


def _failures(run: PairReport) -> str:
    if not run.failures:
        return ""
    lines = "".join(f"<li>{escape(key)}: {escape(reason)}</li>" for key, reason in run.failures[:_LISTED])
    more = f"<li>… and {len(run.failures) - _LISTED} more in report.json</li>" * (len(run.failures) > _LISTED)
    count = len(run.failures)
    return (
        f"<details><summary>{count} image{'s' * (count > 1)} could not be embedded (failures to acquire, "
        f"never scored)</summary><ul>{lines}{more}</ul></details>"
    )


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

"""The report as files: an HTML page that needs nothing else, the same in Markdown, every number as JSON."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spherecf.common.files import write_atomically
from spherecf.common.version import __version__
from spherecf.errors import InputError
from spherecf.evaluation import PairReport, plain
from spherecf.report.figures import Strip, condition_plots, media_type, require_matplotlib
from spherecf.report.sections import Section
from spherecf.report.tables import (
    Table,
    areas_table,
    difference_table,
    grouped,
    run_names,
    score_table,
    unresolved_text,
)

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class ReportFiles:
    """Paths of the files of a report."""

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
    summary: Sequence[str | Table] = (),
    strips: Sequence[Strip] = (),
    provenance: Mapping[str, Any] | None = None,
) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``report.json``; an earlier report in the folder is replaced.

    The page is self-contained (inline SVG, pictures as data), follows the reader's light or dark setting and
    fits a phone. It has a section per pair list and in it one per condition; several reports of the same list
    and condition (seeds) share tables and plots. The Markdown has the same content without pictures: plots
    and strips as text, signatures below their tables. ``docs/evaluation.md`` explains how to read it.

    Args:
        folder: created if missing.
        reports: from `evaluate_pairs`, in the order to show them.
        title: of the page.
        sections: results of other protocols, shown after the pair lists.
        results: JSON-able numbers of the sections, written to ``report.json``.
        summary: sentences for the top, what the data can and cannot show, and summary tables below them.
        strips: rows of pictures, e.g. sorted by kappa; see `strip_by_kappa`.
        provenance: JSON-able facts about how the numbers were computed, shown at the end.

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
        >>> from spherecf.data import PairList
        >>> from spherecf.evaluation import PairOptions, evaluate_pairs
        >>> e = Embeddings(np.eye(8, 9), np.full(8, 5.0), list("abcdefgh"))
        >>> mated, fold = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
        >>> pairs = PairList("toy", list("abcd"), list("efgh"), mated, fold)
        >>> report = evaluate_pairs(e, e, pairs, PairOptions(draws=0))
        >>> write_report(mkdtemp(), [report], title="Toy").html.name
        'report.html'
    """
    require_matplotlib()
    if not reports and not sections:
        raise InputError("write_report: expected at least one report or section, got none")
    facts = plain(dict(provenance or {}))
    notes = [part for part in summary if isinstance(part, str)]
    tables = [part for part in summary if isinstance(part, Table)]
    shown = {
        "title": title,
        "version": __version__,
        "summary": notes,
        "tables": tables,
        "lists": _pair_lists(reports),
        "sections": sections,
        "strips": strips,
        "provenance": json.dumps(facts, indent=2, ensure_ascii=False, default=str),
    }
    counts = {"pair list": len(shown["lists"]), "result": len(reports), "section": len(sections)}
    shown["counted"] = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items() if n)
    kept = {
        "title": title,
        "spherecf": __version__,
        "notes": notes,
        "tables": [table.to_dict() for table in tables],
        "reports": [report.to_dict() for report in reports],
        "sections": [section.to_dict() for section in sections],
        "results": plain(dict(results or {})),
        "strips": [strip.to_dict() for strip in strips],
        "provenance": facts,
    }
    numbers = json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    page = _environment().get_template("page.html.jinja").render(shown)
    text = _environment(markdown=True).get_template("report.md.jinja").render(shown)
    folder = Path(folder)
    return ReportFiles(
        html=_write(folder / "report.html", page.lstrip()),
        json=_write(folder / "report.json", numbers),
        markdown=_write(folder / "report.md", re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"),
    )


def _write(path: Path, text: str) -> Path:
    return write_atomically(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))


def _pair_lists(reports: Sequence[PairReport]) -> list[dict[str, Any]]:
    """What the templates show of each pair list and condition; ids hold no name from outside."""
    shown = []
    for i, (name, conditions) in enumerate(grouped(reports).items()):
        below = []
        for j, (condition, runs) in enumerate(conditions.items()):
            below.append(
                {
                    "id": f"list-{i}-{j}",
                    "name": condition,
                    "differences": difference_table(runs),
                    "plots": condition_plots(runs, f"list-{i}-{j}"),
                    "bold": run_names(runs)[0] if len(runs) > 1 else "",
                    "areas": areas_table(runs),
                    "absent": list(dict.fromkeys(name for run in runs for name in run.absent_confidences)),
                    "failures": runs[0].failures,
                }
            )
        unresolved = unresolved_text([run for runs in conditions.values() for run in runs])
        table = score_table(conditions)
        shown.append(
            {"id": f"list-{i}", "name": name, "table": table, "unresolved": unresolved, "conditions": below}
        )
    return shown


@lru_cache
def _environment(markdown: bool = False) -> "Environment":
    """Jinja2 with our templates and filters; every value is escaped, for HTML or for Markdown."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def escaped(value: Any) -> Any:
        return value if isinstance(value, Markup) else Markup(words(str(value)))

    made = Environment(
        loader=PackageLoader("spherecf.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=escaped if markdown else None,
    )  # fmt: skip
    made.filters["data_uri"] = _data_uri
    made.filters["without_pictures"] = lambda page: re.sub(r'base64,[^"]*', "", page)
    made.filters["code"] = lambda text: Markup(f"`{' '.join(text.replace('`', chr(39)).split())}`")
    return made


def render_html(template: str, **values: Any) -> str:
    """An HTML page from a Jinja2 template, with the filters of the report; every value is escaped.

    Args:
        template: its text. ``data_uri`` makes a PNG or JPEG a picture inside the page.
        values: that it names.

    Example:
        >>> render_html("<p>{{ name }}</p>", name="a<b")
        '<p>a&lt;b</p>'
    """
    return _environment().from_string(template).render(values)


def _data_uri(image: bytes) -> str:
    return f"data:{media_type(image, 'picture')};base64,{base64.b64encode(image).decode()}"


def words(text: str) -> str:
    r"""Text escaped for Markdown and HTML, on one line.

    >>> print(words("<b> a|b\n*c* _d_ e_f [0.1, 0.2]"), words("1. first"))
    &lt;b&gt; a\|b \*c\* \_d\_ e_f \[0.1, 0.2] 1\. first
    """
    flat = " ".join(escape(text, quote=False).split())
    marked = re.sub(r"([\\`*\[|#~$]|(?<!\w)_|_(?!\w))", r"\\\1", flat)
    return re.sub(r"^(\d*)([-+.)])(?= |$)", r"\1\\\2", marked)  # would begin a list

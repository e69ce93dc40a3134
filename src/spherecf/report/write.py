"""Write a report: a self-contained HTML page, the same content in Markdown, and every number as JSON."""

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
    """Paths of a written report."""

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
    """Write ``report.html``, ``report.md`` and ``report.json``, replacing an earlier report in the folder.

    The page is self-contained (inline SVG, images as data URIs), follows the reader's light or dark setting
    and fits a phone screen. Each pair list has a section with a subsection per condition; several reports of
    the same list and condition (seeds) share tables and plots. The Markdown has the same content without
    images: plots and strips are described in text, and signatures are listed below their tables.
    ``docs/evaluation.md`` explains how to read a report.

    Args:
        folder: output folder, created if missing.
        reports: results of `evaluate_pairs`, in the order to show them.
        title: title of the page.
        sections: results of other protocols, shown after the pair lists.
        results: numbers of the sections, JSON-serialisable, written to ``report.json``.
        summary: sentences for the top of the page, e.g. what the data can and cannot show, and summary
            tables, shown below the sentences.
        strips: rows of faces, e.g. sorted by kappa; see `strip_by_kappa`.
        provenance: how the numbers were computed, JSON-serialisable, shown at the end.

    Returns:
        Paths of the three files.

    Raises:
        InputError: there are neither reports nor sections.
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
    provenance_dict = plain(dict(provenance or {}))
    notes = [item for item in summary if isinstance(item, str)]
    tables = [item for item in summary if isinstance(item, Table)]
    context = {
        "title": title,
        "version": __version__,
        "summary": notes,
        "tables": tables,
        "lists": _pair_lists(reports),
        "sections": sections,
        "strips": strips,
        "provenance": json.dumps(provenance_dict, indent=2, ensure_ascii=False, default=str),
    }
    counts = {"pair list": len(context["lists"]), "result": len(reports), "section": len(sections)}
    context["contents"] = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items() if n)
    record = {
        "title": title,
        "spherecf": __version__,
        "notes": notes,
        "tables": [table.to_dict() for table in tables],
        "reports": [report.to_dict() for report in reports],
        "sections": [section.to_dict() for section in sections],
        "results": plain(dict(results or {})),
        "strips": [strip.to_dict() for strip in strips],
        "provenance": provenance_dict,
    }
    json_text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False, default=str)
    page = _environment().get_template("page.html.jinja").render(context)
    markdown = _environment(markdown=True).get_template("report.md.jinja").render(context)
    folder = Path(folder)
    return ReportFiles(
        html=_write(folder / "report.html", page.lstrip()),
        json=_write(folder / "report.json", json_text),
        markdown=_write(folder / "report.md", re.sub(r"\n{3,}", "\n\n", markdown).strip() + "\n"),
    )


def _write(path: Path, text: str) -> Path:
    return write_atomically(path, lambda stream: stream.write(text.encode(errors="backslashreplace")))


def _pair_lists(reports: Sequence[PairReport]) -> list[dict[str, Any]]:
    """Template values of each pair list and its conditions; ids are numbers, since names are arbitrary."""
    return [
        {
            "id": f"list-{i}",
            "name": name,
            "table": score_table(conditions),
            "unresolved": unresolved_text([run for runs in conditions.values() for run in runs]),
            "conditions": [
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
                for j, (condition, runs) in enumerate(conditions.items())
            ],
        }
        for i, (name, conditions) in enumerate(grouped(reports).items())
    ]


@lru_cache
def _environment(markdown: bool = False) -> "Environment":
    """A Jinja2 environment with the report's templates and filters; it escapes values (HTML or Markdown)."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def escape_value(value: Any) -> Any:
        return value if isinstance(value, Markup) else Markup(escape_markdown(str(value)))

    environment = Environment(
        loader=PackageLoader("spherecf.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=escape_value if markdown else None,
    )  # fmt: skip
    environment.filters["data_uri"] = _data_uri
    environment.filters["without_images"] = lambda page: re.sub(r'base64,[^"]*', "", page)
    environment.filters["code"] = lambda text: Markup(f"`{' '.join(text.replace('`', chr(39)).split())}`")
    return environment


def render_html(template: str, **values: Any) -> str:
    """Render a Jinja2 template to HTML with the filters of the report, escaping every value.

    Args:
        template: text of the template. The filter ``data_uri`` embeds a PNG or JPEG in the page.
        values: variables of the template.

    Example:
        >>> render_html("<p>{{ name }}</p>", name="a<b")
        '<p>a&lt;b</p>'
    """
    return _environment().from_string(template).render(values)


def _data_uri(image: bytes) -> str:
    return f"data:{media_type(image, 'image')};base64,{base64.b64encode(image).decode()}"


def escape_markdown(text: str) -> str:
    r"""Escape text for Markdown and HTML and join its lines.

    >>> print(escape_markdown("<b> a|b\n*c* _d_ e_f [0.1, 0.2]"), escape_markdown("1. first"))
    &lt;b&gt; a\|b \*c\* \_d\_ e_f \[0.1, 0.2] 1\. first
    """
    line = " ".join(escape(text, quote=False).split())
    escaped = re.sub(r"([\\`*\[|#~$]|(?<!\w)_|_(?!\w))", r"\\\1", line)
    return re.sub(r"^(\d*)([-+.)])(?= |$)", r"\1\\\2", escaped)  # unescaped, these would start a list

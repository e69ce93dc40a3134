"""Small pieces of the page: tables, figures, strips."""

import base64
from collections.abc import Sequence
from html import escape

from spherecf.evaluation._parts import Plot, Strip, Table, media_type


def anchor(*parts: object) -> str:
    """An id made of our own words and numbers only, never of names from outside."""
    return "-".join(map(str, parts))


def summary_table(table: Table) -> str:
    """A `Table` as HTML."""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h4>{escape(table.title)}</h4>{plain_table(table.header, table.rows)}{note}"


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text cells under a header; wide ones scroll inside their own box."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(plot: Plot) -> str:
    """A plot with its caption; what it shows in words is the SVG's label."""
    return f"<figure>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>"


def strip_section(strip: Strip) -> str:
    """Pictures as data inside the page."""
    faces = []
    for image, caption in zip(strip.images, strip.captions):
        source = f"data:{media_type(image, strip.title)};base64,{base64.b64encode(image).decode()}"
        alt = escape(f"face, {caption}")
        faces.append(
            f'<figure><img src="{source}" alt="{alt}"><figcaption>{escape(caption)}</figcaption></figure>'
        )
    return f'<h4>{escape(strip.title)}</h4><div class="strip">{"".join(faces)}</div>'

"""Small pieces of the page: tables, figures, strips."""

import base64
from collections.abc import Sequence
from html import escape

from spherecf.evaluation._parts import Plot, Section, Strip, Table, media_type


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

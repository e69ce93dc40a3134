"""`spherecf evaluate ijb`: 1:1 verification of templates."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spherecf.cli._output import file_to_write, folder_to_write
from spherecf.cli.evaluate._groups import GroupsOption, open_groups
from spherecf.common.progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import Table, TemplateReport

EXAMPLE = "Example: spherecf evaluate ijb ijbc.safetensors --meta IJBC/ --set ijbc --out report/"
_SINGULAR = {"galleries": "gallery", "fpirs": "fpir"}

MetaOption = Annotated[Path, typer.Option(help="Folder of the meta files, or the one above it.")]
SetOption = Annotated[str, typer.Option("--set", help="ijbb or ijbc: how the files' names start.")]
ModeOption = Annotated[
    list[str] | None,
    typer.Option(help="N0D0F1K1 and the like, or precision; may be repeated (default: all side by side)."),
]
ScoreOption = Annotated[
    list[str] | None, typer.Option(help="cosine, mls or pfe; may be repeated (default: those of the mode).")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder of the report: HTML, Markdown, JSON.", callback=folder_to_write)
]
JsonOption = Annotated[bool, typer.Option("--json", help="The numbers as JSON, on stdout or in a file.")]
JsonFile = Annotated[
    Path | None,
    typer.Argument(metavar="JSON_FILE", help="Behind --json: the file to write.", callback=file_to_write),
]
DrawsOption = Annotated[int, typer.Option(help="Bootstrap draws of people; 0 for no intervals.")]
ThreadsOption = Annotated[int | None, typer.Option(help="Of the scoring; changes no number.")]
RadiusOption = Annotated[float | None, typer.Option(help="r of the score (default: the file's, or 64).")]


def ijb(
    embeddings: Annotated[Path, typer.Argument(help="From `spherecf embed` or `spherecf data import`.")],
    meta: MetaOption,
    json_file: JsonFile = None,
    set_: SetOption = "ijbc",
    mode: ModeOption = None,
    score: ScoreOption = None,
    fmr: Annotated[
        list[float] | None, typer.Option(help="FMR target; may be repeated (default: 1e-1 .. 1e-6).")
    ] = None,
    groups: GroupsOption = "",
    out: OutOption = None,
    as_json: JsonOption = False,
    draws: DrawsOption = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    radius: RadiusOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Verify the template pairs of IJB-B or IJB-C: TMR at FMR, EER and DET, for every way to pool and score.

    Prints one line per row and target, `[ijbc][N0D0F1K1:mls]TAR@FAR<=0.0001: 0.96220`, or JSON. Images that
    could not be embedded are counted, and pairs of a template without any image are left out.
    """
    from spherecf.data import read_ijb
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import evaluate_ijb, ijb_notes, ijb_tables, require_matplotlib

    check_json(as_json, json_file)
    if out is not None:
        require_matplotlib()  # before the work, not after
    source, templates = Embeddings.load(embeddings), read_ijb(meta, set_)
    named = None
    if groups:
        from spherecf.evaluation import template_groups

        named = template_groups(templates, *open_groups(groups, source))
    report = evaluate_ijb(
        source, templates, modes=mode or (), scores=score or (), draws=draws, seed=seed, radius=radius,
        threads=threads, groups=named, **({"targets": fmr} if fmr else {}),
    )  # fmt: skip
    show(ijb_tables(report), ijb_notes(report))
    written = None if out is None else _write(out, report, source, templates.fingerprint())
    if as_json:
        say_json(report.to_dict(curves=False), written, json_file)
    else:
        for line in log_lines(report):
            typer.echo(line)
    say_written(written)


def log_lines(report: "TemplateReport") -> list[str]:
    """One line per row and resolved target."""
    return [
        f"[{report.name}][{result.mode}:{result.score}]TAR@FAR<={entry.target:g}: {entry.tmr:.5f}"
        for result in report.results
        for entry in result.tmr
        if entry.tmr is not None
    ]


def show(tables: "Sequence[Table]", notes: Sequence[str]) -> None:
    """Tables and what is to be said about them, for people."""
    from spherecf.evaluation import rich_table

    console.print(*map(rich_table, tables))
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def refuse_given(given: Iterable[str], verb: str, other: str) -> None:
    """Options without effect in this kind of run are a mistake of the user's, and told."""
    flags = [f"--{_SINGULAR.get(name, name).replace('_', '-')}" for name in given]
    if flags:
        verbs = "goes" if len(flags) == 1 else "go"
        raise InputError(f"{verb}: {' and '.join(flags)} {verbs} with {other}, and would have no effect here")


def check_json(as_json: bool, json_file: Path | None) -> None:
    """A file name without --json is a mistake, told before the work."""
    if json_file is not None and not as_json:
        raise InputError(f"what is {json_file} for? `--json {json_file}` writes the numbers there")


def say_json(numbers: dict[str, Any], written: Path | None, json_file: Path | None) -> None:
    """JSON on stdout, or in a file, whole or not at all."""
    from spherecf.common.files import write_atomically

    text = json.dumps(numbers | ({} if written is None else {"report": str(written)}), indent=2)
    if json_file is None:
        typer.echo(text)
    else:
        write_atomically(json_file, lambda stream: stream.write(f"{text}\n".encode()))


def say_written(written: Path | None) -> None:
    """Where the report is, for people."""
    console.print(
        f"report: {written}" if written else "no report written; --out FOLDER writes one", markup=False
    )


def _write(out: Path, report: "TemplateReport", source: "Embeddings", meta: str) -> Path:
    from spherecf.common.version import environment
    from spherecf.evaluation import ijb_section, write_report

    return write_report(
        out, title=f"{report.name}: 1:1 verification of templates", sections=[ijb_section(report)],
        results={"ijb": report.to_dict()},
        provenance={"embeddings": source.provenance, "meta": meta, "environment": environment()},
    ).html  # fmt: skip

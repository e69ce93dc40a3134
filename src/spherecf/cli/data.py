"""`spherecf data`: look into data sets, convert between their layouts, and check them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spherecf.cli import _import
from spherecf.cli._audit import show_report
from spherecf.cli._backbone import BackboneFile, EngineName, PresetName, open_backbone
from spherecf.cli._output import file_to_write
from spherecf.common.progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.data import ImageSource, Skipped

app = typer.Typer(help="Inspect, convert and check data sets.", no_args_is_help=True)

_ListRoot = Annotated[
    Path | None, typer.Option(help="Where the paths of a list file start (default: its folder).")
]
_TO_HELP = "rec, folder, list or bin; default: bin for a .bin target, folder from a RecordIO set, else rec."
_LISTED = 20  # broken images shown in the table; the JSON lists all


@app.callback()
def _root() -> None:
    pass


@app.command(epilog="Example: spherecf data inspect faces/ --decode --json > faces.json")
def inspect(
    path: Annotated[
        Path, typer.Argument(help="Identity folder, list file, .lst, RecordIO set or pair .bin.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON on stdout.")] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Decode all images, list broken ones.")] = False,
    root: _ListRoot = None,
) -> None:
    """Say what a data set holds: kind, images, identities, picture sizes, fingerprint, broken images.

    Without --decode, 64 evenly spaced images stand for all.
    """
    from spherecf.data import describe, open_source

    facts = {"path": str(path)} | describe(open_source(path, root), decode)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _show(facts)


@app.command(epilog="Example: spherecf data convert faces/ faces_rec/ --to rec")
def convert(
    source: Annotated[Path, typer.Argument(help="What to read: any layout that `inspect` knows.")],
    target: Annotated[Path, typer.Argument(help="New folder, or a .bin file together with --pairs.")],
    to: Annotated[str, typer.Option(help=_TO_HELP)] = "",
    pairs: Annotated[Path | None, typer.Option(help="Pairs for a .bin: pairs.txt, a table, .bin.")] = None,
    root: _ListRoot = None,
) -> None:
    """Write a data set in another layout. Broken images are left out, counted and listed.

    The report, as JSON on stdout: what was written, and every skipped image with the reason.
    """
    from spherecf.data import open_source

    opened = open_source(source, root)
    skipped: list[Skipped] = []
    written = _write(opened, target, to, pairs, skipped)
    report = {
        "written": str(target),
        "kind": type(written).__name__,
        "images": len(written),
        "identities": len(written.identities),
        "fingerprint": written.fingerprint(),
        "skipped": [item._asdict() for item in skipped],
    }
    typer.echo(json.dumps(report, indent=2))
    if skipped:
        console.print(f"[yellow]{len(skipped)} of {len(opened)} images were broken and left out:[/]")
        _list_broken(report["skipped"])


@app.command(epilog="Example: spherecf data check train/ --against lfw/ --cache checks")
def check(
    path: Annotated[Path, typer.Argument(help="What to check: any layout that `inspect` knows.")],
    against: Annotated[Path | None, typer.Option(help="Another set: what of it is in PATH too?")] = None,
    backbone: BackboneFile = None,
    preprocessing: PresetName = "",
    engine: EngineName = "auto",
    pixels_only: Annotated[
        bool, typer.Option("--pixels-only", help="No recogniser: no suspects and no likeness.")
    ] = False,
    fmr: Annotated[float, typer.Option(help="Of one comparison: how few strangers look more alike.")] = 1e-3,
    fpir: Annotated[float, typer.Option(help="Of a search: how few have a stranger so near.")] = 1e-2,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the passes, so that the command can go on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the report as JSON into this file.", callback=file_to_write)
    ] = None,
    root: _ListRoot = None,
) -> None:
    """Find corrupt and double images, images with a wrong label, and people who are in two sets.

    With --cache FOLDER an interrupted run goes on where it stopped.
    """
    from spherecf.audit import check as check_source
    from spherecf.common.files import write_atomically
    from spherecf.data import open_source

    source, other = open_source(path, root), open_source(against) if against else None
    model = None if pixels_only else open_backbone(backbone, preprocessing, engine)
    report = check_source(source, other, model, cache, fmr=fmr, fpir=fpir)
    text = json.dumps(report, indent=2)
    if out is not None:
        write_atomically(out, lambda stream: stream.write(text.encode()))
    if as_json:
        typer.echo(text)
    else:
        show_report(report)


@app.command(epilog="Example: spherecf data index faces/train.rec")
def index(
    path: Annotated[Path, typer.Argument(help="A .rec file, or the folder of train.rec.")],
) -> None:
    """Write the .idx of a RecordIO set anew, from the records themselves.

    For a .rec whose index is missing, short or of another set. An index that is there is not overwritten:
    move it away first.
    """
    from spherecf.data import write_index

    typer.echo(write_index(path))


app.command("import", epilog=_import.EXAMPLE)(_import.import_features)


def _write(
    source: "ImageSource", target: Path, to: str, pairs: Path | None, skipped: "list[Skipped]"
) -> "ImageSource":
    from spherecf.data import RecordFile, open_pairs, write_folder, write_list, write_pair_bin, write_records

    to = to or ("bin" if target.suffix == ".bin" else "folder" if isinstance(source, RecordFile) else "rec")
    writers = {"rec": write_records, "folder": write_folder, "list": write_list}
    if to not in (*writers, "bin"):
        raise InputError(f"--to must be rec, folder, list or bin, got {to!r}")
    if (to == "bin") != (pairs is not None):
        raise InputError("a pair .bin needs --pairs FILE, and nothing else does")
    if pairs is not None:
        return write_pair_bin(source, open_pairs(pairs), target)
    return writers[to](source, target, skipped=skipped)


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if name == "notes":
            continue
        if name == "images_per_identity" and value:
            numbers = ", ".join(f"{key} {value[key]}" for key in ("least", "median", "mean", "most"))
            bins = "  ".join(f"{key}: {count}" for key, count in value["histogram"].items() if count)
            table.add_row("images per identity", numbers)
            table.add_row("identities by images", bins)
        elif name == "notes":
            for note in value:
                table.add_row("note", note)
        elif isinstance(value, dict):
            table.add_row(
                name.replace("_", " "), ", ".join(f"{key}: {count}" for key, count in value.items())
            )
        else:
            table.add_row(name.replace("_", " "), str(len(value) if isinstance(value, list) else value))
    for note in facts["notes"]:
        table.add_row("note", note)
    console.print(table, highlight=False, markup=False)
    _list_broken(facts["broken"])


def _list_broken(broken: Any) -> None:
    for item in broken[:_LISTED]:
        console.print(f"  {item['key']}: {item['reason']}", highlight=False, markup=False, soft_wrap=True)
    if len(broken) > _LISTED:
        console.print(f"  ... and {len(broken) - _LISTED} more (all of them are in the JSON)")

"""`spherecf data`: look into data sets, convert between their layouts, import features, and check them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spherecf.cli.options import BackboneFile, EngineName, PresetName, open_backbone
from spherecf.cli.output import file_to_write
from spherecf.common.progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.data import ImageSource, Skipped


_LISTED_PROBLEMS = 10  # of each kind; the JSON lists all


def show_report(report: dict[str, Any]) -> None:
    """Print the report of `spherecf.audit.check` to stderr."""
    for name in ("source", "against"):
        if facts := report[name]:
            _say(f"{facts['name']}: {facts['images']:,} images of {facts['identities']:,} identities")
    _list("corrupt images", [f"{item['key']}: {item['reason']}" for item in report["corrupt"]])
    _list("images of another size", [f"{item['key']}: {item['size']}" for item in report["odd_sizes"]])
    several = [group for group in report["duplicates"] if group["across_identities"]]
    one = [group for group in report["duplicates"] if not group["across_identities"]]
    _list("pictures that stand under several identities", [_group(group) for group in several])
    _list("pictures that stand several times under one identity", [_group(group) for group in one])
    if report["against"]:
        _list("pictures that are in both sets", [_group(group) for group in report["duplicates_against"]])
        if report["shared_names"] is None:
            _say("names shared by both sets: cannot be told, the names of one are numbers")
        else:
            _list("names shared by both sets", report["shared_names"])
    if report["faces"]:
        _show_faces(report["faces"], report["against"] is not None)


def _show_faces(faces: dict[str, Any], against: bool) -> None:
    rule = faces["thresholds"]
    _say(
        f"{faces['backbone']['name']}: a suspect is below {rule['own']:.3f} to its own identity (FMR "
        f"{rule['fmr']:g}, {rule['comparisons']:,} comparisons) and at least {rule['other']:.3f} to another "
        f"one (FPIR {rule['fpir']:g}, {rule['images']:,} images)"
    )
    _list(
        f"suspects among {faces['judged']:,} images whose identity has another image",
        [
            f"{item['key']}: {item['own_cosine']:.3f} to {item['identity']}, {item['other_cosine']:.3f} to "
            f"{item['other']}"
            for item in faces["suspects"]
        ],
    )
    _list("pairs of identities that look like one person", _pairs(faces["same_person"]))
    if against:
        _list("people of the other set who look like one of this set", _pairs(faces["overlap"]))


def _pairs(pairs: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{pair['left']} and {pair['right']}: {pair['cosine']:.3f}" for pair in pairs]


def _group(group: dict[str, Any]) -> str:
    return f"{', '.join([*group['keys'], *group['against']])} (same {group['same']})"


def _list(what: str, lines: Sequence[str]) -> None:
    _say(f"{what}: {len(lines):,}")
    for line in lines[:_LISTED_PROBLEMS]:
        _say(f"  {line}")
    if len(lines) > _LISTED_PROBLEMS:
        _say(f"  ... and {len(lines) - _LISTED:,} more (the JSON has all)")


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


_IMPORT_EXAMPLE = (
    "Example: spherecf data import feats.npy ijbc.safetensors --meta IJBC/ --set ijbc --halves --flip sum"
)


def import_features(
    features: Annotated[
        Path,
        typer.Argument(help="A .npy (n, d), a .npz with keys and more beside, or lines `image f1 f2 ...`."),
    ],
    out: Annotated[
        Path, typer.Argument(help="Embeddings file to write, e.g. ijbc.safetensors.", callback=file_to_write)
    ],
    keys: Annotated[Path | None, typer.Option(help="Text file: the key of each row, one per line.")] = None,
    meta: Annotated[Path | None, typer.Option(help="IJB's meta files: rows are in their order.")] = None,
    set_: Annotated[str, typer.Option("--set", help="With --meta: ijbb or ijbc.")] = "ijbc",
    halves: Annotated[
        bool, typer.Option("--halves", help="A row is the original's features, then the mirrored image's.")
    ] = False,
    flip: Annotated[
        str, typer.Option(help="none or sum: what to do with the halves, or what was done before.")
    ] = "",
    alignment: Annotated[str, typer.Option(help="How the faces were aligned, for the signature.")] = "",
) -> None:
    """Read features dumped by other tools and write an embeddings file.

    A .npy of (n, d) floats (insightface's img_feats) needs --keys or --meta. A .npz may hold keys, labels,
    norms and a concentration (PFE's sigma_sq). Text is feat.list of MagFace, or .csv: the image, then its
    features, separated by blanks, tabs, commas or semicolons. No pickle is opened.

    Rows that are NaN or all zeros are failures to acquire: left out, counted and listed. The report, as JSON
    on stdout: what was written, where the concentration comes from, every skipped row with the reason.
    """
    from spherecf.data import read_features, read_keys

    if keys is not None and meta is not None:
        raise InputError("import: keys come from --keys FILE or from --meta FOLDER, not from both")
    extras, names = _of_meta(meta, set_) if meta is not None else ({}, None)
    if keys is not None:
        names = read_keys(keys)
    facts = {"alignment": alignment} if alignment else {}
    found = read_features(features, names, halves=halves, flip=flip or None, provenance=facts)
    if extras and "detector_score" not in found.extras:
        found.extras |= {name: column[_rows(found.keys, names)] for name, column in extras.items()}
    found.save(out)
    report = {
        "written": str(out), "images": len(found), "dim": found.dim, "fingerprint": found.fingerprint(),
        "flip": found.provenance.get("flip"), "log_kappa": found.provenance["log_kappa"],
        "extras": sorted(found.extras),
        "skipped": [{"key": key, "reason": reason} for key, reason in found.skipped],
    }  # fmt: skip
    typer.echo(json.dumps(report, indent=2))
    rows = len(found) + len(found.skipped)
    console.print(f"{len(found)} of {rows} rows imported: {out}", highlight=False, markup=False)


def _of_meta(meta: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """(columns by entry, file of each entry)."""
    from spherecf.data import read_ijb

    found = read_ijb(meta, name)
    scores = found.detector_score
    return ({} if scores is None else {"detector_score": scores}), list(found.files)


def _rows(keys: Any, names: list[str] | None) -> list[int]:
    index = {name: row for row, name in enumerate(names or [])}
    return [index[key] for key in keys]


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


app.command("import", epilog=_IMPORT_EXAMPLE)(import_features)


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

"""`spherecf data`: inspect, convert and check data sets; import features from other tools."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spherecf.cli.options import (
    AsReport,
    BackboneFile,
    DeviceName,
    EngineName,
    IjbSet,
    ListRoot,
    PresetName,
    file_to_write,
    open_backbone,
    print_listing,
    print_text,
)
from spherecf.common.progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.data import ImageSource, Skipped


_MAX_LISTED = 10  # problems of each kind to print; the JSON output contains all of them


def show_report(report: dict[str, Any]) -> None:
    """Print the report of `spherecf.audit.check` on stderr."""
    for name in ("source", "against"):
        if facts := report[name]:
            print_text(f"{facts['name']}: {facts['images']:,} images of {facts['identities']:,} identities")
    _list("corrupt images", [f"{item['key']}: {item['reason']}" for item in report["corrupt"]])
    _list("images of an unusual size", [f"{item['key']}: {item['size']}" for item in report["odd_sizes"]])
    across = [group for group in report["duplicates"] if group["across_identities"]]
    within = [group for group in report["duplicates"] if not group["across_identities"]]
    _list("duplicate images under several identities", [_group(group) for group in across])
    _list("duplicate images under one identity", [_group(group) for group in within])
    if report["against"]:
        _list("images in both sets", [_group(group) for group in report["duplicates_against"]])
        if report["shared_names"] is None:
            print_text("names in both sets: unknown, because the names of one set are numbers")
        else:
            _list("names in both sets", report["shared_names"])
    if report["faces"]:
        _show_faces(report["faces"], report["against"] is not None)


def _show_faces(faces: dict[str, Any], against: bool) -> None:
    rule = faces["thresholds"]
    print_text(
        f"{faces['backbone']['name']}: a label is suspect if the cosine to its own identity is below "
        f"{rule['own']:.3f} (FMR {rule['fmr']:g}, {rule['comparisons']:,} comparisons) and the cosine to "
        f"another identity is at least {rule['other']:.3f} (FPIR {rule['fpir']:g}, {rule['images']:,} images)"
    )
    _list(
        f"suspect labels among {faces['judged']:,} images of identities with several images",
        [
            f"{item['key']}: {item['own_cosine']:.3f} to {item['identity']}, {item['other_cosine']:.3f} to "
            f"{item['other']}"
            for item in faces["suspects"]
        ],
    )
    _list("pairs of identities that look like the same person", _pairs(faces["same_person"]))
    if against:
        _list("identities of the two sets that look like the same person", _pairs(faces["overlap"]))


def _pairs(pairs: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{pair['left']} and {pair['right']}: {pair['cosine']:.3f}" for pair in pairs]


def _group(group: dict[str, Any]) -> str:
    return f"{', '.join([*group['keys'], *group['against']])} (same {group['same']})"


def _list(title: str, lines: Sequence[str]) -> None:
    print_text(f"{title}: {len(lines):,}")
    print_listing(lines, _MAX_LISTED)


_IMPORT_EXAMPLE = (
    "Example: spherecf data import feats.npy ijbc.safetensors --meta IJBC/ --set ijbc --halves --flip sum"
)


def import_features(
    features: Annotated[
        Path,
        typer.Argument(
            help="Features: a .npy of shape (n, d), a .npz with keys, or a text file with lines "
            "`image f1 f2 ...`."
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="Embeddings file to write, e.g. ijbc.safetensors.", callback=file_to_write)
    ],
    keys: Annotated[
        Path | None, typer.Option(help="Text file with the keys of the rows, one per line.")
    ] = None,
    meta: Annotated[
        Path | None,
        typer.Option(help="Folder of IJB's meta files. The rows must be in the order of these files."),
    ] = None,
    set_: IjbSet = "ijbc",
    halves: Annotated[
        bool | None,
        typer.Option(
            "--halves/--no-halves",
            help="Split each row into the features of the image and the features of its mirror image, or "
            "not, even if both look alike (default: not, and refuse rows that look alike).",
        ),
    ] = None,
    flip: Annotated[
        str,
        typer.Option(
            help="How to combine the mirrored features, or how they were combined already: none or sum."
        ),
    ] = "",
    alignment: Annotated[
        str, typer.Option(help="How the faces were aligned. Recorded in the signature of the results.")
    ] = "",
) -> None:
    """Import features from other tools into an embeddings file.

    A .npy file of (n, d) floats, such as insightface's img_feats, needs --keys or --meta. A .npz file may
    contain keys, labels, norms and a concentration (PFE's sigma_sq). A text file may be MagFace's feat.list
    or a CSV file: each line has the image, then its features, separated by spaces, tabs, commas or
    semicolons. Pickles are not loaded.

    Rows that contain NaN or only zeros are failures to acquire: they are skipped and listed. Prints a JSON
    report on stdout: the file written, the source of the concentration, and every skipped row.
    """
    from spherecf.data import read_features, read_ijb, read_keys

    if keys is not None and meta is not None:
        raise InputError("data import: give --keys FILE or --meta FOLDER, not both")
    entries = None if meta is None else read_ijb(meta, set_)
    names = read_keys(keys) if keys is not None else None if entries is None else list(entries.files)
    facts = {"alignment": alignment} if alignment else {}
    imported = read_features(features, names, halves=halves, flip=flip or None, provenance=facts)
    if entries is not None and entries.detector_score is not None and "detector_score" not in imported.extras:
        row = {name: index for index, name in enumerate(entries.files)}
        imported.extras["detector_score"] = entries.detector_score[[row[key] for key in imported.keys]]
    imported.save(out)
    report = {
        "written": str(out), "images": len(imported), "dim": imported.dim,
        "fingerprint": imported.fingerprint(),
        "flip": imported.provenance.get("flip"), "log_kappa": imported.provenance["log_kappa"],
        "extras": sorted(imported.extras),
        "skipped": [{"key": key, "reason": reason} for key, reason in imported.skipped],
    }  # fmt: skip
    typer.echo(json.dumps(report, indent=2))
    rows = len(imported) + len(imported.skipped)
    print_text(f"{len(imported)} of {rows} rows imported: {out}")


app = typer.Typer(help="Inspect, convert and check data sets.", no_args_is_help=True)

_TO_HELP = (
    "Target layout: rec, folder, list or bin (default: bin for a .bin target, folder for a RecordIO source, "
    "otherwise rec)."
)


@app.command(epilog="Example: spherecf data inspect faces/ --decode --json > faces.json")
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            help="Data set: a folder with one sub-folder per identity, a list file, a .lst, a RecordIO set "
            "or a pair .bin."
        ),
    ],
    as_json: AsReport = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode all images, and list the corrupt ones.")
    ] = False,
    root: ListRoot = None,
) -> None:
    """Show what a data set contains: layout, images, identities, image sizes, fingerprint and corrupt images.

    Decodes 64 evenly spaced images, or all images with --decode.
    """
    from spherecf.data import describe, open_source

    facts = {"path": str(path)} | describe(open_source(path, root), decode)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _show(facts)


@app.command(epilog="Example: spherecf data convert faces/ faces_rec/ --to rec")
def convert(
    source: Annotated[Path, typer.Argument(help="Data set in any layout that `data inspect` reads.")],
    target: Annotated[Path, typer.Argument(help="New folder to write, or a .bin file with --pairs.")],
    to: Annotated[str, typer.Option(help=_TO_HELP)] = "",
    pairs: Annotated[
        Path | None, typer.Option(help="Pair list for a .bin target: pairs.txt, a table or a .bin file.")
    ] = None,
    root: ListRoot = None,
) -> None:
    """Convert a data set to another layout. Corrupt images are skipped and listed.

    Prints a JSON report on stdout: the files written, and every skipped image with the reason.
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
        print_text(f"{len(skipped)} of {len(opened)} images are corrupt and were skipped:", "yellow")
        _list_corrupt(report["skipped"])


@app.command(epilog="Example: spherecf data check train/ --against lfw/ --cache checks")
def check(
    path: Annotated[Path, typer.Argument(help="Data set to check, in any layout that `data inspect` reads.")],
    against: Annotated[
        Path | None, typer.Option(help="Second data set. Lists images and identities that are in both sets.")
    ] = None,
    backbone: BackboneFile = None,
    preprocessing: PresetName = "",
    engine: EngineName = "auto",
    device: DeviceName = "cpu",
    pixels_only: Annotated[
        bool,
        typer.Option(
            "--pixels-only", help="Run without a recogniser. Skips the checks of labels and identities."
        ),
    ] = False,
    fmr: Annotated[
        float,
        typer.Option(help="False match rate that sets the threshold for an image and its labelled identity."),
    ] = 1e-3,
    fpir: Annotated[
        float,
        typer.Option(
            help="False positive identification rate that sets the threshold for an image and other "
            "identities."
        ),
    ] = 1e-2,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for intermediate results. An interrupted run continues from them."),
    ] = None,
    as_json: AsReport = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the report as JSON to this file.", callback=file_to_write)
    ] = None,
    root: ListRoot = None,
) -> None:
    """Find corrupt and duplicate images, wrong labels, and identities that are in two data sets.

    With --cache FOLDER, run the same command again to continue after an interruption.
    """
    from spherecf.audit import check as check_source
    from spherecf.common.files import write_atomically
    from spherecf.data import open_source

    source, other = open_source(path, root), open_source(against) if against else None
    model = None if pixels_only else open_backbone(backbone, preprocessing, engine, device)
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
    path: Annotated[Path, typer.Argument(help="A .rec file, or the folder that contains train.rec.")],
) -> None:
    """Rebuild the .idx file of a RecordIO set from its records.

    Use it if the index is missing, incomplete or belongs to another set. An existing index is never
    overwritten; move it away first.
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
        raise InputError(f"--to: expected rec, folder, list or bin, got {to!r}")
    if (to == "bin") != (pairs is not None):
        raise InputError("--pairs FILE is required for a .bin target, and not allowed for other targets")
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
            labels = {"least": "min", "median": "median", "mean": "mean", "most": "max"}
            summary = ", ".join(f"{label} {value[key]}" for key, label in labels.items())
            bins = "  ".join(f"{key}: {count}" for key, count in value["histogram"].items() if count)
            table.add_row("images per identity", summary)
            table.add_row("identities by images", bins)
        elif isinstance(value, dict):
            table.add_row(
                name.replace("_", " "), ", ".join(f"{key}: {count}" for key, count in value.items())
            )
        else:
            table.add_row(name.replace("_", " "), str(len(value) if isinstance(value, list) else value))
    for note in facts["notes"]:
        table.add_row("note", note)
    console.print(table, highlight=False, markup=False)
    _list_corrupt(facts["broken"])


def _list_corrupt(images: Any) -> None:
    print_listing([f"{image['key']}: {image['reason']}" for image in images])

"""`spherecf data import`: features that other tools dumped, as an embeddings file."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from spherecf.cli._output import file_to_write
from spherecf.common.progress import console
from spherecf.errors import InputError

EXAMPLE = (
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

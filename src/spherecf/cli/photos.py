"""`spherecf compare` and `template`: compare photos, and pool photos of one person."""

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.options import (
    AsLines,
    BackboneOfModel,
    DetectorFile,
    DeviceName,
    ModelFile,
    PhotoPaths,
    file_to_write,
    open_assessor,
    photos_in,
    print_left_out,
    print_lines,
    print_text,
)
from spherecf.common.progress import console, track
from spherecf.errors import FileFormatError, InputError

if TYPE_CHECKING:
    from spherecf.photos import Comparison, FaceAssessor, PhotoTemplate, TemplatePhoto

COMPARE_EXAMPLE = "Example: spherecf compare passport.jpg door.jpg --max-fmr 1e-4"


def compare(
    left: Annotated[Path | None, typer.Argument(help="First photo.")] = None,
    right: Annotated[Path | None, typer.Argument(help="Second photo.")] = None,
    max_fmr: Annotated[
        float,
        typer.Option(help="Maximum false match rate. The model must have a decision rule for this rate."),
    ] = 1e-4,
    face: Annotated[
        list[int] | None,
        typer.Option(
            help="Index of the face to compare (0: the main face). Give the option twice, for LEFT and RIGHT "
            "(default: 0 and 0)."
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Compare many pairs instead of two photos: a CSV file with two columns of photos."),
    ] = None,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    device: DeviceName = "cpu",
) -> None:
    """Decide whether two photos show the same person: match, non-match or undecided.

    The false match rate is at most --max-fmr. The decision is undecided if a photo has no face, if the
    quality of a face is too low, or if the score is between the thresholds. Prints one JSON line per pair:
    decision, reason, score, cosine, log-likelihood ratio (natural log), thresholds, the false match rate
    measured at calibration, and both faces.
    """
    if (pairs is None) == (left is None or right is None):
        raise typer.BadParameter("expected two photos, or --pairs FILE", param_hint="LEFT RIGHT")
    if face is not None and (len(face) != 2 or pairs is not None):
        raise typer.BadParameter(
            "give this option twice, for LEFT and RIGHT, and without --pairs", param_hint="--face"
        )
    photo_pairs = _read_pairs(pairs) if pairs is not None else [(str(left), str(right))]
    assessor = open_assessor(model, backbone, detector, device=device)
    results = _compare(assessor, photo_pairs, max_fmr, (face[0], face[1]) if face else (0, 0))
    print_lines((result.to_dict() for result in results), as_lines)
    console.print(_details_table(results[0]) if len(results) == 1 else _summary_table(results))


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    """Read (left, right) paths, relative to the current folder."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(path, f"expected a CSV file with two columns ({error}).") from error
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise FileFormatError(path, f"row {number}: expected two photos, got {len(row)} columns.")
        if not all(map(str.strip, row)):
            raise FileFormatError(path, f"row {number}: expected two photos, but a column is empty.")
    if not rows:
        raise InputError(f"{path}: contains no pairs")
    return [(left.strip(), right.strip()) for left, right in rows]


def _compare(
    assessor: "FaceAssessor", pairs: list[tuple[str, str]], max_fmr: float, faces: tuple[int, int]
) -> "list[Comparison]":
    """Assess each photo once, then compare all pairs."""
    from spherecf.photos import compare as compare_photos, printable, rule_for

    model = assessor.model
    rule_for(model.calibration, max_fmr, radius=model.radius)  # fail before the photos are assessed
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    stream = assessor.stream((printable(Path(name)), Path(name)) for name in names)
    photos = {name: photo for photo, name in zip(track(stream, "photos", len(names)), names)}
    return [
        compare_photos(
            photos[left], photos[right], model.calibration, radius=model.radius, max_fmr=max_fmr, faces=faces
        )
        for left, right in pairs
    ]


def _details_table(result: "Comparison") -> Table:
    decision = result.decision.value.replace("_", "-").upper()
    table = Table(title=escape(f"{decision}: {result.reason}"), show_header=False)
    for photo, face_index in zip((result.left, result.right), result.faces):
        if photo.main is not None:
            face = photo.faces[face_index]
            reasons = ", ".join(face.reasons) or "no capture problems"
            table.add_row(
                escape(photo.name), f"quality {face.quality} of 100, kappa {face.kappa:.0f}; {reasons}"
            )
        else:
            table.add_row(escape(photo.name), escape(photo.reason))
    if result.score is not None:
        threshold = "none" if result.rule.accept is None else f"{result.rule.accept:.2f}"
        table.add_row("score", f"{result.score:.2f} (cosine {result.cosine:.3f})")
        table.add_row(result.rule.score, f"{result.evidence:.2f}, match threshold {threshold}")
    if result.llr is not None:
        table.add_row("likelihood ratio", f"10^{result.llr / math.log(10):+.1f} in favour of the same person")
    if (test := result.false_matches) is not None:
        measured = f"measured: {test.errors:,} in {test.trials:,} pairs of different people"
        measured += f" ({result.rule.tested_on})"
        table.add_row("false match rate", f"guaranteed: at most {result.max_fmr:g}; {measured}")
    for note in result.notes:
        table.add_row("note", escape(note))
    return table


def _summary_table(results: "list[Comparison]") -> Table:
    table = Table(title=f"{len(results)} pairs at FMR {results[0].max_fmr:g}")
    for column in ("decision", "left", "right", "score", "reason"):
        table.add_column(column, overflow="fold")
    for result in results:
        score = "" if result.score is None else f"{result.score:.2f}"
        texts = result.left.name, result.right.name, score, result.reason
        table.add_row(result.decision.value, *map(escape, texts))
    return table


TEMPLATE_EXAMPLE = "Example: spherecf template anna/*.jpg --exclude-strangers --out anna.safetensors"


def template(
    paths: PhotoPaths,
    exclude_strangers: Annotated[
        bool, typer.Option("--exclude-strangers", help="Leave out photos that look like a different person.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the template to this file, as an embeddings file with one row.",
            callback=file_to_write,
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(help="Name of the person in the file; needs --out (default: the name of the file)."),
    ] = "",
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
) -> None:
    """Pool photos of one person into a template, and show the contribution of each photo.

    Prints one JSON line: the pooled kappa, the pooled kappa after each photo, and for each photo its weight,
    its gain, whether it helps, whether it looks like a different person, and which photo it duplicates.
    """
    from spherecf.photos import build_template

    if name and out is None:
        raise typer.BadParameter("has no effect without --out", param_hint="--name")
    files = photos_in(paths)
    assessor = open_assessor(model, backbone, detector, faces="main")
    stream = assessor.stream((file.name, file.path) for file in files.photos)
    photos = list(track(stream, "photos", len(files.photos)))
    loaded = assessor.model
    pooled = build_template(
        photos, loaded.calibration, radius=loaded.radius, exclude_strangers=exclude_strangers
    )
    line = pooled.to_dict()
    if out is not None:
        facts = {"model": loaded.fingerprint(), "backbone": loaded.backbone.sha256, "radius": loaded.radius}
        line["written"] = str(pooled.save(out, name or out.stem, provenance=facts))
    print_lines([line], as_lines)
    console.print(_template_table(pooled))
    for warning in pooled.warnings:
        print_text(warning, "yellow")
    print_left_out(files)


def _template_table(pooled: "PhotoTemplate") -> Table:
    table = Table(title=f"pooled kappa {pooled.kappa:.0f} from {len(pooled.pooled)} photos")
    for column in ("photo", "quality", "weight", "gain", "assessment"):
        table.add_column(column, overflow="fold")
    for photo in pooled.photos:
        if photo.kappa is None:
            table.add_row(escape(photo.name), "", "", "", escape(photo.reason))
        else:
            numbers = str(photo.quality), f"{photo.weight:.0%}", f"{photo.gain:+.0f}"
            table.add_row(escape(photo.name), *numbers, escape(_assessment(photo)))
    return table


def _assessment(photo: "TemplatePhoto") -> str:
    if photo.stranger:
        return "different person? " + photo.reason
    if photo.same_as is not None:
        return f"duplicate of {photo.same_as}"
    effect = "helps" if photo.helps else "adds little"
    return f"{effect}: {', '.join(photo.reasons)}" if photo.reasons else effect

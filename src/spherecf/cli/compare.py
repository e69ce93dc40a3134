"""`spherecf compare`: the same person, or not, or undecided."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.options import BackboneOfModel, DetectorFile, ModelFile, open_assessor
from spherecf.cli.output import AsLines, lines_wanted, print_lines
from spherecf.common.progress import console, progress
from spherecf.errors import FileFormatError, InputError

if TYPE_CHECKING:
    from spherecf.photos import AssessedPhoto, Comparison, FaceAssessor

EXAMPLE = "Example: spherecf compare passport.jpg door.jpg --max-fmr 1e-4"


def compare(
    left: Annotated[Path | None, typer.Argument(help="A photo.")] = None,
    right: Annotated[Path | None, typer.Argument(help="Another photo.")] = None,
    max_fmr: Annotated[
        float, typer.Option(help="At most this share of pairs of strangers is called a match.")
    ] = 1e-4,
    face: Annotated[
        list[int] | None,
        typer.Option(help="Which face of a photo, 0 the main one; give it twice, for left and right."),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Many pairs instead: CSV of two columns, a photo in each.")
    ] = None,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
) -> None:
    """Say whether two photos show one person: match, non-match or undecided, with the error that is promised.

    Undecided is said where a photo has no face, where a face is too poor to decide anything, and where the
    score lies between the thresholds. One JSON line per pair: decision, why, score, cosine, likelihood ratio
    (natural log), thresholds, the rate of false matches seen at calibration, and both faces.
    """
    if (pairs is None) == (left is None or right is None):
        raise typer.BadParameter("expected two photos, or --pairs FILE", param_hint="LEFT RIGHT")
    if face is not None and (len(face) != 2 or pairs is not None):
        raise typer.BadParameter("give it twice, for the left and the right photo", param_hint="--face")
    wanted = _read_pairs(pairs) if pairs is not None else [(str(left), str(right))]
    assessor = open_assessor(model, backbone, detector)
    found = _compare(assessor, wanted, max_fmr, (face[0], face[1]) if face else (0, 0))
    if lines_wanted(as_lines):
        print_lines(one.to_dict() for one in found)
    console.print(_facts(found[0]) if len(found) == 1 else _summary(found))


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    """Photos are named as seen from the folder that the command runs in."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(path, f"expected a CSV of two columns ({error}).") from error
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise FileFormatError(path, f"row {number}: expected two photos, got {len(row)} columns.")
        if not all(map(str.strip, row)):
            raise FileFormatError(path, f"row {number}: expected two photos, one is empty.")
    if not rows:
        raise InputError(f"{path}: no pairs in it")
    return [(left.strip(), right.strip()) for left, right in rows]


def _compare(
    assessor: "FaceAssessor", pairs: list[tuple[str, str]], max_fmr: float, faces: tuple[int, int]
) -> "list[Comparison]":
    """Every photo is assessed once, however many pairs it is in."""
    from spherecf.photos import compare as compare_photos
    from spherecf.photos import printable, rule_for

    model = assessor.model
    rule_for(model.calibration, max_fmr, radius=model.radius)  # refused before the work, not after
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    photos: dict[str, AssessedPhoto] = {}
    with progress("photos", len(names)) as advance:
        stream = assessor.stream((printable(Path(name)), Path(name)) for name in names)
        for name, photo in zip(names, stream):
            photos[name] = photo
            advance()
    return [
        compare_photos(
            photos[left], photos[right], model.calibration, radius=model.radius, max_fmr=max_fmr, faces=faces
        )
        for left, right in pairs
    ]


def _facts(found: "Comparison") -> Table:
    decision = found.decision.value.replace("_", "-").upper()
    table = Table(title=escape(f"{decision}: {found.why}"), show_header=False)
    for photo, which in zip((found.left, found.right), found.faces):
        if photo.main is not None:
            face = photo.faces[which]
            told = ", ".join(face.reasons) or "nothing conspicuous"
            table.add_row(
                escape(photo.name), f"quality {face.quality} of 100, kappa {face.kappa:.0f}; {told}"
            )
        else:
            table.add_row(escape(photo.name), escape(photo.reason))
    if found.score is not None:
        limit = "none" if found.rule.accept is None else f"{found.rule.accept:.2f}"
        table.add_row("score", f"{found.score:.2f}; a match from {limit} on (cosine {found.cosine:.3f})")
    if found.llr is not None:
        table.add_row("likelihood ratio", f"10 to the {found.llr / 2.302585:+.1f} for one person")
    if (seen := found.false_matches) is not None:
        told = f"the rule's test saw {seen.errors:,} in {seen.trials:,} pairs of strangers"
        table.add_row("false matches", f"at most {found.max_fmr:g} promised; {told}")
    for note in found.notes:
        table.add_row("note", escape(note))
    return table


def _summary(found: "list[Comparison]") -> Table:
    table = Table(title=f"{len(found)} pairs at FMR {found[0].max_fmr:g}")
    for column in ("decision", "left", "right", "score", "why"):
        table.add_column(column, overflow="fold")
    for one in found:
        score = "" if one.score is None else f"{one.score:.2f}"
        table.add_row(one.decision.value, *map(escape, (one.left.name, one.right.name, score, one.why)))
    return table

"""`spherecf quality`: photos ranked by how sure the recogniser is of their faces."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from spherecf.cli.options import BackboneOfModel, DetectorFile, EngineName, ModelFile, open_assessor
from spherecf.cli.output import AsLines, file_to_write, folder_to_write, lines_wanted, print_lines
from spherecf.common.progress import console, progress
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.photos import FaceAssessor, PhotoFiles

EXAMPLE = "Example: spherecf quality photos/ --sheet faces.html"
_LISTED = 20  # rows of the table at either end, and failures shown on stderr; the JSON lines have all


def quality(
    paths: Annotated[list[Path], typer.Argument(help="Photos, and folders with all below them.")],
    faces: Annotated[
        Literal["all", "main"], typer.Option(help="All faces of a photo, or its main one.")
    ] = "all",
    sort: Annotated[Literal["rank", "name"], typer.Option(help="Surest first, or by name.")] = "rank",
    as_lines: AsLines = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write a table of all faces.", callback=file_to_write)
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="Write lines `image_path score`, -1 for failures.", callback=file_to_write),
    ] = None,
    scores_of: Annotated[
        Literal["kappa", "percentile", "quality"], typer.Option(help="Which number --scores has.")
    ] = "kappa",
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet: .html, .png or .jpg.", callback=file_to_write)
    ] = None,
    min_quality: Annotated[
        int | None, typer.Option(min=0, max=100, help="Keep photos whose main face has this quality or more.")
    ] = None,
    copy_to: Annotated[
        Path | None, typer.Option(help="Copy the photos kept to this folder.", callback=folder_to_write)
    ] = None,
    keep_list: Annotated[
        Path | None, typer.Option(help="Write the names of the photos kept.", callback=file_to_write)
    ] = None,
    reject_list: Annotated[
        Path | None, typer.Option(help="Write the names of those below.", callback=file_to_write)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Keep what is assessed in this file, and go on from it the next time.",
            callback=file_to_write,
        ),
    ] = None,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    engine: EngineName = "auto",
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Larger pictures are refused.")] = 200.0,
) -> None:
    """Say how sure the recogniser is of every face in your photos, best first, and why.

    One JSON line per face: rank, quality (0 to 100: percent of the reference faces that are less sure),
    kappa, reasons, box, capture facts. Photos without a face are listed with the reason and quality -1. The
    photos themselves are never changed.
    """
    from spherecf.photos import find_photos, ranked_faces

    thinned = (copy_to, keep_list, reject_list)
    if min_quality is None and any(thinned):
        raise InputError(
            "--copy-to, --keep-list and --reject-list need --min-quality: how good is good enough?"
        )
    _check_sheet(sheet)
    found = find_photos(paths)
    if not found.photos:
        _tell_left_out(found)
        raise InputError(f"no photos in {', '.join(map(str, paths))}")
    assessor = open_assessor(
        model, backbone, detector, faces=faces, engine=engine, max_pixels=round(max_megapixels * 1e6)
    )
    calibration = assessor.model.calibration
    if min_quality is not None and (calibration is None or calibration.kappa is None):
        raise InputError("--min-quality needs a calibrated model: this one has no scale of quality")
    photos, complete = _assess(found, assessor, resume)
    rows = ranked_faces(photos)
    if sort == "name":
        rows.sort(key=lambda row: (row["photo"], row["face"] or 0))
    try:  # a full disk behind stdout or one of the files must not lose the others
        if lines_wanted(as_lines):
            print_lines(rows)
        else:
            console.print(_table(rows))
    finally:
        _tell(rows, found)
        _write(rows, found, csv, scores, scores_of, sheet)
        if min_quality is not None:
            _thin(rows, found, min_quality, *thinned, complete)
    if not complete:
        hint = "run the same command again to go on" if resume else "with --resume FILE it could go on"
        done = f"{len(photos)} of {len(found.photos)} photos"
        console.print(f"interrupted after {done}: {hint}", highlight=False)
        raise typer.Exit(130)


def _check_sheet(sheet: Path | None) -> None:
    if sheet is not None and sheet.suffix.lower() not in (".html", ".png", ".jpg"):
        raise InputError(f"{sheet}: expected a contact sheet .html, .png or .jpg")


def _assess(
    found: "PhotoFiles", assessor: "FaceAssessor", resume: Path | None
) -> tuple[list[dict[str, Any]], bool]:
    """Records of the photos, and False where Ctrl-C cut it short."""
    from spherecf.photos import assess_files

    photos: list[dict[str, Any]] = []
    try:
        with progress("assessing", len(found.photos)) as advance:
            for photo in assess_files(found.photos, assessor, resume=resume):
                photos.append(photo)
                advance()
    except KeyboardInterrupt:
        return photos, False
    return photos, True


def _write(
    rows: Sequence[dict[str, Any]],
    found: "PhotoFiles",
    csv: Path | None,
    scores: Path | None,
    scores_of: Literal["kappa", "percentile", "quality"],
    sheet: Path | None,
) -> None:
    from spherecf.photos import write_csv, write_scores, write_sheet

    if csv is not None:
        write_csv(csv, rows)
    if scores is not None:
        write_scores(scores, rows, scores_of)
    if sheet is not None:
        write_sheet(sheet, rows, {photo.name: photo.path for photo in found.photos})
    for written in filter(None, (csv, scores, sheet)):
        console.print(f"written: {written}", highlight=False, markup=False)


def _thin(
    rows: Iterable[dict[str, Any]],
    found: "PhotoFiles",
    least: int,
    copy_to: Path | None,
    keep_list: Path | None,
    reject_list: Path | None,
    complete: bool,
) -> None:
    from spherecf.photos import copy_photos, split_by_quality, write_list

    kept, rejected = split_by_quality(rows, least)
    for path, names in ((keep_list, kept), (reject_list, rejected)):
        if path is not None:
            write_list(path, names)
    console.print(f"{len(kept)} photos of quality {least} or more, {len(rejected)} below", highlight=False)
    if copy_to is not None and complete:
        wanted = set(kept)
        copied = copy_photos([photo for photo in found.photos if photo.name in wanted], copy_to)
        console.print(f"{copied} copied to {copy_to}", highlight=False, markup=False)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("rank", "photo", "face", "quality", "kappa", "reasons", box=None)
    faces = [row for row in rows if row["face"] is not None]
    hidden = max(0, len(faces) - 2 * _LISTED)
    for place, row in enumerate(faces):
        if hidden and place == _LISTED:
            table.add_row("", f"... {hidden} more ...")
        if not hidden or not _LISTED <= place < len(faces) - _LISTED:
            kappa = "" if row["kappa"] is None else f"{row['kappa']:.0f}"
            number = "" if row["quality"] < 0 else str(row["quality"])
            rank, which = str(row["rank"] or ""), str(row["face"] + 1)
            table.add_row(rank, Text(row["photo"]), which, number, kappa, ", ".join(row["reasons"]))
    return table


def _tell(rows: Sequence[dict[str, Any]], found: "PhotoFiles") -> None:
    failures = [row for row in rows if row["face"] is None]
    faces = len(rows) - len(failures)
    console.print(f"{faces} faces in {len({row['photo'] for row in rows})} photos", highlight=False)
    if failures:
        console.print(f"[yellow]{len(failures)} photos without a face to assess:[/]")
        _list(f"{row['photo']}: {row['reason']}" for row in failures)
    _tell_left_out(found)


def _tell_left_out(found: "PhotoFiles") -> None:
    if found.unreadable:
        console.print(f"[yellow]{len(found.unreadable)} folders cannot be read:[/]")
        _list(f"{name}: {reason}" for name, reason in found.unreadable)
    if found.ignored:
        console.print(f"{len(found.ignored)} other files are no photos by their names:")
        _list(found.ignored)


def _list(lines: Iterable[str]) -> None:
    every = list(lines)
    for line in every[:_LISTED]:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if len(every) > _LISTED:
        console.print(f"  ... and {len(every) - _LISTED} more")

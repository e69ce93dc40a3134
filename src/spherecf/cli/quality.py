"""`spherecf quality`: rank photos by the confidence of their faces."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from spherecf.cli.options import (
    AsLines,
    BackboneOfModel,
    DetectorFile,
    DeviceName,
    EngineName,
    ModelFile,
    PhotoPaths,
    file_to_write,
    folder_to_write,
    lines_wanted,
    open_assessor,
    photos_in,
    print_left_out,
    print_lines,
    print_listing,
    print_text,
)
from spherecf.common.progress import console, track
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.photos import FaceAssessor, PhotoFiles

EXAMPLE = "Example: spherecf quality photos/ --sheet faces.html"
_MAX_LISTED = 20  # rows printed at either end of the table; the JSON output contains all rows


def quality(
    paths: PhotoPaths,
    faces: Annotated[
        Literal["all", "main"], typer.Option(help="Assess all faces of a photo, or only the main face.")
    ] = "all",
    sort: Annotated[
        Literal["rank", "name"],
        typer.Option(help="Sort the rows by rank (highest kappa first) or by name of the photo."),
    ] = "rank",
    as_lines: AsLines = False,
    csv: Annotated[
        Path | None, typer.Option(help="Write all faces to this CSV file.", callback=file_to_write)
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Write lines `image_path score` to this file. The score of failures is -1.",
            callback=file_to_write,
        ),
    ] = None,
    scores_of: Annotated[
        Literal["kappa", "percentile", "quality"], typer.Option(help="Score to write with --scores.")
    ] = "kappa",
    sheet: Annotated[
        Path | None,
        typer.Option(help="Write a contact sheet to this .html, .png or .jpg file.", callback=file_to_write),
    ] = None,
    min_quality: Annotated[
        int | None,
        typer.Option(min=0, max=100, help="Keep photos whose main face has at least this quality."),
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option(help="Copy kept photos to this folder; needs --min-quality.", callback=folder_to_write),
    ] = None,
    keep_list: Annotated[
        Path | None,
        typer.Option(
            help="Write the names of kept photos to this file; needs --min-quality.", callback=file_to_write
        ),
    ] = None,
    reject_list: Annotated[
        Path | None,
        typer.Option(
            help="Write the names of rejected photos to this file; needs --min-quality.",
            callback=file_to_write,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Cache assessments in this file. The next run reuses them, e.g. after an interruption.",
            callback=file_to_write,
        ),
    ] = None,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    engine: EngineName = "auto",
    device: DeviceName = "cpu",
    max_megapixels: Annotated[
        float, typer.Option(min=0.01, help="Skip photos larger than this, in megapixels.")
    ] = 200.0,
) -> None:
    """Rank the faces in your photos by confidence, and list the capture problems of each face.

    Prints one JSON line per face: rank, quality (0 to 100, the percentage of reference faces with a lower
    kappa), kappa, reasons, bounding box and capture measurements. Photos without a face are listed with
    quality -1 and the reason. The photos are never changed.
    """
    from spherecf.photos import check_outside, ranked_faces

    selection = (copy_to, keep_list, reject_list)
    if min_quality is None and any(selection):
        raise InputError("--copy-to, --keep-list and --reject-list need --min-quality")
    _check_sheet(sheet)
    files = photos_in(paths)
    if copy_to is not None:  # before the photos are assessed, which may take hours
        check_outside(files.photos, copy_to)
    assessor = open_assessor(
        model, backbone, detector, faces=faces, engine=engine, device=device,
        max_pixels=round(max_megapixels * 1e6),
    )  # fmt: skip
    calibration = assessor.model.calibration
    if min_quality is not None and (calibration is None or calibration.kappa is None):
        raise InputError("--min-quality needs a calibrated model; this one is not calibrated")
    photos, complete = _assess(files, assessor, resume)
    rows = ranked_faces(photos)
    if sort == "name":
        rows.sort(key=lambda row: (row["photo"], row["face"] or 0))
    try:  # if stdout or one of the files cannot be written, the others are still written
        print_lines(rows, as_lines)
        if not lines_wanted(as_lines):
            console.print(_table(rows))
    finally:
        _print_summary(rows, files)
        _write(rows, files, csv, scores, scores_of, sheet)
        if min_quality is not None:
            _select(rows, files, min_quality, *selection, complete)
    if not complete:
        hint = "run the same command again to continue" if resume else "use --resume FILE to continue later"
        print_text(f"interrupted after {len(photos)} of {len(files.photos)} photos: {hint}")
        raise typer.Exit(130)


def _check_sheet(sheet: Path | None) -> None:
    if sheet is not None and sheet.suffix.lower() not in (".html", ".png", ".jpg"):
        raise InputError(f"{sheet}: expected a contact sheet with the extension .html, .png or .jpg")


def _assess(
    files: "PhotoFiles", assessor: "FaceAssessor", resume: Path | None
) -> tuple[list[dict[str, Any]], bool]:
    """Assess the photos. Returns their records, and False if Ctrl-C interrupted the run."""
    from spherecf.photos import assess_files

    photos: list[dict[str, Any]] = []
    try:
        assessed = assess_files(files.photos, assessor, resume=resume)
        for photo in track(assessed, "assessing", len(files.photos)):
            photos.append(photo)
    except KeyboardInterrupt:
        return photos, False
    return photos, True


def _write(
    rows: Sequence[dict[str, Any]],
    files: "PhotoFiles",
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
        write_sheet(sheet, rows, {photo.name: photo.path for photo in files.photos})
    for path in filter(None, (csv, scores, sheet)):
        print_text(f"written: {path}")


def _select(
    rows: Iterable[dict[str, Any]],
    files: "PhotoFiles",
    min_quality: int,
    copy_to: Path | None,
    keep_list: Path | None,
    reject_list: Path | None,
    complete: bool,
) -> None:
    from spherecf.photos import copy_photos, split_by_quality, write_list

    kept, rejected = split_by_quality(rows, min_quality)
    for path, names in ((keep_list, kept), (reject_list, rejected)):
        if path is not None:
            write_list(path, names)
    print_text(f"{len(kept)} photos have quality {min_quality} or more, {len(rejected)} less")
    if copy_to is not None and complete:
        kept_names = set(kept)
        n_copied = copy_photos([photo for photo in files.photos if photo.name in kept_names], copy_to)
        print_text(f"{n_copied} photos copied to {copy_to}")


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("rank", "photo", "face", "quality", "kappa", "reasons", box=None)
    faces = [row for row in rows if row["face"] is not None]
    n_hidden = max(0, len(faces) - 2 * _MAX_LISTED)
    for index, row in enumerate(faces):
        if n_hidden and index == _MAX_LISTED:
            table.add_row("", f"... {n_hidden} more ...")
        if not n_hidden or not _MAX_LISTED <= index < len(faces) - _MAX_LISTED:
            kappa = "" if row["kappa"] is None else f"{row['kappa']:.0f}"
            quality = "" if row["quality"] < 0 else str(row["quality"])
            rank, face = str(row["rank"] or ""), str(row["face"] + 1)
            table.add_row(rank, Text(row["photo"]), face, quality, kappa, ", ".join(row["reasons"]))
    return table


def _print_summary(rows: Sequence[dict[str, Any]], files: "PhotoFiles") -> None:
    failures = [f"{row['photo']}: {row['reason']}" for row in rows if row["face"] is None]
    print_text(f"{len(rows) - len(failures)} faces in {len({row['photo'] for row in rows})} photos")
    if failures:
        print_text(f"photos without a usable face: {len(failures)}", "yellow")
        print_listing(failures, _MAX_LISTED)
    print_left_out(files)

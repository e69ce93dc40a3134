"""`spherecf gallery`: enrol people, identify faces, remove people."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.options import (
    AsLines,
    BackboneOfModel,
    DetectorFile,
    GalleryToken,
    ModelFile,
    PhotoPaths,
    open_assessor,
    open_gallery,
    print_lines,
    print_text,
)
from spherecf.common.progress import console, progress, track
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.evaluation import MembersReport
    from spherecf.gallery import Gallery
    from spherecf.photos import AssessedPhoto, HowToEnrol, PhotoEnrolment

app = typer.Typer(help="Enrol people from photos, and identify faces.", no_args_is_help=True)

GalleryUri = Annotated[
    str, typer.Argument(metavar="GALLERY", help="File of the gallery, or the URI of a Milvus server.")
]
_SHOWN = 50  # rows of a table; the JSON lists all


@app.callback()
def _root() -> None:
    pass


@app.command(epilog="Example: spherecf gallery enrol people.gallery Anna anna/*.jpg")
def enrol(
    gallery: GalleryUri,
    name: Annotated[str, typer.Argument(help="Name of the person.")] = "",
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos and folders of photos.")] = None,
    folders: Annotated[
        Path | None,
        typer.Option(help="Enrol many people: a folder with one sub-folder of photos per person."),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add photos to an enrolled person.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the photos of an enrolled person.")
    ] = False,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    token: GalleryToken = "",
) -> None:
    """Enrol a person, or a folder of people; only with their consent.

    The gallery stores names, directions, kappas, and hashes and names of the files, not the photos. Photos
    without a face are skipped and listed. --folders can be run again: it adds new photos, renews templates
    whose photos were deleted or changed, does not assess unchanged photos again, and lists people without a
    folder, who stay enrolled. With --add nothing is removed from a template. Prints one JSON line per person:
    what was done, and warnings.
    """
    from spherecf.photos import enrol_folders, enrol_photos

    if (folders is None) == (not name or not photos) or (add and replace):
        raise typer.BadParameter(
            "expected either NAME and PHOTOS, or --folders; and at most one of --add and --replace"
        )
    how: HowToEnrol = "add" if add else "replace" if replace else "new" if folders is None else "follow"
    people = {} if folders is None else _people(folders)
    assessor = open_assessor(model, backbone, detector, faces="main")
    done: list[PhotoEnrolment] = []
    try:
        with (
            open_gallery(gallery, assessor.model, token) as opened,
            progress("people", len(people) or 1) as advance,
        ):
            if folders is None:
                steps = iter([enrol_photos(opened, assessor, name, photos or [], how)])
            else:
                steps = enrol_folders(opened, assessor, people, how)
            for enrolment in steps:
                done.append(enrolment)
                advance(enrolment.status != "no folder")
    finally:  # after an interruption or a full disk, too
        print_lines((enrolment.to_dict() for enrolment in done), as_lines)
        _print_enrolments(done)
    if folders is None and done[0].enrolled is None:
        raise InputError(f"{name}: no photo shows a usable face; nothing was enrolled")


@app.command(epilog="Example: spherecf gallery identify people.gallery door.jpg --max-fpir 0.001")
def identify(
    gallery: GalleryUri,
    photos: PhotoPaths,
    max_fpir: Annotated[
        float,
        typer.Option(
            help="Maximum false positive identification rate: share of strangers that are identified."
        ),
    ] = 0.01,
    threshold: Annotated[
        float | None,
        typer.Option(help="Threshold of the mutual likelihood score, instead of the calibrated one."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of candidates to list.")] = 5,
    every_face: Annotated[
        bool, typer.Option("--every-face", help="Identify all faces of a photo, not only the main one.")
    ] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="On a server, search by its index; may miss a person.")
    ] = False,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    token: GalleryToken = "",
) -> None:
    """Identify the faces on photos: a person of the gallery, "unknown", or "undecided", with the reason.

    Prints one JSON line per face: answer, identity, reason, candidates with score, cosine, kappa, likelihood
    ratio and thresholds. A photo without a face is undecided.
    """
    from spherecf.photos import find_photos

    files = find_photos(photos)
    assessor = open_assessor(model, backbone, detector, faces="all" if every_face else "main")
    lines: list[dict[str, Any]] = []
    options: dict[str, Any] = {"top": top, "max_fpir": max_fpir, "threshold": threshold}
    with open_gallery(gallery, assessor.model, token, create=False) as opened:
        stream = assessor.stream((file.name, file.path) for file in files.photos)
        for photo in track(stream, "photos", len(files.photos)):
            lines.extend(_identified(opened, photo, options | {"exact": not approximate}))
    print_lines(lines, as_lines)
    console.print(_answers(lines))


@app.command(epilog="Example: spherecf gallery remove people.gallery Anna")
def remove(
    gallery: GalleryUri,
    names: Annotated[list[str], typer.Argument(help="Names of the people to remove.")],
    later: Annotated[
        bool, typer.Option("--later", help="Leave erasing from the log to the next `gallery compact`.")
    ] = False,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: GalleryToken = "",
) -> None:
    """Remove people: templates, images and names are overwritten with zeros."""
    lines = []
    with _existing(gallery, model, backbone, token) as opened:
        if unknown := [name for name in names if name not in opened]:
            raise InputError(f"{gallery}: not enrolled: {', '.join(unknown)}; nothing was removed")
        for name in names:
            erase = name == names[-1] and not later
            lines.append({"identity": name, "removed": opened.remove(name, erase=erase)})
    print_lines(lines, as_lines)
    print_text(f"removed: {', '.join(names)}")


@app.command("list", epilog="Example: spherecf gallery list people.gallery")
def list_people(
    gallery: GalleryUri,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: GalleryToken = "",
) -> None:
    """List the enrolled people with kappa, number of photos and warnings; one JSON line per person."""
    with _existing(gallery, model, backbone, token) as opened:
        lines = [enrolled.to_dict() for enrolled in opened.list()]
    print_lines(lines, as_lines)
    table = Table(title=f"{len(lines)} people")
    for column in ("name", "kappa", "photos", "media", "warnings"):
        table.add_column(column, overflow="fold")
    for line in lines[:_SHOWN]:
        counts = f"{line['kappa']:.0f}", str(line["images"]), str(line["media"])
        table.add_row(escape(line["identity"]), *counts, escape("; ".join(line["warnings"])))
    console.print(table)


@app.command(epilog="Example: spherecf gallery info people.gallery")
def info(
    gallery: GalleryUri,
    members: Annotated[
        int, typer.Option(min=0, help="Members at most whose images tell whether the rules hold; 0 for none.")
    ] = 1000,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: GalleryToken = "",
) -> None:
    """Show the size of a gallery, the model that it belongs to, and whether its rules hold for its members.

    The images of members, drawn at random if there are many, are searched among each other: for each rate
    that is promised, whether it is kept for them, broken, or whether they cannot tell, with an interval over
    members. It takes 20 members.
    """
    with _existing(gallery, model, backbone, token) as opened:
        facts = opened.info()
        report, untold = _searched(opened, members)
        used = opened.rates_in_use(_MAX_FPIR)
    found = None if report is None else report.to_dict()
    print_lines([facts | {"members": found, "members_untold": untold}], as_lines)
    table = Table(title=escape(gallery), show_header=False)
    for name, value in facts.items():
        table.add_row(name, escape(str(value)))
    console.print(table)
    if report is not None:
        console.print(_rules_of(report, facts["identities"], used))
        for left, right, evidence in report.alike:
            print_text(f"alike: {left} and {right} ({evidence:.1f}); one person under two names?", "yellow")
    elif untold:
        print_text(untold)


_MAX_FPIR = 0.01  # for which `gallery info` marks the rule in use; the default of `identify`


def _searched(gallery: "Gallery", most: int) -> "tuple[MembersReport | None, str | None]":
    """What the rules say of some members, or why that cannot be told."""
    from spherecf.evaluation import check_members

    if not most or not len(gallery):
        return None, None
    if gallery.calibration is None:
        return None, "the model is not calibrated, so there are no rules to check"
    try:
        return check_members(gallery.members(most), gallery.calibration), None
    except InputError as error:
        return None, f"whether the rules hold for the members: {error}"


def _rules_of(report: "MembersReport", people: int, used: dict[str, float]) -> Table:
    counts = report.counts
    pairs = f"{counts['non_mated']:,} comparisons of two members, {counts['mated']:,} of one"
    title = f"{counts['members']:,} of {people:,} members, {counts['images']:,} images, {pairs}"
    table = Table(title=title)
    for column in ("rule for", "promised", "wrong", "95 %", "verdict", "right", "match from", "tested on"):
        table.add_column(column, overflow="fold")
    for one in report.rules:
        mark = " *" if one.rule.alpha == used.get(one.rule.score) else ""
        low, high = one.interval
        accept = "none" if one.rule.accept is None else f"{one.rule.accept:.2f}"
        table.add_row(
            one.rule.score, f"{one.rule.alpha:g}{mark}", f"{one.false_matches:,}", f"{low:.1e} .. {high:.1e}",
            one.verdict, f"{one.matches:,}", accept, escape(one.rule.tested_on),
        )  # fmt: skip
    table.caption = (
        f"* in use at --max-fpir {_MAX_FPIR:g}; 95 %: of the share of wrong matches, over members. Members "
        "stand for strangers of their kind only, and one person under two names counts as wrong."
    )
    return table


@app.command(epilog="Example: spherecf gallery compact people.gallery")
def compact(
    gallery: GalleryUri,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: GalleryToken = "",
) -> None:
    """Check the file, and write it anew without anything that was removed or replaced."""
    with _existing(gallery, model, backbone, token) as opened:
        opened.compact()
    print_text("compacted")


@app.command(epilog="Example: spherecf gallery migrate people.gallery people.db")
def migrate(
    old: Annotated[Path, typer.Argument(help="A gallery that is a folder of Milvus Lite.")],
    new: Annotated[Path, typer.Argument(help="File to make.")],
) -> None:
    """Copy a gallery of Milvus Lite into a file; ids and times stay.

    Needs the package milvus-lite. After an interruption the same command goes on. OLD is left as it is.
    """
    from spherecf.gallery import migrate as copy

    print_text(f"{new}: {copy(old, new)} people")


def _people(folder: Path) -> dict[str, list[Path]]:
    from spherecf.photos import PHOTO_SUFFIXES, people_of

    people = people_of(folder)
    if loose := [path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES]:
        print_text(f"photos ignored because they are in no sub-folder of {folder}: {len(loose)}", "yellow")
    return people


def _existing(uri: str, model: Path | None, backbone: Path | None, token: str) -> "Gallery":
    """A gallery that must exist, for commands that look at no photos."""
    from spherecf.models import load

    return open_gallery(uri, load(model, backbone), token, create=False)


def _identified(
    gallery: "Gallery", photo: "AssessedPhoto", options: dict[str, Any]
) -> Iterable[dict[str, Any]]:
    if photo.usable_face is None:
        yield {"photo": photo.name, "face": None, "answer": "undecided", "identity": None,
               "reason": photo.problem, "candidates": []}  # fmt: skip
        return
    for number, face in enumerate(photo.faces):
        facts = {"photo": photo.name, "face": number, "kappa": face.kappa, "quality": face.quality}
        yield facts | gallery.identify(face.mu, face.kappa, **options).to_dict()


def _print_enrolments(done: "list[PhotoEnrolment]") -> None:
    silent = ("unchanged", "no folder")
    for item in [item for item in done if item.status not in silent or item.left_out or item.reason][:_SHOWN]:
        print_text(f"{item.identity}: {_change(item)}")
        for warning in filter(None, (item.reason, *(item.enrolled.warnings if item.enrolled else ()))):
            print_text(f"  {warning}", "yellow")
        for photo, reason in item.left_out:
            print_text(f"  skipped {photo}: {reason}")
    if len(done) > 1:
        counts = Counter(item.status for item in done)
        print_text(", ".join(f"{status}: {count}" for status, count in counts.items()))
    if absent := [item.identity for item in done if item.status == "no folder"]:
        names = ", ".join(absent[:_SHOWN]) + (" ..." if len(absent) > _SHOWN else "")
        print_text(f"still enrolled, but without a folder (to remove: `gallery remove`): {names}", "yellow")
    if any(item.removed for item in done):
        print_text("to erase removed photos from the files, run `gallery compact`")


def _change(item: "PhotoEnrolment") -> str:
    if item.enrolled is None:
        return str(item.status)
    counts = len(item.added), len(item.removed)
    changes = " ({} added, {} removed)".format(*counts) if any(counts) else ""
    return f"{item.status}{changes}: {item.enrolled.images} photos, kappa {item.enrolled.kappa:.0f}"


def _answers(lines: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{len(lines)} faces")
    for column in ("photo", "answer", "score", "reason"):
        table.add_column(column, overflow="fold")
    for line in lines[:_SHOWN]:
        score = f"{line['candidates'][0]['score']:.1f}" if line["candidates"] else ""
        table.add_row(
            escape(line["photo"]), escape(line["identity"] or line["answer"]), score, escape(line["reason"])
        )
    return table

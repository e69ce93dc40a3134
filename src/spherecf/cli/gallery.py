"""`spherecf gallery`: enrol people, ask who somebody is, remove them."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.options import BackboneOfModel, DetectorFile, ModelFile, open_assessor, open_gallery
from spherecf.cli.output import AsLines, lines_wanted, print_lines
from spherecf.common.progress import console, progress
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.gallery import Gallery
    from spherecf.models import ConfidenceModel
    from spherecf.photos import AssessedPhoto, HowToEnrol, PhotoEnrolment

app = typer.Typer(help="Enrol people from photos and ask who somebody is.", no_args_is_help=True)

Place = Annotated[
    str, typer.Argument(metavar="GALLERY", help="Folder of the gallery, or the URI of a Milvus server.")
]
Token = Annotated[
    str, typer.Option(envvar="SPHERECF_GALLERY_TOKEN", show_envvar=True, help="For a Milvus server.")
]
_SHOWN = 50  # people or photos in a table; JSON lists all


@app.callback()
def _root() -> None:
    pass


@app.command(epilog="Example: spherecf gallery enrol people.gallery Anna anna/*.jpg")
def enrol(
    gallery: Place,
    name: Annotated[str, typer.Argument(help="Whom the photos show.")] = "",
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos, and folders of them.")] = None,
    folders: Annotated[
        Path | None,
        typer.Option(help="Instead: a folder with a folder of photos for each person, named after them."),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="To the photos of somebody enrolled.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="The photos of somebody enrolled.")] = False,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    token: Token = "",
) -> None:
    """Enrol a person, or a folder of people; only with their consent.

    The gallery keeps name, directions, kappas, hashes and names of files, not the photos. Photos without a
    face are listed and left out. --folders may be run again: new photos are added, a template is renewed
    where photos are gone or have other content, unchanged people cost no assessment, and people without a
    folder are listed and stay enrolled. With --add nothing leaves a template. One JSON line per person: what
    was done, and warnings about what should be looked at.
    """
    from spherecf.photos import enrol_folders, enrol_photos

    if (folders is None) == (not name or not photos) or (add and replace):
        raise typer.BadParameter("expected NAME and PHOTOS, or --folders; and --add or --replace, not both")
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
            for one in steps:
                done.append(one)
                advance(one.status != "no folder")
    finally:  # also of those before an interruption or a full disk
        if lines_wanted(as_lines):
            print_lines(one.to_dict() for one in done)
        _tell(done)
    if folders is None and done[0].enrolled is None:
        raise InputError(f"{name}: none of the photos shows a usable face; nothing was enrolled")


@app.command(epilog="Example: spherecf gallery identify people.gallery door.jpg --max-fpir 0.001")
def identify(
    gallery: Place,
    photos: Annotated[list[Path], typer.Argument(help="Photos, and folders of them.")],
    max_fpir: Annotated[
        float, typer.Option(help="At most this share of strangers is taken for somebody of the gallery.")
    ] = 0.01,
    threshold: Annotated[
        float | None, typer.Option(help="Of the mutual likelihood score, instead of the calibration's.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Candidates to name.")] = 5,
    every_face: Annotated[bool, typer.Option("--every-face", help="Not only the main one.")] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Faster in large galleries; may miss somebody.")
    ] = False,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    token: Token = "",
) -> None:
    """Say who is on a photo: somebody of the gallery, nobody of it ("unknown"), or undecided, and why.

    One JSON line per face: answer, identity, why, candidates with score, cosine, kappa, likelihood ratio and
    thresholds. A photo without a face is undecided.
    """
    from spherecf.photos import find_photos

    found = find_photos(photos)
    assessor = open_assessor(model, backbone, detector, faces="all" if every_face else "main")
    lines: list[dict[str, Any]] = []
    options: dict[str, Any] = {"top": top, "max_fpir": max_fpir, "threshold": threshold}
    with (
        open_gallery(gallery, assessor.model, token, create=False) as opened,
        progress("photos", len(found.photos)) as advance,
    ):
        for photo in assessor.stream((one.name, one.path) for one in found.photos):
            lines.extend(_identified(opened, photo, options | {"exact": not approximate}))
            advance()
    if lines_wanted(as_lines):
        print_lines(lines)
    console.print(_answers(lines))


@app.command(epilog="Example: spherecf gallery remove people.gallery Anna")
def remove(
    gallery: Place,
    names: Annotated[list[str], typer.Argument(help="Who is to be forgotten.")],
    later: Annotated[
        bool, typer.Option("--later", help="Erase from the files at the next `compact`, not now.")
    ] = False,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: Token = "",
) -> None:
    """Forget people: templates, images and names, in the files too."""
    lines = []
    with open_gallery(gallery, _model(model, backbone), token, create=False) as opened:
        if unknown := [name for name in names if name not in opened]:
            raise InputError(f"{gallery}: nobody is enrolled as {', '.join(unknown)}; nothing was removed")
        for name in names:
            lines.append({"identity": name, "removed": opened.remove(name, erase=False)})
        if not later:
            opened.compact()
    if lines_wanted(as_lines):
        print_lines(lines)
    console.print(f"removed: {', '.join(names)}", highlight=False, markup=False)


@app.command("list", epilog="Example: spherecf gallery list people.gallery")
def list_people(
    gallery: Place,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: Token = "",
) -> None:
    """List who is enrolled, with kappa, number of photos and warnings; one JSON line per person."""
    with open_gallery(gallery, _model(model, backbone), token, create=False) as opened:
        lines = [one.to_dict() for one in opened.list()]
    if lines_wanted(as_lines):
        print_lines(lines)
    table = Table(title=f"{len(lines)} people")
    for column in ("name", "kappa", "photos", "media", "to look at"):
        table.add_column(column, overflow="fold")
    for line in lines[:_SHOWN]:
        counts = f"{line['kappa']:.0f}", str(line["images"]), str(line["media"])
        table.add_row(escape(line["identity"]), *counts, escape("; ".join(line["warnings"])))
    console.print(table)


@app.command(epilog="Example: spherecf gallery info people.gallery")
def info(
    gallery: Place,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: Token = "",
) -> None:
    """Say how large a gallery is and which model made it."""
    with open_gallery(gallery, _model(model, backbone), token, create=False) as opened:
        facts = opened.info()
    if lines_wanted(as_lines):
        print_lines([facts])
    table = Table(title=escape(gallery), show_header=False)
    for name, value in facts.items():
        table.add_row(name, escape(str(value)))
    console.print(table)


@app.command(epilog="Example: spherecf gallery compact people.gallery")
def compact(
    gallery: Place,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: Token = "",
) -> None:
    """Erase from the files what was removed with --later or replaced."""
    with open_gallery(gallery, _model(model, backbone), token, create=False) as opened:
        opened.compact()
    console.print("compacted", highlight=False)


def _people(folder: Path) -> dict[str, list[Path]]:
    from spherecf.photos import PHOTO_SUFFIXES, people_of

    people = people_of(folder)
    if loose := [path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES]:
        text = f"{len(loose)} photos in {folder} itself are in nobody's folder and left alone"
        console.print(text, style="yellow", highlight=False, markup=False)
    return people


def _model(model: Path | None, backbone: Path | None) -> "ConfidenceModel":
    from spherecf.models import load

    return load(model, backbone)


def _identified(
    gallery: "Gallery", photo: "AssessedPhoto", options: dict[str, Any]
) -> Iterable[dict[str, Any]]:
    if photo.usable_face is None:
        yield {"photo": photo.name, "face": None, "answer": "undecided", "identity": None,
               "why": photo.problem, "candidates": []}  # fmt: skip
        return
    for number, face in enumerate(photo.faces):
        facts = {"photo": photo.name, "face": number, "kappa": face.kappa, "quality": face.quality}
        yield facts | gallery.identify(face.mu, face.kappa, **options).to_dict()


def _tell(done: "list[PhotoEnrolment]") -> None:
    quiet = ("unchanged", "no folder")
    for one in [one for one in done if one.status not in quiet or one.left_out or one.reason][:_SHOWN]:
        console.print(f"{one.identity}: {_change(one)}", highlight=False, markup=False)
        for warning in filter(None, (one.reason, *(one.enrolled.warnings if one.enrolled else ()))):
            console.print(f"  {warning}", style="yellow", highlight=False, markup=False)
        for photo, reason in one.left_out:
            console.print(f"  left out {photo}: {reason}", highlight=False, markup=False)
    if len(done) > 1:
        counts = Counter(one.status for one in done)
        text = ", ".join(f"{status}: {count}" for status, count in counts.items())
        console.print(text, highlight=False)
    if absent := [one.identity for one in done if one.status == "no folder"]:
        names = ", ".join(absent[:_SHOWN]) + (" ..." if len(absent) > _SHOWN else "")
        text = f"no folder, enrolled still (`gallery remove` forgets them): {names}"
        console.print(text, style="yellow", highlight=False, markup=False)
    if any(one.removed for one in done):
        console.print("`gallery compact` erases what was taken out from the files", highlight=False)


def _change(one: "PhotoEnrolment") -> str:
    if one.enrolled is None:
        return str(one.status)
    changes = f" ({len(one.added)} in, {len(one.removed)} out)" if one.added or one.removed else ""
    return f"{one.status}{changes}: {one.enrolled.images} photos, kappa {one.enrolled.kappa:.0f}"


def _answers(lines: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{len(lines)} faces")
    for column in ("photo", "answer", "score", "why"):
        table.add_column(column, overflow="fold")
    for line in lines[:_SHOWN]:
        score = f"{line['candidates'][0]['score']:.1f}" if line["candidates"] else ""
        table.add_row(
            escape(line["photo"]), escape(line["identity"] or line["answer"]), score, escape(line["why"])
        )
    return table

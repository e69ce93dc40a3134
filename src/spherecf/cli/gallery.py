"""`spherecf gallery`: enrol people, identify faces, and manage galleries."""

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
    folders_of_people,
    open_assessor,
    open_gallery,
    photos_in,
    print_left_out,
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
    str, typer.Argument(metavar="GALLERY", help="Gallery file, or the URI of a Milvus server.")
]
_MAX_ROWS = 50  # printed rows of a table; the JSON output contains all rows


@app.command(epilog="Example: spherecf gallery enrol people.gallery Anna anna/*.jpg")
def enrol(
    gallery: GalleryUri,
    name: Annotated[str, typer.Argument(help="Name of the person.")] = "",
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photos, and folders to search for photos.")
    ] = None,
    folders: Annotated[
        Path | None,
        typer.Option(help="Enrol many people from a folder with one sub-folder of photos per person."),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add the photos to a person who is already enrolled.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the photos of a person who is already enrolled.")
    ] = False,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    token: GalleryToken = "",
) -> None:
    """Enrol one person, or a folder of people. Enrol people only with their consent.

    The gallery stores names, directions, kappas, and the names and hashes of the files, but not the photos.
    Photos without a face are skipped and listed. Run --folders again after the photos have changed: it adds
    new photos, rebuilds templates whose photos were changed or deleted, and skips unchanged photos. People
    without a folder are listed and stay enrolled. --add never removes photos from a template. Prints one JSON
    line per person with the changes and warnings.
    """
    from spherecf.photos import enrol_folders, enrol_photos

    if (folders is None) == (not name or not photos) or (add and replace):
        raise typer.BadParameter(
            "expected either NAME and PHOTOS, or --folders, and not both --add and --replace"
        )
    how: HowToEnrol = "add" if add else "replace" if replace else "new" if folders is None else "follow"
    people = {} if folders is None else folders_of_people(folders)
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
    finally:  # also after an interruption or a full disk
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
            help="Maximum false positive identification rate: the fraction of people outside the gallery who "
            "are identified as a member."
        ),
    ] = 0.01,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Threshold of the mutual likelihood score. Overrides the calibrated threshold of --max-fpir."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of candidates to list per face.")] = 5,
    every_face: Annotated[
        bool, typer.Option("--every-face", help="Identify all faces of a photo, not only the main face.")
    ] = False,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Use the approximate index of a Milvus server. Faster, but may miss an enrolled person.",
        ),
    ] = False,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    token: GalleryToken = "",
) -> None:
    """Identify the faces in photos: a person in the gallery, "unknown" or "undecided", with the reason.

    Prints one JSON line per face: answer, identity, reason, thresholds, and the candidates with score,
    cosine, kappa and likelihood ratio. A photo without a face is undecided.
    """
    files = photos_in(photos)
    assessor = open_assessor(model, backbone, detector, faces="all" if every_face else "main")
    lines: list[dict[str, Any]] = []
    options: dict[str, Any] = {"top": top, "max_fpir": max_fpir, "threshold": threshold}
    with open_gallery(gallery, assessor.model, token, create=False) as opened:
        stream = assessor.stream((file.name, file.path) for file in files.photos)
        for photo in track(stream, "photos", len(files.photos)):
            lines.extend(_identified(opened, photo, options | {"exact": not approximate}))
    print_lines(lines, as_lines)
    console.print(_answers(lines))
    print_left_out(files)


@app.command(epilog="Example: spherecf gallery remove people.gallery Anna")
def remove(
    gallery: GalleryUri,
    names: Annotated[list[str], typer.Argument(help="Names of the people to remove.")],
    later: Annotated[
        bool,
        typer.Option(
            "--later", help="Do not erase the data from the write-ahead log until the next `gallery compact`."
        ),
    ] = False,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: GalleryToken = "",
) -> None:
    """Remove people. Their templates, images and names are overwritten with zeros."""
    from spherecf.gallery import checked_identity

    lines, names = [], list(dict.fromkeys(map(checked_identity, names)))
    with _open_existing(gallery, model, backbone, token) as opened:
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
    """List the enrolled people with kappa, number of photos and warnings.

    Prints one JSON line per person.
    """
    with _open_existing(gallery, model, backbone, token) as opened:
        lines = [enrolled.to_dict() for enrolled in opened.list()]
    print_lines(lines, as_lines)
    table = Table(title=f"{len(lines)} people")
    for column in ("name", "kappa", "photos", "media", "warnings"):
        table.add_column(column, overflow="fold")
    for line in lines[:_MAX_ROWS]:
        counts = f"{line['kappa']:.0f}", str(line["images"]), str(line["media"])
        table.add_row(escape(line["identity"]), *counts, escape("; ".join(line["warnings"])))
    console.print(table)


@app.command(epilog="Example: spherecf gallery info people.gallery")
def info(
    gallery: GalleryUri,
    members: Annotated[
        int,
        typer.Option(
            min=0, help="Maximum number of members whose images test the decision rules. 0 skips the test."
        ),
    ] = 1000,
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: GalleryToken = "",
) -> None:
    """Show the size of a gallery and its model, and test whether its decision rules hold for its members.

    The test compares the images of up to --members randomly chosen members. For each guaranteed false match
    rate, the report says whether it is kept, broken or open (too few members to tell), with a 95 % interval
    over members. At least 20 members are needed.
    """
    with _open_existing(gallery, model, backbone, token) as opened:
        facts = opened.info()
        report, untested_reason = _test_rules(opened, members)
        rates_in_use = opened.rates_in_use(_MAX_FPIR)
    results = None if report is None else report.to_dict()
    print_lines([facts | {"members": results, "members_untested": untested_reason}], as_lines)
    table = Table(title=escape(gallery), show_header=False)
    for name, value in facts.items():
        table.add_row(name, escape(str(value)))
    console.print(table)
    if report is not None:
        console.print(_rules_table(report, facts["identities"], rates_in_use))
        for left, right, evidence in report.alike:
            print_text(
                f"{left} and {right} look alike ({evidence:.1f}); is this one person under two names?",
                "yellow",
            )
    elif untested_reason:
        print_text(untested_reason)


_MAX_FPIR = 0.01  # `gallery info` marks the rule in use at this rate, the default of `gallery identify`


def _test_rules(gallery: "Gallery", max_members: int) -> "tuple[MembersReport | None, str | None]":
    """Test the decision rules on up to ``max_members`` members.

    Returns:
        The report, or None and the reason why the rules could not be tested.
    """
    from spherecf.evaluation import check_members

    if not max_members or not len(gallery):
        return None, None
    if gallery.calibration is None:
        return None, "the model is not calibrated, so there are no rules to check"
    try:
        return check_members(gallery.members(max_members), gallery.calibration), None
    except InputError as error:
        return None, f"the decision rules were not tested on the members: {error}"


def _rules_table(report: "MembersReport", people: int, rates_in_use: dict[str, float]) -> Table:
    counts = report.counts
    pairs = f"{counts['non_mated']:,} non-mated and {counts['mated']:,} mated comparisons"
    title = f"{counts['members']:,} of {people:,} members, {counts['images']:,} images, {pairs}"
    table = Table(title=title)
    for column in (
        "score", "guaranteed FMR", "false matches", "95 % interval", "verdict", "true matches", "threshold",
        "tested on",
    ):  # fmt: skip
        table.add_column(column, overflow="fold")
    for result in report.rules:
        rule = result.rule
        mark = " *" if rule.alpha == rates_in_use.get(rule.score) else ""
        low, high = result.interval
        threshold = "none" if rule.accept is None else f"{rule.accept:.2f}"
        table.add_row(
            rule.score, f"{rule.alpha:g}{mark}", f"{result.false_matches:,}", f"{low:.1e} .. {high:.1e}",
            result.verdict, f"{result.matches:,}", threshold, escape(rule.tested_on),
        )  # fmt: skip
    table.caption = (
        f"* in use at --max-fpir {_MAX_FPIR:g}; intervals of the false match rate, over members. The test is "
        "valid only for non-members who resemble the members. One person under two names counts as a false "
        "match."
    )
    return table


@app.command(epilog="Example: spherecf gallery compact people.gallery")
def compact(
    gallery: GalleryUri,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    token: GalleryToken = "",
) -> None:
    """Check the gallery file, and rewrite it without removed or replaced data."""
    with _open_existing(gallery, model, backbone, token) as opened:
        opened.compact()
    print_text("compacted")


@app.command(epilog="Example: spherecf gallery migrate people.gallery people.db")
def migrate(
    old: Annotated[Path, typer.Argument(help="Milvus Lite gallery (a folder) to copy from.")],
    new: Annotated[Path, typer.Argument(help="Gallery file to create.")],
) -> None:
    """Copy a Milvus Lite gallery to a gallery file. IDs and times are preserved.

    Needs the package milvus-lite. After an interruption, run the same command again to continue. OLD is not
    changed.
    """
    from spherecf.gallery import migrate as copy_gallery

    print_text(f"{new}: {copy_gallery(old, new)} people")


def _open_existing(uri: str, model: Path | None, backbone: Path | None, token: str) -> "Gallery":
    """Open an existing gallery, for commands that need no detector."""
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
    quiet_statuses = ("unchanged", "no folder")
    listed = [item for item in done if item.status not in quiet_statuses or item.left_out or item.reason]
    for item in listed[:_MAX_ROWS]:
        print_text(f"{item.identity}: {_describe_change(item)}")
        for warning in filter(None, (item.reason, *(item.enrolled.warnings if item.enrolled else ()))):
            print_text(f"  {warning}", "yellow")
        for photo, reason in item.left_out:
            print_text(f"  skipped {photo}: {reason}")
    if len(done) > 1:
        counts = Counter(item.status for item in done)
        print_text(", ".join(f"{status}: {count}" for status, count in counts.items()))
    if absent := [item.identity for item in done if item.status == "no folder"]:
        names = ", ".join(absent[:_MAX_ROWS]) + (" ..." if len(absent) > _MAX_ROWS else "")
        print_text(
            f"still enrolled, but without a folder (use `gallery remove` to remove them): {names}", "yellow"
        )
    if any(item.removed for item in done):
        print_text("to erase removed photos from the gallery file, run `gallery compact`")


def _describe_change(item: "PhotoEnrolment") -> str:
    if item.enrolled is None:
        return str(item.status)
    counts = len(item.added), len(item.removed)
    changes = " ({} added, {} removed)".format(*counts) if any(counts) else ""
    return f"{item.status}{changes}: {item.enrolled.images} photos, kappa {item.enrolled.kappa:.0f}"


def _answers(lines: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{len(lines)} faces")
    for column in ("photo", "answer", "score", "reason"):
        table.add_column(column, overflow="fold")
    for line in lines[:_MAX_ROWS]:
        score = f"{line['candidates'][0]['score']:.1f}" if line["candidates"] else ""
        table.add_row(
            escape(line["photo"]), escape(line["identity"] or line["answer"]), score, escape(line["reason"])
        )
    return table

"""`spherecf template`: pool photos of one person and find suspected strangers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.options import BackboneOfModel, DetectorFile, ModelFile, PhotoPaths, open_assessor
from spherecf.cli.output import AsLines, file_to_write, print_lines, print_text
from spherecf.common.progress import console, track

if TYPE_CHECKING:
    from spherecf.photos import PhotoTemplate, TemplatePhoto

EXAMPLE = "Example: spherecf template anna/*.jpg --exclude-strangers --out anna.safetensors"


def template(
    paths: PhotoPaths,
    exclude_strangers: Annotated[
        bool, typer.Option("--exclude-strangers", help="Leave out photos that look like a different person.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the template as an embeddings file of one row.", callback=file_to_write),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the person in --out (default: the file name).")] = "",
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
) -> None:
    """Pool photos of one person into a template and show what each photo contributes.

    Prints one JSON line: pooled kappa, its growth photo by photo, and per photo its weight, its gain, whether
    it helps, whether it looks like a different person, and which photo it duplicates.
    """
    from spherecf.photos import build_template, find_photos

    if name and out is None:
        raise typer.BadParameter("has no effect without --out", param_hint="--name")
    files = find_photos(paths)
    assessor = open_assessor(model, backbone, detector, faces="main")
    stream = assessor.stream((file.name, file.path) for file in files.photos)
    photos = list(track(stream, "photos", len(files.photos)))
    loaded = assessor.model
    built = build_template(
        photos, loaded.calibration, radius=loaded.radius, exclude_strangers=exclude_strangers
    )
    line = built.to_dict()
    if out is not None:
        facts = {"model": loaded.fingerprint(), "backbone": loaded.backbone.sha256, "radius": loaded.radius}
        line["written"] = str(built.save(out, name or out.stem, provenance=facts))
    print_lines([line], as_lines)
    console.print(_table(built))
    unreadable = [f"{folder}: cannot be read ({reason})" for folder, reason in files.unreadable]
    for warning in (*built.warnings, *unreadable):
        print_text(warning, "yellow")
    if files.ignored:
        print_text(f"files ignored because they are not photos: {len(files.ignored)}")


def _table(built: "PhotoTemplate") -> Table:
    table = Table(title=f"pooled kappa {built.kappa:.0f} from {len(built.pooled)} photos")
    for column in ("photo", "quality", "weight", "gain", "assessment"):
        table.add_column(column, overflow="fold")
    for photo in built.photos:
        if photo.kappa is None:
            table.add_row(escape(photo.name), "", "", "", escape(photo.reason))
        else:
            numbers = str(photo.quality), f"{photo.weight:.0%}", f"{photo.gain:+.0f}"
            table.add_row(escape(photo.name), *numbers, escape(_assessment(photo)))
    return table


def _assessment(photo: "TemplatePhoto") -> str:
    if photo.stranger:
        return "stranger? " + photo.reason
    if photo.same_as is not None:
        return f"same picture as {photo.same_as}"
    effect = "helps" if photo.helps else "adds little"
    return f"{effect}: {', '.join(photo.reasons)}" if photo.reasons else effect

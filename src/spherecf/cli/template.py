"""`spherecf template`: which photos of a person help, and who does not belong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.options import BackboneOfModel, DetectorFile, ModelFile, open_assessor
from spherecf.cli.output import AsLines, file_to_write, lines_wanted, print_lines
from spherecf.common.progress import console, progress

if TYPE_CHECKING:
    from spherecf.photos import PhotoTemplate, TemplatePhoto

EXAMPLE = "Example: spherecf template anna/*.jpg --exclude-strangers --out anna.safetensors"


def template(
    paths: Annotated[list[Path], typer.Argument(help="Photos of one person, and folders of them.")],
    exclude_strangers: Annotated[
        bool, typer.Option("--exclude-strangers", help="Leave out who looks like another person.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the template as an embeddings file of one row.", callback=file_to_write),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the person, in --out (default: the file's name).")] = "",
    as_lines: AsLines = False,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
) -> None:
    """Pool a person's photos into one template and say what each is worth.

    One JSON line: pooled kappa, how it grew photo by photo, and per photo its weight, what it adds, whether
    it helps, whether it looks like a stranger, and which photos show the same picture.
    """
    from spherecf.photos import build_template, find_photos

    if name and out is None:
        raise typer.BadParameter("names what --out writes, which is missing", param_hint="--name")
    found = find_photos(paths)
    assessor = open_assessor(model, backbone, detector, faces="main")
    with progress("photos", len(found.photos)) as advance:
        photos = []
        for photo in assessor.stream((one.name, one.path) for one in found.photos):
            photos.append(photo)
            advance()
    loaded = assessor.model
    built = build_template(
        photos, loaded.calibration, radius=loaded.radius, exclude_strangers=exclude_strangers
    )
    line = built.to_dict()
    if out is not None:
        facts = {"model": loaded.fingerprint(), "backbone": loaded.backbone.sha256, "radius": loaded.radius}
        line["written"] = str(built.save(out, name or out.stem, provenance=facts))
    if lines_wanted(as_lines):
        print_lines([line])
    console.print(_table(built))
    unread = [f"{folder}: {reason}" for folder, reason in found.unreadable]
    for warning in (*built.warnings, *unread):
        console.print(warning, style="yellow", highlight=False, markup=False)
    if found.ignored:
        console.print(f"{len(found.ignored)} other files were left alone", highlight=False)


def _table(built: "PhotoTemplate") -> Table:
    table = Table(title=f"pooled kappa {built.kappa:.0f} from {len(built.pooled)} photos")
    for column in ("photo", "quality", "weight", "adds", "verdict"):
        table.add_column(column, overflow="fold")
    for one in built.photos:
        if one.kappa is None:
            table.add_row(escape(one.name), "", "", "", escape(one.reason))
        else:
            table.add_row(
                escape(one.name),
                str(one.quality),
                f"{one.weight:.0%}",
                f"{one.gain:+.0f}",
                escape(_verdict(one)),
            )
    return table


def _verdict(one: "TemplatePhoto") -> str:
    if one.stranger:
        return "a stranger? " + one.reason
    if one.same_as is not None:
        return f"the same picture as {one.same_as}"
    said = "helps" if one.helps else "adds little"
    return ": ".join([said, ", ".join(one.reasons)]) if one.reasons else said

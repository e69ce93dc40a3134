"""`spherecf calibrate`: whether the decision rules hold for your people, and rules made for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.options import (
    AsReport,
    BackboneOfModel,
    DetectorFile,
    DeviceName,
    Draws,
    ModelFile,
    file_to_write,
    open_assessor,
    open_gallery,
    print_text,
)
from spherecf.common.progress import console, track
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.calibration import DecisionRule
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import PeopleReport
    from spherecf.photos import FaceAssessor

EXAMPLE = "Example: spherecf calibrate people/ --save mine.safetensors"
_SHOWN = 10  # photos that could not be used; the count tells of all


def calibrate(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with a sub-folder of photos per person, or embeddings of known people, from "
            "`spherecf embed`."
        ),
    ],
    one_each: Annotated[
        bool,
        typer.Option("--one-each", help="Every photo below the folder shows somebody else."),
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the model with the rules for these people to this file.", callback=file_to_write
        ),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(help="Keep the rules in this gallery: its commands, and `serve`, then decide by them."),
    ] = None,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    device: DeviceName = "cpu",
    draws: Draws = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap over people.")] = 0,
    as_json: AsReport = False,
) -> None:
    """Count what the model's decision rules do with your people, and make the rules anew for them.

    For each rate that the model promises: is it kept for these people (with an interval over people), broken,
    or can they not tell? The rules for two photos are then made from their pairs, and by the tail of these
    where the rate is too small to be counted. It takes 50 people. Commands that are given the saved model
    (`--model`), or a gallery that keeps the rules (`--gallery`), decide by them, and name your people.
    """
    import json

    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import check_people

    assessor = open_assessor(model, backbone, detector, faces="main", device=device)
    known = assessor.model
    if gallery is not None:  # fail before the work, not after it
        open_gallery(str(gallery), known, create=False).close()
    if known.calibration is None:
        raise InputError(
            "the model has no decision rules to check; make them with `spherecf evaluate calibration --save`"
        )
    if source.is_file():
        people = Embeddings.load(source)
        made_by = people.provenance.get("model")
        if made_by != known.fingerprint():
            raise InputError(
                f"{source}: made by the model {made_by or 'that it does not name'}, this is the model "
                f"{known.fingerprint()}; embed again, or give that model with --model"
            )
    else:
        people = _embedded(assessor, source, one_each)
    report = check_people(
        people, known.calibration, one_each=one_each, name=source.resolve().name, draws=draws, seed=seed
    )
    console.print(_table(report))
    if save is not None:
        known.with_calibration(report.calibration).save(save)
    if gallery is not None:
        with open_gallery(str(gallery), known, create=False) as opened:
            opened.keep_rules(report.calibration)
    written = [str(path) for path in (save, gallery) if path is not None]
    if written:
        print_text(f"written: {', '.join(written)}; rules for templates of several photos are as they were")
    else:
        print_text("nothing written (use --save FILE for the model with the renewed rules)")
    if as_json:
        saved = {"saved": None if save is None else str(save), "gallery": gallery and str(gallery)}
        typer.echo(json.dumps(report.to_dict() | saved, indent=2))


def _embedded(assessor: "FaceAssessor", folder: Path, one_each: bool) -> "Embeddings":
    """The main face of every photo, by person."""
    import numpy as np

    from spherecf.embeddings import Embeddings
    from spherecf.photos import find_photos, people_of

    listed = {"": [folder]} if one_each else people_of(folder)
    photos = [(name, photo) for name, paths in listed.items() for photo in find_photos(paths).photos]
    if not photos:
        raise InputError(f"{folder}: there are no photos in it")
    faces, names, keys, without = [], [], [], []
    stream = assessor.stream((photo.name, photo.path) for _, photo in photos)
    for assessed, (name, photo) in zip(track(stream, "photos", len(photos)), photos):
        face = assessed.usable_face
        if face is None:
            without.append(f"{photo.name}: {assessed.problem}")
        else:
            faces.append(face)
            names.append(name)
            keys.append(str(photo.path))
    for line in _first(without):
        print_text(line, "yellow")
    if not faces:
        raise InputError(f"{folder}: no photo shows a usable face")
    known = sorted(set(names))
    return Embeddings(
        np.array([face.mu for face in faces], np.float32),
        np.log([face.kappa for face in faces]).astype(np.float32),
        keys,
        labels=None if one_each else np.array([known.index(name) for name in names]),
        identities=[] if one_each else known,
        provenance={"model": assessor.model.fingerprint(), "radius": assessor.model.radius},
    )


def _first(lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"photos without a usable face: {len(lines)}"
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield "..."


def _table(report: "PeopleReport") -> Table:
    """The rules that commands prefer; the JSON has all."""
    counts, preferred = report.counts, report.rules[0].rule.score
    pairs = f"{counts['non_mated']:,} pairs of two people, {counts['mated']:,} of one"
    table = Table(title=f"{counts['people']:,} people, {counts['images']:,} images, {pairs}")
    for column in ("promised", "wrong", "95 %", "verdict", "match from", "renewed", "how"):
        table.add_column(column, overflow="fold")
    for one in report.rules:
        if one.rule.score == preferred:
            low, high = one.interval
            table.add_row(
                f"{one.rule.alpha:g}", f"{one.false_matches:,}", f"{low:.1e} .. {high:.1e}", one.verdict,
                _threshold(one.rule), _threshold(one.renewed), escape(one.how),
            )  # fmt: skip
    table.caption = f"thresholds of {preferred}; 95 %: of the share of wrong matches, over people"
    if counts["left_out"]:
        table.caption += f"; {counts['left_out']:,} further images were left out, at random"
    return table


def _threshold(rule: "DecisionRule") -> str:
    return "none" if rule.accept is None else f"{rule.accept:.2f}"

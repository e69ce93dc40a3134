"""`spherecf calibrate`: test the decision rules on your own people, and recalibrate them."""

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
    folders_of_people,
    open_assessor,
    open_gallery,
    print_left_out,
    print_listing,
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
_MAX_LISTED = 10  # unusable photos to list; their count is always printed


def calibrate(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with one sub-folder of photos per person, or an embeddings file with labels from "
            "`spherecf embed`."
        ),
    ],
    one_each: Annotated[
        bool, typer.Option("--one-each", help="Treat every photo in the folder as a different person.")
    ] = False,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the model with the recalibrated rules to this file.", callback=file_to_write
        ),
    ] = None,
    gallery: Annotated[
        Path | None,
        typer.Option(
            help="Store the recalibrated rules in this gallery. `gallery` commands and `serve` then use them."
        ),
    ] = None,
    model: ModelFile = None,
    backbone: BackboneOfModel = None,
    detector: DetectorFile = None,
    device: DeviceName = "cpu",
    draws: Draws = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of the bootstrap over people.")] = 0,
    as_json: AsReport = False,
) -> None:
    """Test the model's decision rules on your people, and recalibrate the rules for them.

    For each guaranteed false match rate, the report says whether it is kept, broken or open (too few people
    to tell), with a 95 % interval over people. The rules for two photos are then recalibrated on the pairs of
    your people; rates too small to be counted are extrapolated from the tail of the non-mated scores. At
    least 50 people are needed. To use the new rules, pass the saved model to other commands with `--model`,
    or store the rules in a gallery with `--gallery`.
    """
    import json

    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import check_people

    assessor = open_assessor(model, backbone, detector, faces="main", device=device)
    loaded = assessor.model
    if gallery is not None:  # fail before the images are embedded; others may write to it meanwhile
        with open_gallery(str(gallery), loaded, create=False) as opened:
            opened.claim()
    if loaded.calibration is None:
        raise InputError(
            "the model has no decision rules to test; create them with `spherecf evaluate calibration --save`"
        )
    if source.is_file():
        embeddings = Embeddings.load(source)
        made_by = embeddings.provenance.get("model")
        if made_by != loaded.fingerprint():
            maker = f"the model {made_by}" if made_by else "an unknown model"
            raise InputError(
                f"{source}: made by {maker}, but the loaded model is {loaded.fingerprint()}; embed the "
                "images again, or pass the right model with --model"
            )
    else:
        embeddings = _embed_photos(assessor, source, one_each)
    report = check_people(
        embeddings, loaded.calibration, one_each=one_each, name=source.resolve().name, draws=draws, seed=seed
    )
    console.print(_table(report))
    if save is not None:
        loaded.with_calibration(report.calibration).save(save)
    if gallery is not None:
        with open_gallery(str(gallery), loaded, create=False) as opened:
            opened.keep_rules(report.calibration)
    written = [str(path) for path in (save, gallery) if path is not None]
    if written:
        print_text(f"written: {', '.join(written)}; rules for templates of several photos are unchanged")
    else:
        print_text("nothing written (use --save FILE to write the model with the recalibrated rules)")
    if as_json:
        saved = {"saved": None if save is None else str(save), "gallery": gallery and str(gallery)}
        typer.echo(json.dumps(report.to_dict() | saved, indent=2))


def _embed_photos(assessor: "FaceAssessor", folder: Path, one_each: bool) -> "Embeddings":
    """Embed the main face of every photo, labelled by person; what cannot be used is reported."""
    import numpy as np

    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import MIN_PEOPLE
    from spherecf.photos import find_photos

    people = {"": [folder]} if one_each else folders_of_people(folder)
    files = {name: find_photos(paths) for name, paths in people.items()}
    print_left_out(*files.values())
    photos = [(name, photo) for name, found in files.items() for photo in found.photos]
    n_people = len(photos) if one_each else sum(bool(found.photos) for found in files.values())
    if n_people < MIN_PEOPLE:
        raise InputError(f"{folder}: expected at least {MIN_PEOPLE} people, got {n_people}")
    faces, names, keys, failures = [], [], [], []
    stream = assessor.stream((photo.name, photo.path) for _, photo in photos)
    for assessed, (name, photo) in zip(track(stream, "photos", len(photos)), photos):
        face = assessed.usable_face
        if face is None:
            failures.append(f"{photo.name}: {assessed.problem}")
        else:
            faces.append(face)
            names.append(name)
            keys.append(str(photo.path))
    if failures:
        print_text(f"photos without a usable face: {len(failures)}", "yellow")
        print_listing(failures, _MAX_LISTED, in_json=False)
    if not faces:
        raise InputError(f"{folder}: no photo shows a usable face")
    identities = sorted(set(names))
    return Embeddings(
        np.array([face.mu for face in faces], np.float32),
        np.log([face.kappa for face in faces]).astype(np.float32),
        keys,
        labels=None if one_each else np.array([identities.index(name) for name in names]),
        identities=[] if one_each else identities,
        provenance={"model": assessor.model.fingerprint(), "radius": assessor.model.radius},
    )


def _table(report: "PeopleReport") -> Table:
    """Table of the rules for the preferred score; the JSON output contains all rules."""
    counts, preferred_score = report.counts, report.rules[0].rule.score
    pairs = f"{counts['non_mated']:,} non-mated and {counts['mated']:,} mated pairs"
    table = Table(title=f"{counts['people']:,} people, {counts['images']:,} images, {pairs}")
    for column in (
        "guaranteed FMR", "false matches", "95 % interval", "verdict", "threshold", "new threshold", "method",
    ):  # fmt: skip
        table.add_column(column, overflow="fold")
    for result in report.rules:
        if result.rule.score == preferred_score:
            low, high = result.interval
            table.add_row(
                f"{result.rule.alpha:g}", f"{result.false_matches:,}", f"{low:.1e} .. {high:.1e}",
                result.verdict, _threshold(result.rule), _threshold(result.renewed), escape(result.how),
            )  # fmt: skip
    table.caption = f"thresholds of {preferred_score}; intervals of the false match rate, over people"
    if counts["left_out"]:
        table.caption += f"; {counts['left_out']:,} randomly chosen images were left out"
    return table


def _threshold(rule: "DecisionRule") -> str:
    return "none" if rule.accept is None else f"{rule.accept:.2f}"

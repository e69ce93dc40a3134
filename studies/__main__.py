"""The studies behind the documentation, each by one command: ``python -m studies --help``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spherecf.cli.options import BackboneFile, PresetName, open_backbone
from spherecf.cli.output import folder_to_write, run_command
from spherecf.common.progress import console

if TYPE_CHECKING:
    from spherecf.report import Table

app = typer.Typer(
    help="Run the studies behind the documentation.", no_args_is_help=True, pretty_exceptions_enable=False,
    add_completion=False,
)  # fmt: skip

_REPRODUCE_EXAMPLE = (
    "Example: python -m studies reproduce lfw/ cfp/ --pairs cfp/pairs_FP.txt --pairs cfp/pairs_FF.txt "
    "--backbone mobilefacenet-512.onnx --out runs/reproduce"
)


@app.callback()
def _root() -> None:
    pass


@app.command(
    "cross-quality",
    epilog="Example: python -m studies cross-quality lfw/ cfp/ --pairs cfp/pairs_FP.txt --out runs/cfp",
)
def cross_quality(
    train: Annotated[Path, typer.Argument(help="Aligned crops of the people to train on.")],
    test: Annotated[Path, typer.Argument(help="Aligned crops of other people, which the pairs name.")],
    pairs: Annotated[list[Path], typer.Option(help="Pair list of the test images; may be repeated.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the report, heads and caches.", callback=folder_to_write)
    ],
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the heads.")] = None,
    backbone: BackboneFile = None,
    preprocessing: PresetName = "",
    seeds: Annotated[int, typer.Option(help="Repetitions, each with its own heads and degradations.")] = 3,
    draws: Annotated[int, typer.Option(help="Bootstrap draws of the intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Train heads on some people and compare pairs of others: clean, clean against degraded, both degraded.

    Compares the cosine with the mutual likelihood score of four heads: exact and released loss, with and
    without the sample in its own prototype. Writes tables, intervals over people, EDC and rejection curves
    into a report. Interrupted, the same command goes on where it stopped.
    """
    from spherecf.data import open_pairs, open_source
    from spherecf.demo.run import present, tables
    from spherecf.demo.trial import cross_quality as run
    from spherecf.training import ConfidenceConfig

    config = ConfidenceConfig() if recipe is None else ConfidenceConfig.load(recipe)
    recogniser = open_backbone(backbone, preprocessing)
    result = run(
        recogniser,
        open_source(train),
        open_source(test),
        [open_pairs(path) for path in pairs],
        out,
        config,
        seeds=range(seeds),
        draws=draws,
    )
    files = present(
        result,
        out / "report",
        title=f"{recogniser.name}: what confidence buys, clean and degraded",
        notes=[f"Trained on {train.name}, tested on {test.name}."],
        provenance={"backbone": recogniser.sha256, "config": config.to_dict()},
    )
    _print(tables(result), f"report: {files.html}", as_json)


@app.command("shipped", epilog="Example: python -m studies shipped lfw/ cfp/ --out runs/shipped")
def shipped(
    train: Annotated[
        Path,
        typer.Argument(
            help="Aligned crops of the people to train on; or a model, to calibrate its head anew."
        ),
    ],
    test: Annotated[Path, typer.Argument(help="Aligned crops of other people, to calibrate and to check.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for model.safetensors, report, head and caches.", callback=folder_to_write),
    ],
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the head.")] = None,
    draws: Annotated[int, typer.Option(help="Bootstrap draws of people; 0 for no intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Make the model that ships with this package: train SFace's head, calibrate it, check it on others.

    Trains on TRAIN without the people who look like somebody of TEST, calibrates on half of the people of
    TEST, and counts on the other half what its decisions do as pictures get worse, beside a cosine threshold.
    Interrupted, the same command goes on where it stopped. docs/model-card.md has the results.
    """
    from spherecf.data import open_source, orl_faces
    from spherecf.faces import AlignedFaces
    from spherecf.models import FrozenBackbone, load
    from spherecf.report import require_matplotlib
    from spherecf.training import ConfidenceConfig
    from studies.shipped import MODEL_FILE, ship
    from studies.shipped_report import present_shipped, shipped_tables

    require_matplotlib()  # before the work, not after
    config = ConfidenceConfig() if recipe is None else ConfidenceConfig.load(recipe)
    learnt = load(train) if train.suffix == ".safetensors" else open_source(train)
    result = ship(
        FrozenBackbone.default(), learnt, open_source(test), out, config,
        foreign={"orl": AlignedFaces(orl_faces())}, realign=AlignedFaces, draws=draws,
    )  # fmt: skip
    files = present_shipped(result, out / "report", {"config": config.to_dict()})
    _print(shipped_tables(result), f"model: {out / MODEL_FILE}\nreport: {files.html}", as_json)


@app.command(epilog="Example: python -m studies damage lfw/ cfp/ --out runs/damage")
def damage(
    train: Annotated[Path, typer.Argument(help="Aligned crops of the people to learn from and to test on.")],
    test: Annotated[Path, typer.Argument(help="Aligned crops of other people: pairs, and faces.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the report and the caches.", callback=folder_to_write)
    ],
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the heads.")] = None,
    people: Annotated[
        tuple[int, int], typer.Option(help="Of TRAIN, three pictures of each, a third to test on; of TEST.")
    ] = (100, 60),
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Further model beside the one that ships."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of any pictures that are no faces: animals, things.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Leave out each kind of damage in training, and show heads what is no face.

    Every kind is shown, on people who taught nothing, to a head that saw all kinds but this one. Then what
    kappa is worth in pairs, beside a kappa that knows the truth; and kappa of textures, drawn faces, halves
    and patches of faces and faces upside down, beside that of faces. docs/LOG.md has the results.
    """
    from spherecf.data import open_source
    from spherecf.models import FrozenBackbone, load
    from spherecf.report import Section, require_matplotlib, write_report
    from spherecf.training import ConfidenceConfig
    from studies.damage import study_damage

    require_matplotlib()  # before the work, not after
    config = ConfidenceConfig() if recipe is None else ConfidenceConfig.load(recipe)
    heads = {"shipped": load().head, **{path.stem: load(path).head for path in model or ()}}
    others = open_source(pictures) if pictures else None
    tables = study_damage(
        FrozenBackbone.default(), open_source(train), open_source(test), out, config,
        people=people, heads=heads, pictures=others,
    )  # fmt: skip
    files = write_report(
        out / "report", title="Damage that a head has and has not seen",
        sections=[Section("Heads", tables=tables)], results={"tables": [table.to_dict() for table in tables]},
        provenance={"config": config.to_dict()},
    )  # fmt: skip
    _print(tables, f"report: {files.html}", as_json)


@app.command(epilog=_REPRODUCE_EXAMPLE)
def reproduce(
    train: Annotated[Path, typer.Argument(help="Aligned crops of the people to train on.")],
    test: Annotated[Path, typer.Argument(help="Aligned crops of other people, which the pairs name.")],
    pairs: Annotated[list[Path], typer.Option(help="Pair list of the test images; may be repeated.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the report, heads and caches.", callback=folder_to_write)
    ],
    backbone: Annotated[
        list[Path] | None, typer.Option(help="Further recogniser beside SFace; may be repeated.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the heads.")] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions, each with its own heads and templates.")] = 6,
    draws: Annotated[int, typer.Option(help="Bootstrap draws of people; 0 for no intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Train SCF, SCF as released, SCF-G, PFE-v and PFE-G, and compare them with the cosine.

    Pairs, templates of several images (pooled by mean, norm, detector score and each head's confidence) and
    open-set searches; clean and degraded; every number over several seeds with paired intervals over people.
    People of TRAIN who look like somebody of TEST are not learnt from. Interrupted, the same command goes on
    where it stopped.
    """
    from spherecf.data import open_pairs, open_source
    from spherecf.report import require_matplotlib
    from spherecf.training import ConfidenceConfig
    from studies.reproduce import reproduce as run
    from studies.reproduce_report import present_reproduction, reproduction_tables

    require_matplotlib()  # before the work, not after
    config = ConfidenceConfig() if recipe is None else ConfidenceConfig.load(recipe)
    recognisers = [open_backbone(path, "") for path in (None, *(backbone or []))]
    result = run(
        recognisers,
        open_source(train),
        open_source(test),
        [open_pairs(path) for path in pairs],
        out,
        config,
        seeds=range(seeds),
        draws=draws,
    )
    files = present_reproduction(result, out / "report", {"config": config.to_dict()})
    _print(reproduction_tables(result), f"report: {files.html}", as_json)


def _print(tables: Sequence["Table"], written: str, as_json: bool) -> None:
    """The tables on stderr; on stdout the same as JSON, or what was written."""
    from spherecf.demo import show_tables

    show_tables(tables, console)
    typer.echo(json.dumps([table.to_dict() for table in tables], indent=2) if as_json else written)


if __name__ == "__main__":
    sys.exit(run_command(app))

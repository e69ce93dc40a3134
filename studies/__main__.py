"""The studies behind the documentation, each by one command: ``python -m studies --help``."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spherecf.cli.options import BackboneFile, PresetName, folder_to_write, open_backbone, run_command
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
    test: Annotated[
        Path, typer.Argument(help="Aligned crops of other people, with the images of the pairs.")
    ],
    pairs: Annotated[list[Path], typer.Option(help="Pair list of the test images; may be repeated.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the report, heads and caches.", callback=folder_to_write)
    ],
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the heads.")] = None,
    backbone: BackboneFile = None,
    preprocessing: PresetName = "",
    seeds: Annotated[int, typer.Option(help="Repetitions, each with its own heads and degradations.")] = 3,
    draws: Annotated[int, typer.Option(help="Bootstrap samples for the intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Train heads on some people and compare pairs of others: clean, clean against degraded, both degraded.

    Compares the cosine with the mutual likelihood score of four heads: exact and released loss, with and
    without the sample in its own prototype. The report has tables, intervals over people, EDC and rejection
    curves. An interrupted run continues when the same command is run again.
    """
    from spherecf.data import open_pairs, open_source
    from spherecf.demo.run import present, tables
    from spherecf.demo.trial import TrialOptions, cross_quality as run
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
        TrialOptions(range(seeds), draws=draws),
    )
    files = present(
        result,
        out / "report",
        title=f"{recogniser.name}: what the confidence adds, clean and degraded",
        notes=[f"Trained on {train.name}, tested on {test.name}."],
        provenance={"backbone": recogniser.sha256, "config": config.to_dict()},
    )
    _print(tables(result), f"report: {files.html}", as_json)


@app.command("shipped", epilog="Example: python -m studies shipped lfw/ cfp/ --out runs/shipped")
def shipped(
    train: Annotated[
        Path,
        typer.Argument(help="Aligned crops of the people to train on; or a model, to recalibrate its head."),
    ],
    test: Annotated[
        Path, typer.Argument(help="Aligned crops of other people, for calibration and evaluation.")
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for model.safetensors, report, head and caches.", callback=folder_to_write),
    ],
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the head.")] = None,
    draws: Annotated[int, typer.Option(help="Bootstrap samples of the people; 0 for no intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Build the model that ships with this package: train SFace's head, calibrate it and evaluate it.

    Trains on TRAIN without the people who look like somebody in TEST, calibrates on half of the people of
    TEST, and measures its decisions on the other half at several grades of damage, compared with a cosine
    threshold. An interrupted run continues when the same command is run again. docs/model-card.md has the
    results.
    """
    from spherecf.data import open_source, orl_faces
    from spherecf.faces import AlignedFaces
    from spherecf.models import FrozenBackbone, load
    from spherecf.report import require_matplotlib
    from spherecf.training import ConfidenceConfig
    from studies.shipped import MODEL_FILE, SETTINGS, ship
    from studies.shipped_report import present_shipped, shipped_tables

    require_matplotlib()  # fail before the long computation, not after it
    config = SETTINGS if recipe is None else ConfidenceConfig.load(recipe)
    model_or_images = load(train) if train.suffix == ".safetensors" else open_source(train)
    result = ship(
        FrozenBackbone.default(), model_or_images, open_source(test), out, config,
        foreign={"orl": AlignedFaces(orl_faces())}, realign=AlignedFaces, draws=draws,
    )  # fmt: skip
    files = present_shipped(result, out / "report", {"config": config.to_dict()})
    _print(shipped_tables(result), f"model: {out / MODEL_FILE}\nreport: {files.html}", as_json)


@app.command("transfer", epilog="Example: python -m studies transfer cfp/ lfw/ --out runs/shipped")
def transfer(
    test: Annotated[
        Path, typer.Argument(help="Aligned crops of the people used for calibration and evaluation.")
    ],
    others: Annotated[
        list[Path] | None, typer.Argument(help="Aligned crops of other people, several images of each.")
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            help="Output folder of `shipped`, whose cache is used; the report goes to transfer/ in it.",
            callback=folder_to_write,
        ),
    ],
    model: Annotated[
        Path | None, typer.Option(help="Calibrated model of SFace (default: the one that ships).")
    ] = None,
    repetitions: Annotated[int, typer.Option(help="Random samples of people to refit the rules on.")] = 10,
    draws: Annotated[int, typer.Option(help="Bootstrap samples of the people.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Measure decision rules on people of other sets, with and without `spherecf calibrate` on some of them.

    The sets are the evaluation people of TEST (by pose, and under unseen damage), the OTHERS, and ORL. Rules
    of the model and rules refitted on each set are measured on all other sets; rules refitted on 20 to 200
    people of a set are measured on the rest of that set. docs/decisions.md has the results.
    """
    from spherecf.data import open_source, orl_faces
    from spherecf.faces import AlignedFaces
    from spherecf.models import load
    from studies.transfer import measure_transfer, present_transfer, transfer_tables

    loaded, sets = load(model), [open_source(path) for path in others or ()]
    named = {source.name: source for source in sets} | {"orl": AlignedFaces(orl_faces())}
    result = measure_transfer(loaded, open_source(test), named, out, repetitions=repetitions, draws=draws)
    files = present_transfer(result, out / "transfer", {"fingerprint": loaded.fingerprint()})
    _print(transfer_tables(result), f"report: {files.html}", as_json)


@app.command(epilog="Example: python -m studies cohort cfp/ lfw/ --out runs/shipped")
def cohort(
    test: Annotated[
        Path, typer.Argument(help="Aligned crops of the people used for calibration and evaluation.")
    ],
    others: Annotated[
        list[Path] | None, typer.Argument(help="Aligned crops of other people, several images of each.")
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option(help="Output folder of `shipped`, whose cache is used.", callback=folder_to_write)
    ],
    model: Annotated[
        Path | None, typer.Option(help="Calibrated model of SFace (default: the one that ships).")
    ] = None,
    galleries: Annotated[int, typer.Option(help="Random galleries of half of the people.")] = 8,
    draws: Annotated[int, typer.Option(help="Bootstrap samples of the people.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Measure open-set search with scores normalised on the searched gallery (Z-norm, S-norm, tails).

    docs/LOG.md has the results: normalisation on the gallery does not help.
    """
    from spherecf.data import open_source
    from spherecf.models import load
    from studies.cohort import cohort as run, cohort_tables

    sets = [open_source(path) for path in others or ()]
    gains = run(
        load(model), open_source(test), {source.name: source for source in sets}, out,
        galleries=galleries, draws=draws,
    )  # fmt: skip
    _print(cohort_tables(gains), "", as_json)


@app.command(epilog="Example: python -m studies damage lfw/ cfp/ --out runs/damage")
def damage(
    train: Annotated[Path, typer.Argument(help="Aligned crops of the people to train and test on.")],
    test: Annotated[Path, typer.Argument(help="Aligned crops of other people, for pairs and as faces.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the report and the caches.", callback=folder_to_write)
    ],
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the heads.")] = None,
    people: Annotated[
        tuple[int, int],
        typer.Option(
            help="Number of people of TRAIN (three images each, a third of them for testing) and of TEST."
        ),
    ] = (100, 60),
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Further model to compare with the one that ships; may be repeated."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of images without faces: animals, objects.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Leave each kind of damage out of training in turn, and test heads on images that are not faces.

    Every kind of damage is tested, on held-out people, with a head trained on all other kinds. Then pairs are
    scored with the kappa of each head and with an ideal kappa computed from the true errors. Finally kappa on
    textures, drawn faces, half faces, patches of faces and upside-down faces is compared with kappa on faces.
    docs/LOG.md has the results.
    """
    from spherecf.data import open_source
    from spherecf.models import FrozenBackbone, load
    from spherecf.report import Section, require_matplotlib, write_report
    from spherecf.training import ConfidenceConfig
    from studies.damage import study_damage

    require_matplotlib()  # fail before the long computation, not after it
    config = ConfidenceConfig() if recipe is None else ConfidenceConfig.load(recipe)
    heads = {"shipped": load().head, **{path.stem: load(path).head for path in model or ()}}
    others = open_source(pictures) if pictures else None
    tables = study_damage(
        FrozenBackbone.default(), open_source(train), open_source(test), out, config,
        people=people, heads=heads, pictures=others,
    )  # fmt: skip
    files = write_report(
        out / "report", title="Kinds of damage with and without training",
        sections=[Section("Heads", tables=tables)], results={"tables": [table.to_dict() for table in tables]},
        provenance={"config": config.to_dict()},
    )  # fmt: skip
    _print(tables, f"report: {files.html}", as_json)


@app.command(epilog=_REPRODUCE_EXAMPLE)
def reproduce(
    train: Annotated[Path, typer.Argument(help="Aligned crops of the people to train on.")],
    test: Annotated[
        Path, typer.Argument(help="Aligned crops of other people, with the images of the pairs.")
    ],
    pairs: Annotated[list[Path], typer.Option(help="Pair list of the test images; may be repeated.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the report, heads and caches.", callback=folder_to_write)
    ],
    backbone: Annotated[
        list[Path] | None, typer.Option(help="Further recogniser in addition to SFace; may be repeated.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the heads.")] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions, each with its own heads and templates.")] = 6,
    draws: Annotated[int, typer.Option(help="Bootstrap samples of the people; 0 for no intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Train SCF, SCF as released, SCF-G, PFE-v and PFE-G, and compare them with the cosine.

    The comparison covers pairs, templates of several images (pooled by mean, norm, detector score and each
    head's confidence) and open-set search, on clean and degraded images. Every number is a mean over several
    seeds with paired intervals over people. People of TRAIN who look like somebody in TEST are not used for
    training. An interrupted run continues when the same command is run again.
    """
    from spherecf.data import open_pairs, open_source
    from spherecf.report import require_matplotlib
    from spherecf.training import ConfidenceConfig
    from studies.reproduce import ReproductionOptions, reproduce as run
    from studies.reproduce_report import present_reproduction, reproduction_tables

    require_matplotlib()  # fail before the long computation, not after it
    config = ConfidenceConfig() if recipe is None else ConfidenceConfig.load(recipe)
    recognisers = [open_backbone(path, "") for path in (None, *(backbone or []))]
    result = run(
        recognisers,
        open_source(train),
        open_source(test),
        [open_pairs(path) for path in pairs],
        out,
        config,
        ReproductionOptions(range(seeds), draws=draws),
    )
    files = present_reproduction(result, out / "report", {"config": config.to_dict()})
    _print(reproduction_tables(result), f"report: {files.html}", as_json)


@app.command("rivals", epilog="Example: python -m studies rivals lfw/ cfp/ --out runs/rivals")
def rivals(
    train: Annotated[Path, typer.Argument(help="Aligned crops of the people to train on.")],
    test: Annotated[Path, typer.Argument(help="Aligned crops of other people.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the report, heads and caches.", callback=folder_to_write)
    ],
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the heads.")] = None,
    backbone: BackboneFile = None,
    preprocessing: PresetName = "",
    seeds: Annotated[int, typer.Option(help="Number of trainings of every head.")] = 2,
    ask: Annotated[
        list[str] | None,
        typer.Option(
            help="Slow method to include: grafiqs, ser_fiq or faceqan (seconds per image); may be repeated. "
            "Default: the first two."
        ),
    ] = None,
    people: Annotated[int, typer.Option(help="Number of people of TEST for the slow methods.")] = 20,
    draws: Annotated[int, typer.Option(help="Bootstrap samples of the people.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Compare kappa with other confidences: PFE, ProbFace, CR-FIQA, RTS, the norm, SER-FIQ, GraFIQs, FaceQAN.

    Measures how well each confidence discards the errors of pairs, pools templates and rejects the errors of
    a search, and how much time it takes. All are measured in the same way, on clean and damaged images of the
    people of TEST, with intervals over people. An interrupted run continues when the same command is run
    again. docs/reproduce.md has the results.
    """
    from spherecf.data import open_source
    from spherecf.report import require_matplotlib
    from spherecf.training import ConfidenceConfig
    from studies.rivals import Effort, compare_rivals, present_rivals, rival_tables

    require_matplotlib()  # fail before the long computation, not after it
    config = ConfidenceConfig() if recipe is None else ConfidenceConfig.load(recipe)
    result = compare_rivals(
        open_backbone(backbone, preprocessing), open_source(train), open_source(test), out, config,
        Effort(seeds, tuple(ask) if ask else Effort.ask, people, draws),
    )  # fmt: skip
    files = present_rivals(result, out / "report", {"config": config.to_dict()})
    _print(rival_tables(result), f"report: {files.html}", as_json)


def _print(tables: Sequence["Table"], written: str, as_json: bool) -> None:
    """Print the tables on stderr, and on stdout the tables as JSON or the paths of the written files."""
    from spherecf.demo import show_tables

    show_tables(tables, console)
    typer.echo(json.dumps([table.to_dict() for table in tables], indent=2) if as_json else written)


if __name__ == "__main__":
    sys.exit(run_command(app))

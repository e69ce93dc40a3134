"""`spherecf evaluate calibration`: likelihood ratios, thresholds and decisions, on people apart."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spherecf.cli._output import file_to_write, folder_to_write
from spherecf.cli.evaluate._tenfold import _list_name
from spherecf.common.progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import CalibrationReport

EXAMPLE = (
    "Example: spherecf evaluate calibration lfw.safetensors --pairs pairs.txt --model head.safetensors "
    "--save calibrated.safetensors"
)


def calibration(
    embeddings: Annotated[Path, typer.Argument(help="From `spherecf embed`: the left (or both) images.")],
    pairs: Annotated[
        Path, typer.Option(help="LFW's pairs.txt, lines `left right 0|1`, CFP's table, or a .bin.")
    ],
    right: Annotated[Path | None, typer.Option(help="Of the right images, e.g. degraded views.")] = None,
    score: Annotated[str, typer.Option(help="cosine, mls, or both.")] = "both",
    confidence: Annotated[str, typer.Option(help="kappa, or an extra column: norm, ...")] = "kappa",
    method: Annotated[str, typer.Option(help="Calibrator that is kept: logistic or isotonic.")] = "logistic",
    alpha: Annotated[float, typer.Option(help="Bound on the errors of decisions.")] = 0.01,
    delta: Annotated[float, typer.Option(help="Chance that a promise is not kept.")] = 0.05,
    disjoint: Annotated[
        bool, typer.Option("--disjoint", help="Test on pairs of which no two share a person.")
    ] = False,
    model: Annotated[Path | None, typer.Option(help="The model the embeddings were made with.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write that model with this calibration.", callback=file_to_write)
    ] = None,
    backbone: Annotated[Path | None, typer.Option(help="With --model: its recogniser's file.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report: HTML, Markdown, JSON.", callback=folder_to_write),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on stdout.")] = False,
    draws: Annotated[int, typer.Option(help="Bootstrap draws of people; 0 for no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the split of people and the bootstrap.")] = 0,
    radius: Annotated[float | None, typer.Option(help="r of the score (default: the file's, or 64).")] = None,
) -> None:
    """Calibrate on half of the people and say how good it is on the other half.

    Scores become log-likelihood ratios (Cllr, reliability), FMR targets become thresholds with intervals, and
    decisions that may be withheld keep a promised error rate. With --model and --save the model is written
    with its calibration, which `spherecf embed` then passes on.
    """
    from spherecf.data import open_pairs
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import calibration_tables, evaluate_calibration, require_matplotlib, rich_table

    if (model is None) != (save is None):
        raise InputError("calibration: --model MODEL and --save OUT go together")
    if method not in ("logistic", "isotonic"):
        raise InputError(f"--method: expected logistic or isotonic, got {method}")
    if out is not None:
        require_matplotlib()  # before the work, not after
    listed = open_pairs(pairs)
    left_file = Embeddings.load(embeddings)
    same = right is None or right.resolve() == embeddings.resolve()
    right_file = left_file if right is None or same else Embeddings.load(right)
    report = evaluate_calibration(
        left_file, right_file, listed.left, listed.right, listed.mated,
        name=_list_name(listed, pairs), subjects=listed.subjects, radius=radius,
        scores=("cosine", "mls") if score == "both" else (score,), confidence=confidence,
        method="isotonic" if method == "isotonic" else "logistic", alpha=alpha, delta=delta,
        disjoint=disjoint, seed=seed, draws=draws, pairs_hash=listed.fingerprint(),
        condition="+".join(dict.fromkeys(map(_view, (left_file, right_file)))),
    )  # fmt: skip
    for table in calibration_tables(report):
        console.print(rich_table(table))
    files = {}
    if model is not None and save is not None:
        files["model"] = str(_save(report, model, save, backbone))
        console.print(f"model with its calibration: {save}", markup=False)
    if out is not None:
        files["report"] = str(_write(out, report))
    if as_json:
        typer.echo(json.dumps(report.to_dict(curves=False) | files, indent=2))
    written = files.get("report")
    console.print(
        f"report: {written}" if written else "no report written; --out FOLDER writes one", markup=False
    )


def _view(embeddings: "Embeddings") -> str:
    return str(embeddings.provenance.get("view", "unstated"))


def _save(report: "CalibrationReport", model: Path, save: Path, backbone: Path | None) -> Path:
    from spherecf.models import load

    if not report.calibration.model:
        raise InputError(
            "--save: these embeddings do not say which model made them (no `model` in their provenance); "
            "embed the images with `spherecf embed MODEL ...`"
        )
    return load(model, backbone).with_calibration(report.calibration).save(save)


def _write(out: Path, report: "CalibrationReport") -> Path:
    from spherecf.common.version import environment
    from spherecf.evaluation import calibration_section, write_report

    section = calibration_section(report)
    return write_report(
        out, title=section.title, sections=[section], results={"calibration": report.to_dict()},
        provenance={"made": dict(report.calibration.record), "environment": environment()},
    ).html  # fmt: skip

"""`spherecf evaluate rejection`: which confidence removes the errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spherecf.cli.evaluate._ijb import (
    DrawsOption,
    JsonFile,
    JsonOption,
    OutOption,
    SetOption,
    check_json,
    refuse_given,
    say_json,
    say_written,
    show,
)
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.evaluation import PairReport, RejectionReport, Table

EXAMPLE = "Example: spherecf evaluate rejection ijbc.safetensors --meta IJBC/ --set ijbc --out report/"
_PAIR_CONFIDENCES = (
    "kappa", "mean_resultant", "norm", "precision", "detector_score", "sharpness", "random", "oracle",
)  # fmt: skip


def rejection(
    embeddings: Annotated[Path, typer.Argument(help="From `spherecf embed` or `spherecf data import`.")],
    json_file: JsonFile = None,
    meta: Annotated[Path | None, typer.Option(help="Folder of IJB's meta files: open-set search.")] = None,
    set_: SetOption = "ijbc",
    pairs: Annotated[Path | None, typer.Option(help="Pair list instead: TMR and EDC.")] = None,
    right: Annotated[Path | None, typer.Option(help="With --pairs: embeddings of the right images.")] = None,
    mode: Annotated[str | None, typer.Option(help="How images become templates (K1); docs/ijb.md.")] = None,
    gallery: Annotated[list[str] | None, typer.Option(help="Name of a gallery (default: all).")] = None,
    fpir: Annotated[list[float] | None, typer.Option(help="Operating points (0.05, 0.1, 0.2).")] = None,
    kappa_gallery: Annotated[
        str | None, typer.Option(help="likelihood, cosine, or a number (likelihood).")
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Prior chance that a probe is of nobody enrolled (0.5).")
    ] = None,
    limit: Annotated[float | None, typer.Option(help="Largest rejected share of the PRR (0.5).")] = None,
    trials: Annotated[int | None, typer.Option(help="Weights tried for MPRisk (512).")] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    draws: DrawsOption = 1000,
    seed: Annotated[int, typer.Option(help="Of division, search, bootstrap and `random`.")] = 0,
) -> None:
    """Reject by every confidence and see whether the errors go: PRR, TMR at FMR, error versus discard.

    With --meta probes are searched in each gallery; calibrator, weights and gallery concentration are fitted
    on half of the people and everything is measured on the other half. With --pairs images are rejected, and
    pairs discarded, by every confidence that the embeddings have.
    """
    from spherecf.evaluation import require_matplotlib

    check_json(as_json, json_file)
    if (meta is None) == (pairs is None):
        raise InputError("rejection: give exactly one of --meta FOLDER and --pairs FILE")
    if out is not None:
        require_matplotlib()  # before the work, not after
    options: dict[str, Any] = {
        "mode": mode, "galleries": gallery, "fpirs": fpir, "beta": beta, "limit": limit, "trials": trials,
        "kappa_gallery": None if kappa_gallery is None else _number(kappa_gallery),
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None and value != []}
    if pairs is not None:
        refuse_given(given, "rejection", "--meta")
        notes: list[str] = []
        tables, results, written = _of_pairs(embeddings, right, pairs, out, draws, seed)
    else:
        from spherecf.data import read_ijb
        from spherecf.embeddings import Embeddings
        from spherecf.evaluation import evaluate_template_rejection, rejection_notes

        if right is not None:
            raise InputError("rejection: --right goes with --pairs")
        source = Embeddings.load(embeddings)
        reports = evaluate_template_rejection(
            source, read_ijb(meta or Path(), set_), draws=draws, seed=seed, **given
        )
        notes = [f"{report.name}: {note}" for report in reports.values() for note in rejection_notes(report)]
        tables, results, written = _of_galleries(reports, set_, out, source.provenance)
    show(tables, notes)
    if as_json:
        say_json(results, written, json_file)
    say_written(written)


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _of_galleries(
    reports: dict[str, "RejectionReport"], name: str, out: Path | None, provenance: dict[str, Any]
) -> tuple[list["Table"], dict[str, Any], Path | None]:
    from spherecf.common.version import environment
    from spherecf.evaluation import mean_prr_table, rejection_section, rejection_tables, write_report

    tables = [table for report in reports.values() for table in rejection_tables(report)]
    summary = [mean_prr_table(list(reports.values()))]
    written = None
    if out is not None:
        written = write_report(
            out, title=f"{name}: rejection in open-set identification", tables=summary,
            sections=[rejection_section(report) for report in reports.values()],
            results={key: report.to_dict() for key, report in reports.items()},
            provenance={"embeddings": provenance, "environment": environment()},
        ).html  # fmt: skip
    results = {"galleries": {key: report.to_dict(curves=False) for key, report in reports.items()}}
    return [*tables, *summary], results, written


def _of_pairs(
    left: Path, right: Path | None, pairs: Path, out: Path | None, draws: int, seed: int
) -> tuple[list["Table"], dict[str, Any], Path | None]:
    from spherecf.data import open_pairs
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import evaluate_pairs, pair_rejection_tables

    listed = open_pairs(pairs)
    one = Embeddings.load(left)
    other = one if right is None or right.resolve() == left.resolve() else Embeddings.load(right)
    report = evaluate_pairs(
        one, other, listed.left, listed.right, listed.mated, listed.fold, name=listed.name,
        subjects=listed.subjects, confidences=_PAIR_CONFIDENCES, draws=draws, seed=seed,
        pairs_hash=listed.fingerprint(), condition="given" if other is one else "left/right",
    )  # fmt: skip
    tables = pair_rejection_tables(report)
    return tables, report.to_dict(), None if out is None else _write(out, report, tables)


def _write(out: Path, report: "PairReport", tables: Sequence["Table"]) -> Path:
    from spherecf.common.version import environment
    from spherecf.evaluation import write_report

    title = f"{report.name}: what rejecting by confidence buys"
    return write_report(
        out, [report], title=title, tables=tables, provenance={"environment": environment()}
    ).html

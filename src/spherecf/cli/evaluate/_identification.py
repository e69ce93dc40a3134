"""`spherecf evaluate identification`: 1:N search, closed and open set, and among distractors."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spherecf.cli.evaluate._ijb import (
    DrawsOption,
    JsonFile,
    JsonOption,
    ModeOption,
    OutOption,
    RadiusOption,
    ScoreOption,
    SetOption,
    ThreadsOption,
    check_json,
    refuse_given,
    say_json,
    say_written,
    show,
)
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import Section

EXAMPLE = "Example: spherecf evaluate identification ijbc.safetensors --meta IJBC/ --set ijbc --out report/"


def identification(
    embeddings: Annotated[Path, typer.Argument(help="From `spherecf embed` or `spherecf data import`.")],
    json_file: JsonFile = None,
    meta: Annotated[Path | None, typer.Option(help="Folder of IJB's meta files.")] = None,
    set_: SetOption = "ijbc",
    distractors: Annotated[
        Path | None, typer.Option(help="Embeddings of strangers instead: one mate among ever more of them.")
    ] = None,
    mode: ModeOption = None,
    score: ScoreOption = None,
    fpir: Annotated[
        list[float] | None, typer.Option(help="FPIR target; may be repeated (default: 1e-1, 1e-2, 1e-3).")
    ] = None,
    max_rank: Annotated[
        int | None, typer.Option(help="Open set: ranks at which a mate counts as found (1).")
    ] = None,
    fmr: Annotated[float | None, typer.Option(help="With --distractors: FMR target (1e-6).")] = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    draws: DrawsOption = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap, or the order of the distractors.")] = 0,
    radius: RadiusOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Search galleries: rank-k and CMC, TPIR at FPIR, for every way to pool and score.

    With --meta the probes of IJB-B or IJB-C are searched in each gallery. With --distractors every image of a
    person (labels of EMBEDDINGS) is searched for among one other image of that person and 10, 100, ...
    strangers.
    """
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import require_matplotlib

    check_json(as_json, json_file)
    if (meta is None) == (distractors is None):
        raise InputError("identification: give exactly one of --meta FOLDER and --distractors FILE")
    if out is not None:
        require_matplotlib()  # before the work, not after
    source = Embeddings.load(embeddings)
    if distractors is not None:
        given = {"mode": mode or None, "fpir": fpir or None, "max_rank": max_rank}
        refuse_given({n: v for n, v in given.items() if v is not None}, "identification", "--meta")
        target = 1e-6 if fmr is None else fmr
        found = _among(source, distractors, score or (), target, radius, seed, threads, out is not None)
    else:
        refuse_given({} if fmr is None else {"fmr": fmr}, "identification", "--distractors")
        found = _in_galleries(
            source, meta or Path(), set_, out is not None, modes=mode or (), scores=score or (),
            radius=radius, draws=draws, seed=seed, threads=threads,
            **({"targets": fpir} if fpir else {}), **({} if max_rank is None else {"max_rank": max_rank}),
        )  # fmt: skip
    title, short, results, sections = found
    written = None if out is None else _write(out, title, results, sections, source)
    if as_json:
        say_json(short, written, json_file)
    say_written(written)


_Found = tuple[str, dict[str, Any], dict[str, Any], "list[Section]"]


def _in_galleries(source: "Embeddings", meta: Path, name: str, page: bool, **options: Any) -> _Found:
    from spherecf.data import read_ijb
    from spherecf.evaluation import (
        evaluate_identification,
        identification_notes,
        identification_section,
        identification_table,
    )

    report = evaluate_identification(source, read_ijb(meta, name), **options)
    show([identification_table(report)], identification_notes(report))
    sections = [identification_section(report)] if page else []
    return f"{report.name}: 1:N identification", report.to_dict(curves=False), report.to_dict(), sections


def _among(
    source: "Embeddings",
    distractors: Path,
    scores: Any,
    fmr: float,
    radius: float | None,
    seed: int,
    threads: int | None,
    page: bool,
) -> _Found:
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import (
        distractor_notes,
        distractor_section,
        distractor_table,
        identify_with_distractors,
    )

    report = identify_with_distractors(
        source, Embeddings.load(distractors), name=distractors.stem, target=fmr, radius=radius, seed=seed,
        threads=threads, **({"scores": scores} if scores else {}),
    )  # fmt: skip
    show([distractor_table(report)], distractor_notes(report))
    sections = [distractor_section(report)] if page else []
    return f"{report.name}: one mate among distractors", report.to_dict(), report.to_dict(), sections


def _write(
    out: Path, title: str, results: dict[str, Any], sections: "list[Section]", source: "Embeddings"
) -> Path:
    from spherecf.common.version import environment
    from spherecf.evaluation import write_report

    facts = {"embeddings": source.provenance, "environment": environment()}
    return write_report(
        out, title=title, sections=sections, results={"identification": results}, provenance=facts
    ).html

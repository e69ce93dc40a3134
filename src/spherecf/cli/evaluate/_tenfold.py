"""`spherecf evaluate tenfold`: pair lists in folds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spherecf.cli._output import folder_to_write
from spherecf.cli.evaluate._faces import Faces
from spherecf.cli.evaluate._groups import EXTRAS, GroupsOption, open_groups
from spherecf.common.progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.data import ImageSource, PairList
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import GroupReport, PairReport, Section, Strip

EXAMPLE = "Example: spherecf evaluate tenfold lfw.safetensors --pairs pairs.txt --faces lfw/ --out report/"
_FACES = 14


def tenfold(
    embeddings: Annotated[Path, typer.Argument(help="From `spherecf embed`: the left (or both) images.")],
    pairs: Annotated[
        Path, typer.Option(help="LFW's pairs.txt, lines `left right 0|1`, CFP's table, or a .bin.")
    ],
    right: Annotated[Path | None, typer.Option(help="Of the right images, e.g. degraded views.")] = None,
    faces: Annotated[Path | None, typer.Option(help="The images, for strips of faces in the report.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report: HTML, Markdown, JSON.", callback=folder_to_write),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on stdout.")] = False,
    draws: Annotated[int, typer.Option(help="Bootstrap draws of people; 0 for no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the random confidence.")] = 0,
    radius: Annotated[float | None, typer.Option(help="r of the score (default: the file's, or 64).")] = None,
    name: Annotated[str, typer.Option(help="Of the pair list (default: from its path).")] = "",
    nearest: Annotated[bool, typer.Option("--nearest", help="Also count TMR as old papers do.")] = False,
    groups: GroupsOption = "",
) -> None:
    """Verify pairs in ten folds: accuracy, TMR at FMR, EER, rejection and EDC, for both scores.

    Prints one line per score, `[lfw][0]Accuracy-Flip: 0.99400+-0.00400`, or JSON. With --right the pairs are
    cross-quality: left images from EMBEDDINGS, right ones from the other file. For degraded/degraded give the
    degraded file alone. Pairs with an image that could not be embedded are counted and left out.
    """
    from spherecf.data import open_pairs, open_source
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import (
        evaluate_pairs,
        nearest_section,
        require_matplotlib,
        rich_table,
        terminal_table,
    )

    if faces is not None and out is None:
        raise InputError("--faces shows pictures in the report, which needs --out FOLDER")
    if out is not None:
        require_matplotlib()  # before the work, not after
    listed = open_pairs(pairs)
    source = None if faces is None else open_source(faces)
    left_file = Embeddings.load(embeddings)
    same = right is None or right.resolve() == embeddings.resolve()
    right_file = left_file if right is None or same else Embeddings.load(right)
    report = evaluate_pairs(
        left_file, right_file, listed.left, listed.right, listed.mated, listed.fold,
        name=name or _list_name(listed, pairs), subjects=listed.subjects, radius=radius,
        seed=seed, draws=draws, nearest=nearest,
        condition=f"{_quality(left_file)}/{_quality(right_file)}", pairs_hash=listed.fingerprint(),
    )  # fmt: skip
    console.print(terminal_table([report]))
    sections = []
    if nearest:
        sections = [nearest_section({s: (r.tmr, r.nearest, r.signature) for s, r in report.scores.items()})]
    grouped = _by_group(groups, left_file, right_file, listed, radius) if groups else {}
    if grouped:
        sections.append(_group_section(grouped, report))
    for section in sections:
        console.print(*map(rich_table, section.tables))
    written = None if out is None else _write(out, report, left_file, right_file, listed, source, sections)
    if as_json:
        files = {} if written is None else {"report": str(written)}
        shares = {"groups": {score: one.to_dict() for score, one in grouped.items()}} if grouped else {}
        typer.echo(json.dumps(report.to_dict(curves=False) | shares | files, indent=2))
    else:
        for line in report.log_lines():
            typer.echo(line)
    console.print(
        f"report: {written}" if written else "no report written; --out FOLDER writes one", markup=False
    )


def _list_name(listed: "PairList", path: Path) -> str:
    """``lfw/pairs.txt`` is called lfw, ``cfp/pairs_FP.txt`` cfp_fp; other lists have their own name."""
    if listed.name.lower().startswith("pairs"):
        return (path.resolve().parent.name + listed.name[len("pairs") :]).lower()
    return listed.name


def _by_group(
    groups: str, left: "Embeddings", right: "Embeddings", listed: "PairList", radius: float | None
) -> "dict[str, GroupReport]":
    """Rates by group for each score."""
    from spherecf.evaluation import pair_groups

    if groups.startswith(EXTRAS) and right is not left:  # one key, two pictures, two values
        raise InputError(f"--groups {groups} is of one file; with --right give a CSV `image,group`")
    return pair_groups(
        left, right, listed.left, listed.right, listed.mated, listed.fold, *open_groups(groups, left),
        subjects=listed.subjects, radius=radius,
    )  # fmt: skip


def _group_section(grouped: "dict[str, GroupReport]", report: "PairReport") -> "Section":
    from spherecf.evaluation import Section, group_table

    tables = [
        group_table(one, f"By group: {score}", report.scores[score].signature)
        for score, one in grouped.items()
    ]
    return Section("By group", tables=tables)


def _quality(embeddings: "Embeddings") -> str:
    view = embeddings.provenance.get("view")
    return "unstated" if view is None else "clean" if str(view).startswith("clean") else "degraded"


def _write(
    out: Path,
    report: "PairReport",
    left: "Embeddings",
    right: "Embeddings",
    listed: "PairList",
    source: "ImageSource | None",
    sections: "list[Section]",
) -> Path:
    from spherecf.common.version import environment
    from spherecf.evaluation import write_report

    strips = [] if source is None else _strips(report, left, right, listed, source)
    provenance = {
        "left": left.provenance,
        "right": right.provenance,
        "pairs": {"name": listed.name, "sha256": listed.fingerprint()},
        "environment": environment(),
    }
    files = write_report(
        out, [report], title=f"{report.name}: ten-fold verification, {report.condition}", strips=strips,
        sections=sections, provenance=provenance,
    )  # fmt: skip
    return files.html


def _strips(
    report: "PairReport", left: "Embeddings", right: "Embeddings", listed: "PairList", source: "ImageSource"
) -> "list[Strip]":
    """Faces of each file from the least to the most sure, then the worst mistakes of the last score."""
    from spherecf.evaluation import strip_by_kappa, strips_of_mistakes

    sides = [("left", left, listed.left), ("right", right, listed.right)]
    if right is left:
        sides = [("left and right", left, [*listed.left, *listed.right])]
    faces = [Faces(side, source, keys) for _, side, keys in sides]
    strips = [
        strip_by_kappa(
            f"{which} ({pictures.signature}): least to most sure", side, pictures,
            keys=[key for key in keys if key in pictures], count=_FACES,
        )
        for (which, side, keys), pictures in zip(sides, faces)
    ]  # fmt: skip
    score = list(report.scores)[-1]
    shown = [m for m in report.mistakes if m.score == score and m.left in faces[0] and m.right in faces[-1]]
    return strips + strips_of_mistakes(shown, faces[0], faces[-1])

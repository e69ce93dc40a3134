"""`spherecf evaluate tenfold`: pair lists in folds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spherecf._progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.data import ImageSource, PairList
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import PairReport, Strip

EXAMPLE = "Example: spherecf evaluate tenfold lfw.safetensors --pairs pairs.txt --faces lfw/ --out report/"
_FACES = 14


def tenfold(
    embeddings: Annotated[Path, typer.Argument(help="From `spherecf embed`: the left (or both) images.")],
    pairs: Annotated[Path, typer.Option(help="LFW's pairs.txt, a table `fold left right mated`, or a .bin.")],
    right: Annotated[Path | None, typer.Option(help="Of the right images, e.g. degraded views.")] = None,
    faces: Annotated[Path | None, typer.Option(help="The images, for strips of faces by kappa.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html and report.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on stdout.")] = False,
    draws: Annotated[int, typer.Option(help="Bootstrap draws of people; 0 for no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the random confidence.")] = 0,
    radius: Annotated[float | None, typer.Option(help="r of the score (default: the file's, or 64).")] = None,
    name: Annotated[str, typer.Option(help="Of the pair list (default: from its path).")] = "",
) -> None:
    """Verify pairs in ten folds: accuracy, TMR at FMR, EER, rejection and EDC, for both scores.

    Prints one line per score, `[lfw][0]Accuracy-Flip: 0.99400+-0.00400`, or JSON. With --right the pairs are
    cross-quality: left images from EMBEDDINGS, right ones from the other file. For degraded/degraded give the
    degraded file alone. Pairs with an image that could not be embedded are counted and left out.
    """
    from spherecf.data import open_pairs, open_source
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import evaluate_pairs, require_matplotlib, terminal_table

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
        seed=seed, draws=draws,
        condition=f"{_quality(left_file)}/{_quality(right_file)}", pairs_hash=listed.fingerprint(),
    )  # fmt: skip
    console.print(terminal_table([report]))
    written = None if out is None else _write(out, report, left_file, right_file, listed, source)
    if as_json:
        files = {} if written is None else {"report": str(written)}
        typer.echo(json.dumps(report.to_dict(curves=False) | files, indent=2))
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
) -> Path:
    from spherecf._version import environment
    from spherecf.evaluation import write_report

    sides = [("left and right", left, [*listed.left, *listed.right])]
    if right is not left:
        sides = [("left", left, listed.left), ("right", right, listed.right)]
    strips = [] if source is None else [_strip(which, side, keys, source) for which, side, keys in sides]
    provenance = {
        "left": left.provenance,
        "right": right.provenance,
        "pairs": {"name": listed.name, "sha256": listed.fingerprint()},
        "environment": environment(),
    }
    files = write_report(
        out, [report], title=f"{report.name}: ten-fold verification, {report.condition}", strips=strips,
        provenance=provenance,
    )  # fmt: skip
    return files.html


def _strip(which: str, side: "Embeddings", keys: list[str], source: "ImageSource") -> "Strip":
    """Faces of one file as the recogniser saw them: aligned and degraded again as it was made."""
    from spherecf.data import View, encode_image
    from spherecf.evaluation import strip_by_kappa

    if side.provenance.get("alignment", "as-given") != "as-given":
        from spherecf.faces import AlignedFaces

        source = AlignedFaces(source)
    signature = str(side.provenance.get("view", "clean"))
    try:
        view = View.from_signature(signature)
    except InputError as error:
        raise InputError(f"{error}; leave out --faces") from error
    index = {key: row for row, key in enumerate(source.keys)}
    if not set(keys) & set(index):
        raise InputError(
            f"--faces: none of the {len(set(keys))} images of the pairs is in {source.name}, whose keys look "
            f"like {', '.join(source.keys[:2])}; give the source that was embedded"
        )

    def picture(key: str) -> bytes:
        return encode_image(view(source.image(index[key]), key).image)

    shown = [key for key in keys if key in index]
    return strip_by_kappa(
        f"{which} ({signature}): least to most sure", side, picture, keys=shown, count=_FACES
    )

"""`spherecf evaluate`: protocols over embeddings files."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spherecf.cli.output import file_to_write, folder_to_write
from spherecf.common.progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.data import ImageSource, PairList
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import (
        CalibrationReport,
        GroupReport,
        PairReport,
        RejectionReport,
        TemplateReport,
    )
    from spherecf.report import Section, Strip, Table


class Faces:
    """Encoded pictures by key, aligned and degraded again as the embeddings were made.

    Args:
        embeddings: say by their provenance how their images were aligned and degraded.
        source: the images.
        keys: those that will be asked for; some may be absent from the source.

    Raises:
        InputError: none of the keys is in the source, or the view cannot be made again.
    """

    def __init__(self, embeddings: "Embeddings", source: "ImageSource", keys: Collection[str]) -> None:
        from spherecf.data import View

        if embeddings.provenance.get("alignment", "as-given") != "as-given":
            from spherecf.faces import AlignedFaces

            source = AlignedFaces(source)
        self.signature = str(embeddings.provenance.get("view", "clean"))
        try:
            self._view = View.from_signature(self.signature)
        except InputError as error:
            raise InputError(f"{error}; leave out --faces") from error
        self._source = source
        self._index = {key: row for row, key in enumerate(source.keys)}
        if not set(keys) & set(self._index):
            raise InputError(
                f"--faces: none of the {len(set(keys))} images to show is in {source.name}, whose keys look "
                f"like {', '.join(source.keys[:2])}; give the source that was embedded"
            )

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __call__(self, key: str) -> bytes:
        """The picture of a key."""
        from spherecf.data import encode_image

        return encode_image(self._view(self._source.image(self._index[key]), key).image)


GroupsOption = Annotated[
    str,
    typer.Option(
        help="CSV `image,group`, `subject,group` or `template,group`, or extras:NAME: rates by group."
    ),
]
EXTRAS = "extras:"


def open_groups(given: str, embeddings: "Embeddings") -> tuple[dict[str, str], str]:
    """(name to group, what the names are of) from a file, or from a column of the embeddings."""
    from spherecf.data import read_groups
    from spherecf.evaluation import extra_groups

    if given.startswith(EXTRAS):
        return extra_groups(embeddings, given.removeprefix(EXTRAS)), "image"
    found = read_groups(Path(given))
    return found.groups, found.of


_TENFOLD_EXAMPLE = (
    "Example: spherecf evaluate tenfold lfw.safetensors --pairs pairs.txt --faces lfw/ --out report/"
)
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
    from spherecf.evaluation import PairOptions, evaluate_pairs
    from spherecf.report import nearest_section, require_matplotlib, rich_table, terminal_table

    if faces is not None and out is None:
        raise InputError("--faces shows pictures in the report, which needs --out FOLDER")
    if out is not None:
        require_matplotlib()  # before the work, not after
    listed = open_pairs(pairs)
    named = replace(listed, name=name or _list_name(listed, pairs))
    source = None if faces is None else open_source(faces)
    left_file = Embeddings.load(embeddings)
    same = right is None or right.resolve() == embeddings.resolve()
    right_file = left_file if right is None or same else Embeddings.load(right)
    options = PairOptions(radius=radius, draws=draws, seed=seed, nearest=nearest)
    condition = f"{_quality(left_file)}/{_quality(right_file)}"
    report = evaluate_pairs(left_file, right_file, named, options, condition=condition)
    console.print(terminal_table([report]))
    sections = []
    if nearest:
        sections = [nearest_section({s: (r.tmr, r.nearest, r.signature) for s, r in report.scores.items()})]
    grouped = _by_group(groups, left_file, right_file, listed, radius) if groups else {}
    if grouped:
        sections.append(_group_section(grouped, report))
    for section in sections:
        console.print(*map(rich_table, section.tables))
    written = (
        None if out is None else _write_tenfold(out, report, left_file, right_file, listed, source, sections)
    )
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
    from spherecf.evaluation import PairOptions, pair_groups

    if groups.startswith(EXTRAS) and right is not left:  # one key, two pictures, two values
        raise InputError(f"--groups {groups} is of one file; with --right give a CSV `image,group`")
    return pair_groups(left, right, listed, *open_groups(groups, left), PairOptions(radius=radius))


def _group_section(grouped: "dict[str, GroupReport]", report: "PairReport") -> "Section":
    from spherecf.report import Section, group_table

    tables = [
        group_table(one, f"By group: {score}", report.scores[score].signature)
        for score, one in grouped.items()
    ]
    return Section("By group", tables=tables)


def _quality(embeddings: "Embeddings") -> str:
    view = embeddings.provenance.get("view")
    return "unstated" if view is None else "clean" if str(view).startswith("clean") else "degraded"


def _write_tenfold(
    out: Path,
    report: "PairReport",
    left: "Embeddings",
    right: "Embeddings",
    listed: "PairList",
    source: "ImageSource | None",
    sections: "list[Section]",
) -> Path:
    from spherecf.common.version import environment
    from spherecf.report import write_report

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
    from spherecf.report import strip_by_kappa, strips_of_mistakes

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


_CALIBRATION_EXAMPLE = (
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
    from spherecf.evaluation import CalibrationOptions, evaluate_calibration
    from spherecf.report import calibration_section, require_matplotlib, rich_table

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
    options = CalibrationOptions(
        radius=radius, scores=("cosine", "mls") if score == "both" else (score,), confidence=confidence,
        method="isotonic" if method == "isotonic" else "logistic", alpha=alpha, delta=delta,
        disjoint=disjoint, draws=draws, seed=seed,
    )  # fmt: skip
    condition = "+".join(dict.fromkeys(map(_view, (left_file, right_file))))
    listed = replace(listed, name=_list_name(listed, pairs))
    report = evaluate_calibration(left_file, right_file, listed, options, condition=condition)
    for table in calibration_section(report, plots=False).tables:
        console.print(rich_table(table))
    files = {}
    if model is not None and save is not None:
        files["model"] = str(_save(report, model, save, backbone))
        console.print(f"model with its calibration: {save}", markup=False)
    if out is not None:
        files["report"] = str(_write_calibration(out, report))
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


def _write_calibration(out: Path, report: "CalibrationReport") -> Path:
    from spherecf.common.version import environment
    from spherecf.report import calibration_section, write_report

    section = calibration_section(report)
    return write_report(
        out, title=section.title, sections=[section], results={"calibration": report.to_dict()},
        provenance={"made": dict(report.calibration.record), "environment": environment()},
    ).html  # fmt: skip


_IJB_EXAMPLE = "Example: spherecf evaluate ijb ijbc.safetensors --meta IJBC/ --set ijbc --out report/"
_SINGULAR = {"galleries": "gallery", "fpirs": "fpir"}

MetaOption = Annotated[Path, typer.Option(help="Folder of the meta files, or the one above it.")]
SetOption = Annotated[str, typer.Option("--set", help="ijbb or ijbc: how the files' names start.")]
ModeOption = Annotated[
    list[str] | None,
    typer.Option(help="N0D0F1K1 and the like, or precision; may be repeated (default: all side by side)."),
]
ScoreOption = Annotated[
    list[str] | None, typer.Option(help="cosine, mls or pfe; may be repeated (default: those of the mode).")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder of the report: HTML, Markdown, JSON.", callback=folder_to_write)
]
JsonOption = Annotated[bool, typer.Option("--json", help="The numbers as JSON, on stdout or in a file.")]
JsonFile = Annotated[
    Path | None,
    typer.Argument(metavar="JSON_FILE", help="Behind --json: the file to write.", callback=file_to_write),
]
DrawsOption = Annotated[int, typer.Option(help="Bootstrap draws of people; 0 for no intervals.")]
ThreadsOption = Annotated[int | None, typer.Option(help="Of the scoring; changes no number.")]
RadiusOption = Annotated[float | None, typer.Option(help="r of the score (default: the file's, or 64).")]


def ijb(
    embeddings: Annotated[Path, typer.Argument(help="From `spherecf embed` or `spherecf data import`.")],
    meta: MetaOption,
    json_file: JsonFile = None,
    set_: SetOption = "ijbc",
    mode: ModeOption = None,
    score: ScoreOption = None,
    fmr: Annotated[
        list[float] | None, typer.Option(help="FMR target; may be repeated (default: 1e-1 .. 1e-6).")
    ] = None,
    groups: GroupsOption = "",
    out: OutOption = None,
    as_json: JsonOption = False,
    draws: DrawsOption = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    radius: RadiusOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Verify the template pairs of IJB-B or IJB-C: TMR at FMR, EER and DET, for every way to pool and score.

    Prints one line per row and target, `[ijbc][N0D0F1K1:mls]TAR@FAR<=0.0001: 0.96220`, or JSON. Images that
    could not be embedded are counted, and pairs of a template without any image are left out.
    """
    from spherecf.data import read_ijb
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import evaluate_ijb
    from spherecf.report import ijb_section, require_matplotlib

    check_json(as_json, json_file)
    if out is not None:
        require_matplotlib()  # before the work, not after
    source, templates = Embeddings.load(embeddings), read_ijb(meta, set_)
    named = None
    if groups:
        from spherecf.evaluation import template_groups

        named = template_groups(templates, *open_groups(groups, source))
    report = evaluate_ijb(
        source, templates, modes=mode or (), scores=score or (), draws=draws, seed=seed, radius=radius,
        threads=threads, groups=named, **({"targets": fmr} if fmr else {}),
    )  # fmt: skip
    show(ijb_section(report, plots=False))
    written = None if out is None else _write_ijb(out, report, source, templates.fingerprint())
    if as_json:
        say_json(report.to_dict(curves=False), written, json_file)
    else:
        for line in log_lines(report):
            typer.echo(line)
    say_written(written)


def log_lines(report: "TemplateReport") -> list[str]:
    """One line per row and resolved target."""
    return [
        f"[{report.name}][{result.mode}:{result.score}]TAR@FAR<={entry.target:g}: {entry.tmr:.5f}"
        for result in report.results
        for entry in result.tmr
        if entry.tmr is not None
    ]


def show(section: "Section") -> None:
    """Print the tables and notes of a section on stderr."""
    from spherecf.report import rich_table

    console.print(*map(rich_table, section.tables))
    for note in section.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def refuse_given(given: Iterable[str], verb: str, other: str) -> None:
    """Options without effect in this kind of run are a mistake of the user's, and told."""
    flags = [f"--{_SINGULAR.get(name, name).replace('_', '-')}" for name in given]
    if flags:
        verbs = "goes" if len(flags) == 1 else "go"
        raise InputError(f"{verb}: {' and '.join(flags)} {verbs} with {other}, and would have no effect here")


def check_json(as_json: bool, json_file: Path | None) -> None:
    """A file name without --json is a mistake, told before the work."""
    if json_file is not None and not as_json:
        raise InputError(f"what is {json_file} for? `--json {json_file}` writes the numbers there")


def say_json(numbers: dict[str, Any], written: Path | None, json_file: Path | None) -> None:
    """JSON on stdout, or in a file, whole or not at all."""
    from spherecf.common.files import write_atomically

    text = json.dumps(numbers | ({} if written is None else {"report": str(written)}), indent=2)
    if json_file is None:
        typer.echo(text)
    else:
        write_atomically(json_file, lambda stream: stream.write(f"{text}\n".encode()))


def say_written(written: Path | None) -> None:
    """Where the report is, for people."""
    console.print(
        f"report: {written}" if written else "no report written; --out FOLDER writes one", markup=False
    )


def _write_ijb(out: Path, report: "TemplateReport", source: "Embeddings", meta: str) -> Path:
    from spherecf.common.version import environment
    from spherecf.report import ijb_section, write_report

    return write_report(
        out, title=f"{report.name}: 1:1 verification of templates", sections=[ijb_section(report)],
        results={"ijb": report.to_dict()},
        provenance={"embeddings": source.provenance, "meta": meta, "environment": environment()},
    ).html  # fmt: skip


_IDENTIFICATION_EXAMPLE = (
    "Example: spherecf evaluate identification ijbc.safetensors --meta IJBC/ --set ijbc --out report/"
)


def identification(
    embeddings: Annotated[Path, typer.Argument(help="From `spherecf embed` or `spherecf data import`.")],
    meta: MetaOption,
    json_file: JsonFile = None,
    set_: SetOption = "ijbc",
    mode: ModeOption = None,
    score: ScoreOption = None,
    fpir: Annotated[
        list[float] | None, typer.Option(help="FPIR target; may be repeated (default: 1e-1, 1e-2, 1e-3).")
    ] = None,
    max_rank: Annotated[int, typer.Option(help="Open set: ranks at which a mate counts as found.")] = 1,
    out: OutOption = None,
    as_json: JsonOption = False,
    draws: DrawsOption = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    radius: RadiusOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Search galleries: rank-k and CMC, TPIR at FPIR, for every way to pool and score."""
    from spherecf.data import read_ijb
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import evaluate_identification
    from spherecf.report import (
        identification_section,
        require_matplotlib,
    )

    check_json(as_json, json_file)
    if out is not None:
        require_matplotlib()  # before the work, not after
    source = Embeddings.load(embeddings)
    report = evaluate_identification(
        source, read_ijb(meta, set_), modes=mode or (), scores=score or (), max_rank=max_rank, radius=radius,
        draws=draws, seed=seed, threads=threads, **({"targets": fpir} if fpir else {}),
    )  # fmt: skip
    show(identification_section(report, plots=False))
    written = None
    if out is not None:
        title, sections = f"{report.name}: 1:N identification", [identification_section(report)]
        written = _write_identification(out, title, report.to_dict(), sections, source)
    if as_json:
        say_json(report.to_dict(curves=False), written, json_file)
    say_written(written)


def _write_identification(
    out: Path, title: str, results: dict[str, Any], sections: "list[Section]", source: "Embeddings"
) -> Path:
    from spherecf.common.version import environment
    from spherecf.report import write_report

    facts = {"embeddings": source.provenance, "environment": environment()}
    return write_report(
        out, title=title, sections=sections, results={"identification": results}, provenance=facts
    ).html


_REJECTION_EXAMPLE = (
    "Example: spherecf evaluate rejection ijbc.safetensors --meta IJBC/ --set ijbc --out report/"
)
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
    from spherecf.report import require_matplotlib

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
        shown, results, written = _of_pairs(embeddings, right, pairs, out, draws, seed)
    else:
        from spherecf.data import read_ijb
        from spherecf.embeddings import Embeddings
        from spherecf.evaluation import RejectionOptions, evaluate_template_rejection

        if right is not None:
            raise InputError("rejection: --right goes with --pairs")
        source = Embeddings.load(embeddings)
        how = {name: given.pop(name) for name in ("mode", "galleries") if name in given}
        reports = evaluate_template_rejection(
            source, read_ijb(meta or Path(), set_), RejectionOptions(draws=draws, seed=seed, **given), **how
        )
        shown, results, written = _of_galleries(reports, set_, out, source.provenance)
    show(shown)
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
) -> tuple["Section", dict[str, Any], Path | None]:
    from spherecf.common.version import environment
    from spherecf.report import Section, mean_prr_table, rejection_section, write_report

    found = [(report.name, rejection_section(report, plots=False)) for report in reports.values()]
    notes = [f"{gallery}: {note}" for gallery, section in found for note in section.notes]
    tables = [table for _, section in found for table in section.tables]
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
    return Section(name, notes, [*tables, *summary]), results, written


def _of_pairs(
    left: Path, right: Path | None, pairs: Path, out: Path | None, draws: int, seed: int
) -> tuple["Section", dict[str, Any], Path | None]:
    from spherecf.data import open_pairs
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import PairOptions, evaluate_pairs
    from spherecf.report import Section, pair_rejection_tables

    listed = open_pairs(pairs)
    one = Embeddings.load(left)
    other = one if right is None or right.resolve() == left.resolve() else Embeddings.load(right)
    options = PairOptions(confidences=_PAIR_CONFIDENCES, draws=draws, seed=seed)
    condition = "given" if other is one else "left/right"
    report = evaluate_pairs(one, other, listed, options, condition=condition)
    tables = pair_rejection_tables(report)
    written = None if out is None else _write_rejection(out, report, tables)
    return Section(report.name, tables=tables), report.to_dict(), written


def _write_rejection(out: Path, report: "PairReport", tables: Sequence["Table"]) -> Path:
    from spherecf.common.version import environment
    from spherecf.report import write_report

    title = f"{report.name}: what rejecting by confidence buys"
    return write_report(
        out, [report], title=title, tables=tables, provenance={"environment": environment()}
    ).html


app = typer.Typer(help="Evaluate embeddings by the protocols of the field.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


app.command("tenfold", epilog=_TENFOLD_EXAMPLE)(tenfold)
app.command("rejection", epilog=_REJECTION_EXAMPLE)(rejection)
app.command("calibration", epilog=_CALIBRATION_EXAMPLE)(calibration)
app.command("ijb", epilog=_IJB_EXAMPLE)(ijb)
app.command("identification", epilog=_IDENTIFICATION_EXAMPLE)(identification)

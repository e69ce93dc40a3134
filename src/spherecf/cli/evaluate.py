"""`spherecf evaluate`: evaluation protocols over embeddings files."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from spherecf.cli.options import BackboneOfModel, Draws, IjbSet, file_to_write, folder_to_write, print_text
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
    from spherecf.report import Section, Strip

app = typer.Typer(help="Evaluate embeddings with the protocols of the field.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


def report_folder(path: Path | None) -> Path | None:
    """Callback of --out: fail before the work if the report could not be written after it."""
    if path is not None:
        from spherecf.report import require_matplotlib

        folder_to_write(path)
        require_matplotlib()
    return path


LeftFile = Annotated[
    Path, typer.Argument(help="Embeddings of the left (or of all) images, from `spherecf embed`.")
]
PairsFile = Annotated[
    Path, typer.Option(help="Pair list: LFW's pairs.txt, lines `left right 0|1`, CFP's table, or a .bin.")
]
RightFile = Annotated[
    Path | None, typer.Option(help="Embeddings of the right images, e.g. of degraded views.")
]
TemplateFile = Annotated[
    Path, typer.Argument(help="Embeddings file, from `spherecf embed` or `spherecf data import`.")
]
MetaFolder = Annotated[Path, typer.Option(help="Folder of the meta files, or its parent folder.")]
Modes = Annotated[
    list[str] | None,
    typer.Option(help="Pooling: a code such as N0D0F1K1, or precision; may be repeated (default: all)."),
]
Scores = Annotated[
    list[str] | None,
    typer.Option(help="cosine, mls or pfe; may be repeated (default: those that suit the mode)."),
]
Groups = Annotated[
    str,
    typer.Option(
        help="Also report by group: CSV `image,group`, `subject,group` or `template,group`, or extras:NAME."
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(help="Write a report (HTML, Markdown, JSON) to this folder.", callback=report_folder),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]
AsJsonOrFile = Annotated[
    bool, typer.Option("--json", help="Write the results as JSON, to stdout or to JSON_FILE.")
]
JsonFile = Annotated[
    Path | None,
    typer.Argument(metavar="JSON_FILE", help="With --json: the file to write.", callback=file_to_write),
]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap and all other random choices.")]
Threads = Annotated[int | None, typer.Option(help="Threads for scoring; the results do not depend on it.")]
Radius = Annotated[float | None, typer.Option(help="Radius r of the score (default: the file's, or 64).")]


class PairFiles(NamedTuple):
    """A pair list and the embeddings of its left and right images, one object if they are one file."""

    pairs: "PairList"
    left: "Embeddings"
    right: "Embeddings"

    @classmethod
    def open(cls, pairs: Path, left: Path, right: Path | None) -> "PairFiles":
        """Read the files; one that is given twice is read once."""
        from spherecf.data import open_pairs
        from spherecf.embeddings import Embeddings

        listed, left_file = open_pairs(pairs), Embeddings.load(left)
        same = right is None or right.resolve() == left.resolve()
        return cls(listed, left_file, left_file if right is None or same else Embeddings.load(right))


class FaceImages:
    """Encoded pictures by key, aligned and degraded in the same way as for the embeddings.

    Args:
        embeddings: their provenance states how the images were aligned and degraded.
        source: the images.
        keys: keys that will be requested; some may be missing in the source.

    Raises:
        InputError: none of the keys is in the source, or the view cannot be reconstructed.
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
        """The encoded picture of a key."""
        from spherecf.data import encode_image

        return encode_image(self._view(self._source.image(self._index[key]), key).image)


EXTRAS = "extras:"


def open_groups(given: str, embeddings: "Embeddings") -> tuple[dict[str, str], str]:
    """(group by name, kind of name) from a CSV file, or from a column of the embeddings."""
    from spherecf.data import read_groups
    from spherecf.evaluation import extra_groups

    if given.startswith(EXTRAS):
        return extra_groups(embeddings, given.removeprefix(EXTRAS)), "image"
    table = read_groups(Path(given))
    return table.groups, table.of


def show(section: "Section") -> None:
    """Print the tables and notes of a section on stderr."""
    from spherecf.report import rich_table

    console.print(*map(rich_table, section.tables))
    for note in section.notes:
        print_text(note)


def write_page(out: Path | None, reports: "Sequence[PairReport]" = (), **parts: Any) -> Path | None:
    """Write a report to the folder of --out, if there is one, with the environment in its provenance."""
    if out is None:
        return None
    from spherecf.common.version import environment
    from spherecf.report import write_report

    provenance = {**parts.pop("provenance", {}), "environment": environment()}
    return write_report(out, reports, provenance=provenance, **parts).html


def print_json(results: dict[str, Any], written: Path | None, json_file: Path | None = None) -> None:
    """Write JSON to stdout, or completely or not at all to a file."""
    from spherecf.common.files import write_atomically

    text = json.dumps(results | ({} if written is None else {"report": str(written)}), indent=2)
    if json_file is None:
        typer.echo(text)
    else:
        write_atomically(json_file, lambda stream: stream.write(f"{text}\n".encode()))


def print_written(written: Path | None) -> None:
    """Print on stderr where the report is."""
    print_text(f"report: {written}" if written else "no report written (use --out FOLDER to write one)")


def check_json(as_json: bool, json_file: Path | None) -> None:
    """Refuse a JSON_FILE without --json before the work begins."""
    if json_file is not None and not as_json:
        raise InputError(
            f"unexpected argument {json_file}; to write the results there, use --json {json_file}"
        )


_FACES = 14


@app.command(
    epilog="Example: spherecf evaluate tenfold lfw.safetensors --pairs pairs.txt --faces lfw/ --out report/"
)
def tenfold(
    embeddings: LeftFile,
    pairs: PairsFile,
    right: RightFile = None,
    faces: Annotated[
        Path | None, typer.Option(help="The embedded images, to show faces in the report.")
    ] = None,
    out: OutFolder = None,
    as_json: AsJson = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    radius: Radius = None,
    name: Annotated[str, typer.Option(help="Name of the pair list (default: from its path).")] = "",
    nearest: Annotated[
        bool, typer.Option("--nearest", help="Also report TMR at the nearest threshold, as older papers do.")
    ] = False,
    groups: Groups = "",
) -> None:
    """Verify pairs in ten folds: accuracy, TMR at FMR, EER, rejection and EDC, for both scores.

    Prints one line per score, `[lfw][0]Accuracy-Flip: 0.99400+-0.00400`, or JSON. With --right the left
    images come from EMBEDDINGS and the right ones from the other file (cross-quality); to compare degraded
    with degraded images, give only the degraded file. Pairs with an image that was not embedded are skipped
    and counted.
    """
    from spherecf.data import open_source
    from spherecf.evaluation import PairOptions, evaluate_pairs
    from spherecf.report import nearest_section, terminal_table

    if faces is not None and out is None:
        raise InputError("--faces needs --out FOLDER, since faces are shown in the report")
    source = None if faces is None else open_source(faces)
    files = PairFiles.open(pairs, embeddings, right)
    listed = files.pairs
    report = evaluate_pairs(
        files.left, files.right, replace(listed, name=name or _list_name(listed, pairs)),
        PairOptions(radius=radius, draws=draws, seed=seed, nearest=nearest),
        condition=f"{_quality(files.left)}/{_quality(files.right)}",
    )  # fmt: skip
    console.print(terminal_table([report]))
    sections = []
    if nearest:
        sections = [nearest_section({s: (r.tmr, r.nearest, r.signature) for s, r in report.scores.items()})]
    grouped = _by_group(groups, files, radius) if groups else {}
    if grouped:
        sections.append(_group_section(grouped, report))
    for section in sections:
        show(section)
    written = write_page(
        out, [report], title=f"{report.name}: ten-fold verification, {report.condition}", sections=sections,
        strips=[] if source is None else _strips(report, files, source),
        provenance={
            "left": files.left.provenance, "right": files.right.provenance,
            "pairs": {"name": listed.name, "sha256": listed.fingerprint()},
        },
    )  # fmt: skip
    if as_json:
        by_group = {"groups": {score: one.to_dict() for score, one in grouped.items()}} if grouped else {}
        print_json(report.to_dict(curves=False) | by_group, written)
    else:
        for line in report.log_lines():
            typer.echo(line)
    print_written(written)


def _list_name(listed: "PairList", path: Path) -> str:
    """``lfw/pairs.txt`` is called lfw, ``cfp/pairs_FP.txt`` cfp_fp; other lists keep their own name."""
    if listed.name.lower().startswith("pairs"):
        return (path.resolve().parent.name + listed.name[len("pairs") :]).lower()
    return listed.name


def _by_group(groups: str, files: PairFiles, radius: float | None) -> "dict[str, GroupReport]":
    """Rates by group for each score."""
    from spherecf.evaluation import PairOptions, pair_groups

    # With two files one key names two pictures, which may be in different groups.
    if groups.startswith(EXTRAS) and files.right is not files.left:
        raise InputError(f"--groups {groups} needs a single file; with --right use a CSV `image,group`")
    given = open_groups(groups, files.left)
    return pair_groups(files.left, files.right, files.pairs, *given, PairOptions(radius=radius))


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


def _strips(report: "PairReport", files: PairFiles, source: "ImageSource") -> "list[Strip]":
    """Faces of each file by increasing kappa, then the worst mistakes of the last score."""
    from spherecf.report import strip_by_kappa, strips_of_mistakes

    listed = files.pairs
    sides = [("left", files.left, listed.left), ("right", files.right, listed.right)]
    if files.right is files.left:
        sides = [("left and right", files.left, [*listed.left, *listed.right])]
    faces = [FaceImages(side, source, keys) for _, side, keys in sides]
    strips = [
        strip_by_kappa(
            f"{which} ({pictures.signature}): by increasing kappa", side, pictures,
            keys=[key for key in keys if key in pictures], count=_FACES,
        )
        for (which, side, keys), pictures in zip(sides, faces)
    ]  # fmt: skip
    score = list(report.scores)[-1]
    shown = [m for m in report.mistakes if m.score == score and m.left in faces[0] and m.right in faces[-1]]
    return strips + strips_of_mistakes(shown, faces[0], faces[-1])


_SCORES = {"both": ("cosine", "mls"), "evidence": ("cosine", "mls", "evidence")}


@app.command(
    epilog="Example: spherecf evaluate calibration lfw.safetensors --pairs pairs.txt "
    "--model head.safetensors --save calibrated.safetensors"
)
def calibration(
    embeddings: LeftFile,
    pairs: PairsFile,
    right: RightFile = None,
    score: Annotated[
        str, typer.Option(help="Score to calibrate: cosine, mls, both, or evidence (both, and both kappas).")
    ] = "both",
    confidence: Annotated[
        str, typer.Option(help="Confidence of the decisions: kappa, or an extra column such as norm.")
    ] = "kappa",
    method: Annotated[str, typer.Option(help="Calibrator to save: logistic or isotonic.")] = "logistic",
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="Bound on the error rate of decisions, 0.01 if not given; may be repeated."),
    ] = None,
    delta: Annotated[float, typer.Option(help="Probability that the bound fails.")] = 0.05,
    disjoint: Annotated[
        bool, typer.Option("--disjoint", help="Test on pairs of which no two share a person.")
    ] = False,
    model: Annotated[Path | None, typer.Option(help="The model that made the embeddings.")] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the model with this calibration to this file.", callback=file_to_write),
    ] = None,
    backbone: BackboneOfModel = None,
    out: OutFolder = None,
    as_json: AsJson = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    radius: Radius = None,
) -> None:
    """Calibrate scores on half of the people and evaluate the calibration on the other half.

    It turns scores into log-likelihood ratios (Cllr, reliability), FMR targets into thresholds with
    intervals, and finds decision rules with guaranteed error rates and a reject option. With --model and
    --save the model is written with its calibration.
    """
    from spherecf.evaluation import CalibrationOptions, evaluate_calibration
    from spherecf.report import calibration_section

    if (model is None) != (save is None):
        raise InputError("calibration: --model MODEL and --save OUT must be given together")
    if method not in ("logistic", "isotonic"):
        raise InputError(f"--method: expected logistic or isotonic, got {method}")
    files = PairFiles.open(pairs, embeddings, right)
    views = [str(side.provenance.get("view", "unstated")) for side in (files.left, files.right)]
    options = CalibrationOptions(
        radius=radius, scores=_SCORES.get(score, (score,)), confidence=confidence,
        method="isotonic" if method == "isotonic" else "logistic", alpha=alpha or 0.01, delta=delta,
        disjoint=disjoint, draws=draws, seed=seed,
    )  # fmt: skip
    report = evaluate_calibration(
        files.left, files.right, replace(files.pairs, name=_list_name(files.pairs, pairs)), options,
        condition="+".join(dict.fromkeys(views)),
    )  # fmt: skip
    section = calibration_section(report, plots=out is not None)
    show(replace(section, notes=[]))
    saved = {}
    if model is not None and save is not None:
        saved = {"model": str(_save(report, model, save, backbone))}
        print_text(f"model with its calibration: {save}")
    written = write_page(
        out, title=section.title, sections=[section], results={"calibration": report.to_dict()},
        provenance={"made": dict(report.calibration.record)},
    )  # fmt: skip
    if as_json:
        print_json(report.to_dict(curves=False) | saved, written)
    print_written(written)


def _save(report: "CalibrationReport", model: Path, save: Path, backbone: Path | None) -> Path:
    from spherecf.models import load

    if not report.calibration.model:
        raise InputError(
            "--save: these embeddings do not state which model made them (no `model` in their provenance); "
            "embed the images with `spherecf embed MODEL ...`"
        )
    return load(model, backbone).with_calibration(report.calibration).save(save)


@app.command(epilog="Example: spherecf evaluate ijb ijbc.safetensors --meta IJBC/ --set ijbc --out report/")
def ijb(
    embeddings: TemplateFile,
    meta: MetaFolder,
    json_file: JsonFile = None,
    set_: IjbSet = "ijbc",
    mode: Modes = None,
    score: Scores = None,
    fmr: Annotated[
        list[float] | None, typer.Option(help="FMR target; may be repeated (default: 1e-1 .. 1e-6).")
    ] = None,
    groups: Groups = "",
    out: OutFolder = None,
    as_json: AsJsonOrFile = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    radius: Radius = None,
    threads: Threads = None,
) -> None:
    """Verify the template pairs of IJB-B or IJB-C: TMR at FMR, EER and DET, for every pooling and score.

    Prints one line per result and target, `[ijbc][N0D0F1K1:mls]TAR@FAR<=0.0001: 0.96220`, or JSON. Images
    that were not embedded are counted, and pairs with an empty template are skipped.
    """
    from spherecf.data import read_ijb
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import TemplateOptions, evaluate_ijb, template_groups
    from spherecf.report import ijb_section

    check_json(as_json, json_file)
    source, templates = Embeddings.load(embeddings), read_ijb(meta, set_)
    report = evaluate_ijb(
        source,
        templates,
        TemplateOptions(mode or (), score or (), fmr or (), radius, draws, seed, threads),
        groups=template_groups(templates, *open_groups(groups, source)) if groups else None,
    )
    section = ijb_section(report, plots=out is not None)
    show(section)
    written = write_page(
        out, title=f"{report.name}: 1:1 verification of templates", sections=[section],
        results={"ijb": report.to_dict()},
        provenance={"embeddings": source.provenance, "meta": templates.fingerprint()},
    )  # fmt: skip
    if as_json:
        print_json(report.to_dict(curves=False), written, json_file)
    else:
        for line in log_lines(report):
            typer.echo(line)
    print_written(written)


def log_lines(report: "TemplateReport") -> list[str]:
    """One line per result and resolved target."""
    return [
        f"[{report.name}][{result.mode}:{result.score}]TAR@FAR<={entry.target:g}: {entry.tmr:.5f}"
        for result in report.results
        for entry in result.tmr
        if entry.tmr is not None
    ]


@app.command(
    epilog="Example: spherecf evaluate identification ijbc.safetensors --meta IJBC/ --set ijbc --out report/"
)
def identification(
    embeddings: TemplateFile,
    meta: MetaFolder,
    json_file: JsonFile = None,
    set_: IjbSet = "ijbc",
    mode: Modes = None,
    score: Scores = None,
    fpir: Annotated[
        list[float] | None, typer.Option(help="FPIR target; may be repeated (default: 1e-1, 1e-2, 1e-3).")
    ] = None,
    max_rank: Annotated[
        int, typer.Option(help="Open set: highest rank at which a mate counts as found.")
    ] = 1,
    out: OutFolder = None,
    as_json: AsJsonOrFile = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    radius: Radius = None,
    threads: Threads = None,
) -> None:
    """Search galleries: rank-k and CMC, TPIR at FPIR, for every pooling and score."""
    from spherecf.data import read_ijb
    from spherecf.embeddings import Embeddings
    from spherecf.evaluation import TemplateOptions, evaluate_identification
    from spherecf.report import identification_section

    check_json(as_json, json_file)
    source = Embeddings.load(embeddings)
    report = evaluate_identification(
        source,
        read_ijb(meta, set_),
        TemplateOptions(mode or (), score or (), fpir or (), radius, draws, seed, threads),
        max_rank=max_rank,
    )
    section = identification_section(report, plots=out is not None)
    show(section)
    written = write_page(
        out, title=f"{report.name}: 1:N identification", sections=[section],
        results={"identification": report.to_dict()}, provenance={"embeddings": source.provenance},
    )  # fmt: skip
    if as_json:
        print_json(report.to_dict(curves=False), written, json_file)
    print_written(written)


_PAIR_CONFIDENCES = (
    "kappa", "mean_resultant", "norm", "precision", "detector_score", "sharpness", "random", "oracle",
)  # fmt: skip


@app.command(
    epilog="Example: spherecf evaluate rejection ijbc.safetensors --meta IJBC/ --set ijbc --out report/"
)
def rejection(
    embeddings: TemplateFile,
    json_file: JsonFile = None,
    meta: Annotated[
        Path | None, typer.Option(help="Evaluate open-set search: folder of IJB's meta files.")
    ] = None,
    set_: IjbSet = "ijbc",
    pairs: Annotated[Path | None, typer.Option(help="Evaluate verification (TMR, EDC): a pair list.")] = None,
    right: Annotated[Path | None, typer.Option(help="With --pairs: embeddings of the right images.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="Pooling of the templates (default: K1); see docs/ijb.md.")
    ] = None,
    gallery: Annotated[
        list[str] | None, typer.Option(help="Gallery to search; may be repeated (default: all).")
    ] = None,
    fpir: Annotated[
        list[float] | None, typer.Option(help="FPIR target; may be repeated (default: 0.05, 0.1, 0.2).")
    ] = None,
    kappa_gallery: Annotated[
        str | None,
        typer.Option(help="Concentration of the gallery: likelihood (default), cosine, or a number."),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Prior probability that a probe is not enrolled (default: 0.5).")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="Maximum rejected share of the PRR (default: 0.5).")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Weights to try for MPRisk (default: 512).")] = None,
    out: OutFolder = None,
    as_json: AsJsonOrFile = False,
    draws: Draws = 1000,
    seed: Seed = 0,
) -> None:
    """Reject by each confidence and measure how the errors fall: PRR, TMR at FMR, error versus discard.

    With --meta, probes are searched in each gallery; calibrator, weights and gallery concentration are fitted
    on half of the people, and everything is measured on the other half. With --pairs, images are rejected,
    and pairs discarded, by every confidence in the embeddings.
    """
    check_json(as_json, json_file)
    if (meta is None) == (pairs is None):
        raise InputError("rejection: give either --meta FOLDER or --pairs FILE")
    options: dict[str, Any] = {
        "mode": mode, "galleries": gallery, "fpirs": fpir, "beta": beta, "limit": limit, "trials": trials,
        "kappa_gallery": None if kappa_gallery is None else _number(kappa_gallery),
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None and value != []}
    if pairs is not None:
        refuse_given(given, "rejection", "--meta")
        shown, results, written = _of_pairs(PairFiles.open(pairs, embeddings, right), out, draws, seed)
    else:
        from spherecf.data import read_ijb
        from spherecf.embeddings import Embeddings
        from spherecf.evaluation import RejectionOptions, evaluate_template_rejection

        refuse_given(["right"] if right is not None else [], "rejection", "--pairs")
        source = Embeddings.load(embeddings)
        how = {name: given.pop(name) for name in ("mode", "galleries") if name in given}
        reports = evaluate_template_rejection(
            source, read_ijb(meta or Path(), set_), RejectionOptions(draws=draws, seed=seed, **given), **how
        )
        shown, results, written = _of_galleries(reports, set_, out, source.provenance)
    show(shown)
    if as_json:
        print_json(results, written, json_file)
    print_written(written)


_SINGULAR = {"galleries": "gallery", "fpirs": "fpir"}


def refuse_given(given: Iterable[str], verb: str, other: str) -> None:
    """Refuse options that have no effect in this kind of run."""
    if flags := [f"--{_SINGULAR.get(name, name).replace('_', '-')}" for name in given]:
        raise InputError(f"{verb}: {' and '.join(flags)} can only be used with {other}")


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _of_galleries(
    reports: dict[str, "RejectionReport"], name: str, out: Path | None, provenance: dict[str, Any]
) -> tuple["Section", dict[str, Any], Path | None]:
    from spherecf.report import Section, mean_prr_table, rejection_section

    sections = [rejection_section(report, plots=out is not None) for report in reports.values()]
    galleries = [report.name for report in reports.values()]
    notes = [f"{gallery}: {note}" for gallery, s in zip(galleries, sections) for note in s.notes]
    tables = [table for section in sections for table in section.tables]
    summary = [mean_prr_table(list(reports.values()))]
    written = write_page(
        out, title=f"{name}: rejection in open-set identification", summary=summary, sections=sections,
        results={key: report.to_dict() for key, report in reports.items()},
        provenance={"embeddings": provenance},
    )  # fmt: skip
    results = {"galleries": {key: report.to_dict(curves=False) for key, report in reports.items()}}
    return Section(name, notes, [*tables, *summary]), results, written


def _of_pairs(
    files: PairFiles, out: Path | None, draws: int, seed: int
) -> tuple["Section", dict[str, Any], Path | None]:
    from spherecf.evaluation import PairOptions, evaluate_pairs
    from spherecf.report import Section, pair_rejection_tables

    options = PairOptions(confidences=_PAIR_CONFIDENCES, draws=draws, seed=seed)
    condition = "given" if files.right is files.left else "left/right"
    report = evaluate_pairs(files.left, files.right, files.pairs, options, condition=condition)
    tables = pair_rejection_tables(report)
    title = f"{report.name}: effect of rejecting by confidence"
    written = write_page(out, [report], title=title, summary=tables)
    return Section(report.name, tables=tables), report.to_dict(), written

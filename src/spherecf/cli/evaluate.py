"""`spherecf evaluate`: evaluation protocols on embeddings files."""

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

app = typer.Typer(help="Evaluate embeddings with standard protocols.", no_args_is_help=True)


def report_folder(path: Path | None) -> Path | None:
    """Callback of --out: check early that the report can be written."""
    if path is not None:
        from spherecf.report import require_matplotlib

        folder_to_write(path)
        require_matplotlib()
    return path


LeftFile = Annotated[
    Path, typer.Argument(help="Embeddings of the left images, or of all images, from `spherecf embed`.")
]
PairsFile = Annotated[
    Path,
    typer.Option(help="Pair list: LFW's pairs.txt, lines `left right 0|1`, CFP's table, or a .bin file."),
]
RightFile = Annotated[
    Path | None,
    typer.Option(help="Embeddings of the right images, e.g. degraded ones (default: the same file)."),
]
TemplateFile = Annotated[
    Path, typer.Argument(help="Embeddings file, from `spherecf embed` or `spherecf data import`.")
]
MetaFolder = Annotated[Path, typer.Option(help="Folder of IJB's meta files, or its parent folder.")]
Modes = Annotated[
    list[str] | None,
    typer.Option(
        help="Pooling of templates: a code such as N0D0F1K1, or precision. May be repeated (default: all)."
    ),
]
Scores = Annotated[
    list[str] | None,
    typer.Option(
        help="Score: cosine, mls or pfe. May be repeated (default: all that apply to the pooling mode)."
    ),
]
Groups = Annotated[
    str,
    typer.Option(
        help="Also report results by group. Give a CSV file with the columns `image,group`, `subject,group` "
        "or `template,group`, or extras:NAME for a column of the embeddings file."
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(help="Write a report (HTML, Markdown and JSON) to this folder.", callback=report_folder),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]
AsJsonOrFile = Annotated[
    bool, typer.Option("--json", help="Write the results as JSON to JSON_FILE, or to stdout without it.")
]
JsonFile = Annotated[
    Path | None,
    typer.Argument(metavar="JSON_FILE", help="JSON file to write with --json.", callback=file_to_write),
]
Seed = Annotated[int, typer.Option(help="Random seed of the bootstrap and of all other random choices.")]
Threads = Annotated[
    int | None, typer.Option(help="Number of scoring threads. The results do not depend on it.")
]
Radius = Annotated[
    float | None,
    typer.Option(help="Radius r of the mutual likelihood score (default: the radius in the file, or 64)."),
]


class PairFiles(NamedTuple):
    """A pair list with the embeddings of its left and right images.

    ``left`` and ``right`` are the same object if both come from one file.
    """

    pairs: "PairList"
    left: "Embeddings"
    right: "Embeddings"

    @classmethod
    def open(cls, pairs: Path, left: Path, right: Path | None, name: str = "") -> "PairFiles":
        """Read the files. A file given for both sides is read once; the default name is `_list_name`."""
        from spherecf.data import open_pairs
        from spherecf.embeddings import Embeddings

        pair_list, left_embeddings = open_pairs(pairs), Embeddings.load(left)
        pair_list = replace(pair_list, name=name or _list_name(pair_list, pairs))
        if right is None or right.resolve() == left.resolve():
            return cls(pair_list, left_embeddings, left_embeddings)
        return cls(pair_list, left_embeddings, Embeddings.load(right))

    @property
    def condition(self) -> str:
        """Quality of the left and of the right images, e.g. "clean/degraded"."""
        return f"{_quality(self.left)}/{_quality(self.right)}"

    def provenance(self) -> dict[str, Any]:
        """Where the embeddings and the pairs come from, for a report."""
        return {
            "left": self.left.provenance, "right": self.right.provenance,
            "pairs": {"name": self.pairs.name, "sha256": self.pairs.fingerprint()},
        }  # fmt: skip


class FaceImages:
    """Encoded images by key, aligned and degraded in the same way as for the embeddings.

    Args:
        embeddings: embeddings whose provenance states how the images were aligned and degraded.
        source: source of the images.
        keys: keys that will be requested; some may be missing from the source.

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
        """Encoded image of a key."""
        from spherecf.data import encode_image

        return encode_image(self._view(self._source.image(self._index[key]), key).image)


EXTRAS = "extras:"


def open_groups(groups: str, embeddings: "Embeddings") -> tuple[dict[str, str], str]:
    """Read groups from a CSV file or from an extra column of the embeddings.

    Returns:
        The group of each name, and what the names are: "image", "subject" or "template".
    """
    from spherecf.data import read_groups
    from spherecf.evaluation import extra_groups

    if groups.startswith(EXTRAS):
        return extra_groups(embeddings, groups.removeprefix(EXTRAS)), "image"
    table = read_groups(Path(groups))
    return table.groups, table.of


def show(section: "Section") -> None:
    """Print the tables and notes of a section on stderr."""
    from spherecf.report import rich_table

    console.print(*map(rich_table, section.tables))
    for note in section.notes:
        print_text(note)


def write_page(out: Path | None, reports: "Sequence[PairReport]" = (), **parts: Any) -> Path | None:
    """Write a report to the folder of --out, if given. Its provenance includes the environment."""
    if out is None:
        return None
    from spherecf.common.version import environment
    from spherecf.report import write_report

    provenance = {**parts.pop("provenance", {}), "environment": environment()}
    return write_report(out, reports, provenance=provenance, **parts).html


def print_json(results: dict[str, Any], written: Path | None, json_file: Path | None = None) -> None:
    """Write JSON to stdout, or atomically to a file."""
    from spherecf.common.files import write_atomically

    text = json.dumps(results | ({} if written is None else {"report": str(written)}), indent=2)
    if json_file is None:
        typer.echo(text)
    else:
        write_atomically(json_file, lambda stream: stream.write(f"{text}\n".encode()))


def print_written(written: Path | None) -> None:
    """Print the path of the report on stderr."""
    print_text(f"report: {written}" if written else "no report written (use --out FOLDER to write one)")


def check_json(as_json: bool, json_file: Path | None) -> None:
    """Reject a JSON_FILE without --json."""
    if json_file is not None and not as_json:
        raise InputError(
            f"unexpected argument {json_file}; to write the results to this file, use --json {json_file}"
        )


_FACES_PER_STRIP = 14


@app.command(
    epilog="Example: spherecf evaluate tenfold lfw.safetensors --pairs pairs.txt --faces lfw/ --out report/"
)
def tenfold(
    embeddings: LeftFile,
    pairs: PairsFile,
    right: RightFile = None,
    faces: Annotated[
        Path | None, typer.Option(help="Source of the embedded images, to show faces in the report.")
    ] = None,
    out: OutFolder = None,
    as_json: AsJson = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    radius: Radius = None,
    name: Annotated[
        str, typer.Option(help="Name of the pair list in the report (default: derived from its path).")
    ] = "",
    nearest: Annotated[
        bool,
        typer.Option("--nearest", help="Also report the TMR at the nearest threshold, as in older papers."),
    ] = False,
    groups: Groups = "",
) -> None:
    """Evaluate verification in ten folds: accuracy, TMR at FMR, EER, rejection and EDC, for both scores.

    Prints one line per score, `[lfw][0]Accuracy-Flip: 0.99400+-0.00400`, or JSON. For cross-quality
    verification, give the left images as EMBEDDINGS and the right images as --right. To compare degraded
    images with each other, give the degraded file only. Pairs with an image that was not embedded are skipped
    and counted.
    """
    from spherecf.data import open_source
    from spherecf.evaluation import PairOptions, evaluate_pairs
    from spherecf.report import nearest_section, terminal_table

    if faces is not None and out is None:
        raise InputError("--faces needs --out FOLDER, because faces are shown only in the report")
    source = None if faces is None else open_source(faces)
    files = PairFiles.open(pairs, embeddings, right, name)
    report = evaluate_pairs(
        files.left, files.right, files.pairs,
        PairOptions(radius=radius, draws=draws, seed=seed, nearest=nearest),
        condition=files.condition,
    )  # fmt: skip
    if not report.log_lines():
        raise InputError(
            f"{pairs}: its pairs are in one fold, but each fold needs a threshold from the others; number "
            "the folds in the list, or use `spherecf evaluate rejection --pairs`, which needs no folds"
        )
    console.print(terminal_table([report]))
    sections = []
    if nearest:
        sections = [nearest_section({s: (r.tmr, r.nearest, r.signature) for s, r in report.scores.items()})]
    group_reports = _reports_by_group(groups, files, radius) if groups else {}
    if group_reports:
        sections.append(_group_section(group_reports, report))
    for section in sections:
        show(section)
    written = write_page(
        out, [report], title=f"{report.name}: ten-fold verification, {report.condition}", sections=sections,
        strips=[] if source is None else _strips(report, files, source),
        provenance=files.provenance(),
    )  # fmt: skip
    if as_json:
        results = report.to_dict(curves=False)
        if group_reports:
            results["groups"] = {score: group.to_dict() for score, group in group_reports.items()}
        print_json(results, written)
    else:
        for line in report.log_lines():
            typer.echo(line)
    print_written(written)


def _list_name(pair_list: "PairList", path: Path) -> str:
    """Display name: lfw for ``lfw/pairs.txt``, cfp_fp for ``cfp/pairs_FP.txt``, else the name of the list."""
    if pair_list.name.lower().startswith("pairs"):
        return (path.resolve().parent.name + pair_list.name[len("pairs") :]).lower()
    return pair_list.name


def _reports_by_group(groups: str, files: PairFiles, radius: float | None) -> "dict[str, GroupReport]":
    """Error rates by group for each score."""
    from spherecf.evaluation import PairOptions, pair_groups

    # With two files, a key refers to two images, which may belong to different groups.
    if groups.startswith(EXTRAS) and files.right is not files.left:
        raise InputError(f"--groups {groups} needs a single file; with --right, use a CSV file `image,group`")
    group_of, kind = open_groups(groups, files.left)
    return pair_groups(files.left, files.right, files.pairs, group_of, kind, PairOptions(radius=radius))


def _group_section(group_reports: "dict[str, GroupReport]", report: "PairReport") -> "Section":
    from spherecf.report import Section, group_table

    tables = [
        group_table(group_report, f"By group: {score}", report.scores[score].signature)
        for score, group_report in group_reports.items()
    ]
    return Section("By group", tables=tables)


def _quality(embeddings: "Embeddings") -> str:
    view = embeddings.provenance.get("view")
    return "unstated" if view is None else "clean" if str(view).startswith("clean") else "degraded"


def _strips(report: "PairReport", files: PairFiles, source: "ImageSource") -> "list[Strip]":
    """Faces of each file by increasing kappa, then the worst mistakes of the last score."""
    from spherecf.report import strip_by_kappa, strips_of_mistakes

    pairs = files.pairs
    sides = [("left", files.left, pairs.left), ("right", files.right, pairs.right)]
    if files.right is files.left:
        sides = [("left and right", files.left, [*pairs.left, *pairs.right])]
    faces = [FaceImages(embeddings, source, keys) for _, embeddings, keys in sides]
    strips = [
        strip_by_kappa(
            f"{side} ({images.signature}): by increasing kappa", embeddings, images,
            keys=[key for key in keys if key in images], count=_FACES_PER_STRIP,
        )
        for (side, embeddings, keys), images in zip(sides, faces)
    ]  # fmt: skip
    score = list(report.scores)[-1]
    mistakes = [
        mistake
        for mistake in report.mistakes
        if mistake.score == score and mistake.left in faces[0] and mistake.right in faces[-1]
    ]
    return strips + strips_of_mistakes(mistakes, faces[0], faces[-1])


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
        str,
        typer.Option(
            help="Score to calibrate: cosine, mls, both, or evidence (both scores with both kappas)."
        ),
    ] = "both",
    confidence: Annotated[
        str,
        typer.Option(
            help="Confidence for the reject option: kappa, or an extra column of the embeddings such as norm."
        ),
    ] = "kappa",
    method: Annotated[str, typer.Option(help="Calibrator to save: logistic or isotonic.")] = "logistic",
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="Upper bound on the error rate of decisions. May be repeated (default: 0.01)."),
    ] = None,
    delta: Annotated[float, typer.Option(help="Probability that the bound fails.")] = 0.05,
    disjoint: Annotated[
        bool, typer.Option("--disjoint", help="Test on independent pairs: no person is in two pairs.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="Confidence model that computed the embeddings; needs --save.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the model with its calibration to this file; needs --model.", callback=file_to_write
        ),
    ] = None,
    backbone: BackboneOfModel = None,
    out: OutFolder = None,
    as_json: AsJson = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    radius: Radius = None,
) -> None:
    """Calibrate scores on half of the people and evaluate the calibration on the other half.

    Maps scores to log-likelihood ratios (evaluated by Cllr and reliability) and FMR targets to thresholds
    with confidence intervals. Finds decision rules with guaranteed error rates and a reject option. Use
    --model and --save to write the model with its calibration.
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
        files.left, files.right, files.pairs, options,
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
            "--save: the embeddings do not state which model computed them (no `model` in their provenance); "
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
        list[float] | None, typer.Option(help="FMR target. May be repeated (default: 1e-1 .. 1e-6).")
    ] = None,
    groups: Groups = "",
    out: OutFolder = None,
    as_json: AsJsonOrFile = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    radius: Radius = None,
    threads: Threads = None,
) -> None:
    """Evaluate 1:1 verification on IJB-B or IJB-C: TMR at FMR, EER and DET, for every pooling and score.

    Prints one line per result and target, `[ijbc][N0D0F1K1:mls]TAR@FAR<=0.0001: 0.96220`, or JSON. Images
    that were not embedded are counted. Pairs with an empty template are skipped.
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
    """One line per result and FMR target that the number of pairs can resolve."""
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
        list[float] | None, typer.Option(help="FPIR target. May be repeated (default: 1e-1, 1e-2, 1e-3).")
    ] = None,
    max_rank: Annotated[
        int, typer.Option(help="Highest rank at which a mate counts as identified in open-set search.")
    ] = 1,
    out: OutFolder = None,
    as_json: AsJsonOrFile = False,
    draws: Draws = 1000,
    seed: Seed = 0,
    radius: Radius = None,
    threads: Threads = None,
) -> None:
    """Evaluate 1:N identification on IJB: rank-k, CMC and TPIR at FPIR, for every pooling and score."""
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
        Path | None, typer.Option(help="Evaluate open-set search with the meta files of IJB in this folder.")
    ] = None,
    set_: IjbSet = "ijbc",
    pairs: Annotated[
        Path | None, typer.Option(help="Evaluate verification (TMR, EDC) on this pair list.")
    ] = None,
    right: Annotated[Path | None, typer.Option(help="Embeddings of the right images; needs --pairs.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="Pooling of the templates, see docs/ijb.md (default: K1).")
    ] = None,
    gallery: Annotated[
        list[str] | None, typer.Option(help="Gallery to search. May be repeated (default: all).")
    ] = None,
    fpir: Annotated[
        list[float] | None, typer.Option(help="FPIR target. May be repeated (default: 0.05, 0.1, 0.2).")
    ] = None,
    kappa_gallery: Annotated[
        str | None,
        typer.Option(
            help="How to set the concentration of the gallery: likelihood, cosine, or a number "
            "(default: likelihood)."
        ),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Prior probability that a probe is not enrolled (default: 0.5).")
    ] = None,
    limit: Annotated[
        float | None, typer.Option(help="Maximum rejected fraction for the PRR (default: 0.5).")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Number of weight vectors to try for MPRisk (default: 512).")
    ] = None,
    out: OutFolder = None,
    as_json: AsJsonOrFile = False,
    draws: Draws = 1000,
    seed: Seed = 0,
) -> None:
    """Measure how rejecting by each confidence lowers the errors: PRR, TMR at FMR, error versus discard.

    With --meta, probes are searched in each gallery. Calibrator, weights and gallery concentration are fitted
    on half of the people, and all results are measured on the other half. With --pairs, images are rejected
    and pairs are discarded by every confidence in the embeddings.
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
        refuse_options(given, "rejection", "--meta")
        section, results, written = _pair_rejection(
            PairFiles.open(pairs, embeddings, right), out, draws, seed
        )
    else:
        from spherecf.data import read_ijb
        from spherecf.embeddings import Embeddings
        from spherecf.evaluation import RejectionOptions, evaluate_template_rejection

        refuse_options(["right"] if right is not None else [], "rejection", "--pairs")
        source = Embeddings.load(embeddings)
        selection = {name: given.pop(name) for name in ("mode", "galleries") if name in given}
        reports = evaluate_template_rejection(
            source,
            read_ijb(meta or Path(), set_),
            RejectionOptions(draws=draws, seed=seed, **given),
            **selection,
        )
        section, results, written = _gallery_rejection(reports, set_, out, source.provenance)
    show(section)
    if as_json:
        print_json(results, written, json_file)
    print_written(written)


_SINGULAR = {"galleries": "gallery", "fpirs": "fpir"}


def refuse_options(names: Iterable[str], verb: str, required: str) -> None:
    """Raise `InputError` if options were given that only have an effect with the option ``required``."""
    if flags := [f"--{_SINGULAR.get(name, name).replace('_', '-')}" for name in names]:
        raise InputError(f"{verb}: {' and '.join(flags)} can only be used with {required}")


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _gallery_rejection(
    reports: dict[str, "RejectionReport"], name: str, out: Path | None, provenance: dict[str, Any]
) -> tuple["Section", dict[str, Any], Path | None]:
    from spherecf.report import Section, mean_prr_table, rejection_section

    sections = [rejection_section(report, plots=out is not None) for report in reports.values()]
    notes = [
        f"{report.name}: {note}"
        for report, section in zip(reports.values(), sections)
        for note in section.notes
    ]
    tables = [table for section in sections for table in section.tables]
    summary = [mean_prr_table(list(reports.values()))]
    written = write_page(
        out, title=f"{name}: rejection in open-set identification", summary=summary, sections=sections,
        results={key: report.to_dict() for key, report in reports.items()},
        provenance={"embeddings": provenance},
    )  # fmt: skip
    results = {"galleries": {key: report.to_dict(curves=False) for key, report in reports.items()}}
    return Section(name, notes, [*tables, *summary]), results, written


def _pair_rejection(
    files: PairFiles, out: Path | None, draws: int, seed: int
) -> tuple["Section", dict[str, Any], Path | None]:
    from spherecf.evaluation import PairOptions, evaluate_pairs
    from spherecf.report import Section, pair_rejection_tables

    options = PairOptions(confidences=_PAIR_CONFIDENCES, draws=draws, seed=seed)
    report = evaluate_pairs(files.left, files.right, files.pairs, options, condition=files.condition)
    tables = pair_rejection_tables(report)
    title = f"{report.name}: effect of rejecting by confidence"
    written = write_page(out, [report], title=title, summary=tables, provenance=files.provenance())
    return Section(report.name, tables=tables), report.to_dict(), written

"""IJB 1:1 verification: pool images into templates and compute TMR at FMR for every mode and score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.evaluation.bootstrap import Interval, bootstrap_tmr, interval
from spherecf.evaluation.groups import GroupReport, by_group
from spherecf.evaluation.rates import ScoreSplit, TmrAtFmr, check_targets
from spherecf.evaluation.results import Measure, plain_report, signature
from spherecf.evaluation.templates import (
    ComparedTemplates,
    Mode,
    TemplateImages,
    TemplateOptions,
    TemplateSet,
    compare_templates,
    conditions,
    find_images,
    missing_file,
    score_pairs,
    set_facts,
)
from spherecf.scoring import Templates

Array = NDArray[Any]

IJB_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_DET_POINTS = 400


@dataclass(frozen=True)
class TemplateResult:
    """All results of one pooling mode and score."""

    mode: str
    """E.g. "N0D0F1K1"."""
    pooling: str
    """The same in words: "mean", "kappa", "norm*detector", ..."""
    score: str
    signature: str
    tmr: list[TmrAtFmr]
    tmr_intervals: dict[str, Interval]
    """FMR target ("0.001") -> interval of its TMR; unresolved targets are absent."""
    eer: float
    det: dict[str, list[float]]
    """``fmr`` and ``fnmr`` of the DET curve, thinned for plotting."""
    groups: GroupReport | None = None
    """Error rates of each group, if groups were given."""

    @property
    def name(self) -> str:
        """Name in tables and plots, e.g. "kappa, mls"."""
        return f"{self.pooling}, {self.score}"


@dataclass(frozen=True)
class TemplateReport:
    """Result of `evaluate_ijb`; `to_dict` is JSON-serialisable."""

    name: str
    counts: dict[str, int]
    """``images``, ``templates``, ``media``, ``pairs``, ``mated``, ``non_mated``, ``people``,
    ``failed_images``, ``failed_templates``, ``failed_pairs``, ``repeated_pairs``"""
    failures: list[tuple[str, str]]
    """(file, reason) of the images that could not be embedded."""
    failed_templates: list[int]
    """Templates without an embedded image."""
    resampling: str
    """Unit, draws and seed of the bootstrap: "subject-1000/0", "component-...", or "none"."""
    results: list[TemplateResult]
    differences: dict[str, Measure]
    """Each result minus the first on the same draws, keyed like "kappa, mls:tmr@0.001"."""
    notes: list[str] = field(default_factory=list)
    resampled: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    """Values per bootstrap draw, keyed like "kappa, mls:tmr@0.001"; not in the JSON."""

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` the DET points are left out."""
        report = plain_report(self, without="resampled")
        if not curves:
            for result in report["results"]:
                del result["det"]
        return report


def evaluate_ijb(
    embeddings: Embeddings,
    templates: TemplateSet,
    options: TemplateOptions = TemplateOptions(),
    *,
    groups: Mapping[int, str] | None = None,
) -> TemplateReport:
    """Evaluate the pairs of a template set: TMR at FMR, EER and DET for every pooling mode and score.

    Images without an embedding are failures to acquire: they are counted and listed, and templates are
    pooled from the remaining images. Pairs with a template without any embedded image are left out and
    counted. The result does not depend on batch sizes, chunks or threads.

    Args:
        embeddings: embeddings of the set's images; the keys are its file names.
        templates: template set with pairs, from `spherecf.data.read_ijb`.
        options: pooling modes, scores, FMR targets and bootstrap settings.
        groups: template -> group, see `template_groups`; if given, error rates of each group are added.

    Raises:
        InputError: the set has no pairs, no image is embedded, only one kind of pair is left, or the
            embeddings lack what a mode needs.

    Example:
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.data import IjbMeta, TemplatePairs
        >>> ids = np.array([1, 2, 3])
        >>> pairs = TemplatePairs(ids[:2], ids[[1, 2]], np.array([True, False]))
        >>> meta = IjbMeta("toy", ["a", "b", "c"], ids, ids, pairs)
        >>> e = Embeddings(np.array([[1, 0], [0.8, 0.6], [-1, 0]]), np.zeros(3), ["a", "b", "c"])
        >>> report = evaluate_ijb(e, meta, TemplateOptions(modes=["N0"], scores=["cosine"], draws=0))
        >>> report.results[0].tmr[0].unresolved, report.results[0].eer
        ('FMR 0.1 needs at least 10 non-mated pairs, there are 1', 0.0)
    """
    if templates.pairs is None:
        raise missing_file(templates, "a list of template pairs is", "pair_label")
    targets, draws, seed = check_targets(options.targets or IJB_TARGETS), options.draws, options.seed
    images = find_images(embeddings, templates)
    scores_of, notes = conditions(options.modes, options.scores, embeddings, images)
    pairs = compare_templates(templates.pairs, templates, images)
    resampling = f"{pairs.unit}-{draws}/{seed}" if draws else "none"
    facts = set_facts(embeddings, templates)
    r = embeddings.radius if options.radius is None else options.radius
    results: list[TemplateResult] = []
    resampled: dict[str, Array] = {}
    for mode, scores in scores_of.items():
        pooled = mode.pool(embeddings, images)
        left, right = (pooled.select(side.used) for side in (pairs.left, pairs.right))
        for score in scores:
            values = score_pairs(left, right, pairs.left.at, pairs.right.at, score, r, options.threads)
            drawn = bootstrap_tmr(values, pairs.mated, *pairs.people(), targets, draws, seed) if draws else {}
            grouped = by_group(values, pairs.mated, *pairs.groups(groups), targets) if groups else None
            result_facts = {**facts, "mode": mode, "pool": f"media-mean+{mode.pooling}", "score": score,
                            "r": f"{r:g}" if score == "mls" else None, "fmr": "at-most",
                            "ci": resampling}  # fmt: skip
            line = signature(f"{templates.name}/1:1", **result_facts)
            results.append(_measure(mode, score, line, values, pairs.mated, targets, drawn, grouped))
            resampled |= {f"{results[-1].name}:{metric}": column for metric, column in drawn.items()}
    return TemplateReport(
        templates.name,
        _counts(pairs, images, pooled, templates),
        images.failures,
        images.empty_templates.tolist(),
        resampling,
        results,
        _differences(results, resampled),
        [*notes, *pairs.notes],
        resampled,
    )


def _counts(
    pairs: ComparedTemplates, images: TemplateImages, pooled: Templates, templates: TemplateSet
) -> dict[str, int]:
    mated = int(pairs.mated.sum())
    return {
        "images": images.images,
        "templates": len(pooled),
        "media": int(pooled.media.sum()),
        "pairs": int(pairs.mated.size),
        "mated": mated,
        "non_mated": int(pairs.mated.size) - mated,
        "people": int(np.unique(np.concatenate([side.people for side in (pairs.left, pairs.right)])).size),
        "failed_images": len(images.failures),
        "failed_templates": int(images.empty_templates.size),
        "failed_pairs": pairs.failed,
        "repeated_pairs": templates.repeated_pairs(),
    }


def _measure(
    mode: Mode,
    score: str,
    signature_line: str,
    values: Array,
    mated: Array,
    targets: Sequence[float],
    drawn: Mapping[str, Array],
    groups: GroupReport | None,
) -> TemplateResult:
    split = ScoreSplit.of(values, mated)
    fmr, fnmr, _ = split.det(_DET_POINTS)
    return TemplateResult(
        mode=str(mode),
        pooling=mode.pooling,
        score=score,
        signature=signature_line,
        tmr=split.tmr_at_fmr(targets),
        tmr_intervals={metric.removeprefix("tmr@"): interval(column) for metric, column in drawn.items()},
        eer=split.eer(),
        det={"fmr": fmr.tolist(), "fnmr": fnmr.tolist()},
        groups=groups,
    )


def _differences(results: Sequence[TemplateResult], resampled: Mapping[str, Array]) -> dict[str, Measure]:
    """Each result minus the first, with intervals from the bootstrap draws that both share."""
    differences: dict[str, Measure] = {}
    base = results[0]
    for result in results[1:]:
        for entry, base_entry in zip(result.tmr, base.tmr):
            if entry.tmr is None or base_entry.tmr is None:
                continue
            metric = f"tmr@{entry.target:g}"
            draws = resampled.get(f"{result.name}:{metric}")
            around = None if draws is None else interval(draws - resampled[f"{base.name}:{metric}"])
            differences[f"{result.name}:{metric}"] = Measure(entry.tmr - base_entry.tmr, around)
    return differences

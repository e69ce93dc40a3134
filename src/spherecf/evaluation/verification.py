"""IJB 1:1: templates from images, millions of pairs, TMR at FMR for every way to pool and to score."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.evaluation.bootstrap import Interval, bootstrap_tmr, interval
from spherecf.evaluation.groups import GroupReport, by_group
from spherecf.evaluation.rates import ScoreSplit, TmrAtFmr
from spherecf.evaluation.results import Measure, plain, signature
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
    """Everything measured for one way to pool and to score."""

    mode: str
    """E.g. "N0D0F1K1"."""
    pooling: str
    """The same in words: "mean", "kappa", "norm*detector", ..."""
    score: str
    signature: str
    tmr: list[TmrAtFmr]
    tmr_intervals: dict[str, Interval]
    """FMR target ("0.001") to the interval of its TMR; unresolved targets are absent."""
    eer: float
    det: dict[str, list[float]]
    """``fmr`` and ``fnmr`` of the DET curve, thinned for plotting."""
    groups: GroupReport | None = None
    """Error rates of each group, where groups were given."""

    @property
    def name(self) -> str:
        """Of the row and its line: "kappa, mls"."""
        return f"{self.pooling}, {self.score}"


@dataclass(frozen=True)
class TemplateReport:
    """Result of a template set's pairs; `to_dict` is JSON-able."""

    name: str
    counts: dict[str, int]
    """``images``, ``templates``, ``media``, ``pairs``, ``mated``, ``non_mated``, ``people``,
    ``failed_images``, ``failed_templates``, ``failed_pairs``, ``repeated_pairs``"""
    failures: list[tuple[str, str]]
    """(file, reason) of the images that could not be embedded."""
    failed_templates: list[int]
    """Templates without any image left."""
    resampling: str
    """What the intervals draw: "subject-1000/0", "component-...", or "none"."""
    results: list[TemplateResult]
    differences: dict[str, Measure]
    """Each row minus the first on the same draws, by "kappa, mls:tmr@0.001" and so on."""
    notes: list[str] = field(default_factory=list)
    resampled: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    """Bootstrap draws by "kappa, mls:tmr@0.001" and so on; not in the JSON."""

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` the DET points are left out."""
        found: dict[str, Any] = plain(asdict(replace(self, resampled={})))
        del found["resampled"]
        if not curves:
            for result in found["results"]:
                del result["det"]
        return found


def evaluate_ijb(
    embeddings: Embeddings,
    templates: TemplateSet,
    options: TemplateOptions = TemplateOptions(),
    *,
    groups: Mapping[int, str] | None = None,
) -> TemplateReport:
    """Verify the pairs of a template set: TMR at FMR, EER and DET for every mode and score.

    Images that are not among the embeddings are failures to acquire: counted and listed; a template is pooled
    from those that are there, and the pairs of a template without any are left out and counted. The result
    does not depend on batch sizes, chunks or threads.

    Args:
        embeddings: of the set's images, keys spelt as its file names.
        templates: from `spherecf.data.read_ijb`, with pairs.
        options: modes, scores, FMR targets and the rest.
        groups: template to group, see `template_groups`: adds error rates of each group.

    Raises:
        InputError: no pairs, no image found, one kind of pair left, a mode that the embeddings lack.

    Example:
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
    images = find_images(embeddings, templates)
    chosen, notes = conditions(options.modes, options.scores, embeddings, images)
    pairs = compare_templates(templates.pairs, templates, images)
    targets, draws, seed = options.targets or IJB_TARGETS, options.draws, options.seed
    unit = f"{pairs.unit}-{draws}/{seed}" if draws else "none"
    facts = set_facts(embeddings, templates)
    r = embeddings.radius if options.radius is None else options.radius
    results: list[TemplateResult] = []
    resampled: dict[str, Array] = {}
    for mode in dict.fromkeys(mode for mode, _ in chosen):
        pooled = mode.pool(embeddings, images)
        left, right = (pooled.select(side.used) for side in (pairs.left, pairs.right))
        for score in (score for one, score in chosen if one == mode):
            values = score_pairs(left, right, pairs.left.at, pairs.right.at, score, r, options.threads)
            drawn = bootstrap_tmr(values, pairs.mated, *pairs.people(), targets, draws, seed) if draws else {}
            grouped = by_group(values, pairs.mated, *pairs.groups(groups), targets) if groups else None
            stated = {**facts, "mode": mode, "pool": f"media-mean+{mode.pooling}", "score": score,
                      "r": f"{r:g}" if score == "mls" else None, "fmr": "at-most", "ci": unit}  # fmt: skip
            line = signature(f"{templates.name}/1:1", **stated)
            results.append(_measure(mode, score, line, values, pairs.mated, targets, drawn, grouped))
            resampled |= {f"{results[-1].name}:{metric}": found for metric, found in drawn.items()}
    return TemplateReport(
        templates.name,
        _counts(pairs, images, pooled, templates),
        images.failures,
        images.lost.tolist(),
        unit,
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
        "failed_templates": int(images.lost.size),
        "failed_pairs": pairs.failed,
        "repeated_pairs": templates.repeated_pairs(),
    }


def _measure(
    mode: Mode,
    score: str,
    line: str,
    values: Array,
    mated: Array,
    targets: Sequence[float],
    drawn: Mapping[str, Array],
    groups: GroupReport | None,
) -> TemplateResult:
    split = ScoreSplit.of(values, mated)
    fmr, fnmr, _ = split.det(_DET_POINTS)
    between = {metric.removeprefix("tmr@"): interval(found) for metric, found in drawn.items()}
    det = {"fmr": fmr.tolist(), "fnmr": fnmr.tolist()}
    tmr = split.tmr_at_fmr(targets)
    return TemplateResult(str(mode), mode.pooling, score, line, tmr, between, split.eer(), det, groups)


def _differences(results: Sequence[TemplateResult], resampled: Mapping[str, Array]) -> dict[str, Measure]:
    """Each row minus the first, the interval from draws that both saw."""
    found: dict[str, Measure] = {}
    base = results[0]
    for result in results[1:]:
        for one, other in zip(result.tmr, base.tmr):
            if one.tmr is None or other.tmr is None:
                continue
            metric = f"tmr@{one.target:g}"
            draws = resampled.get(f"{result.name}:{metric}")
            between = None if draws is None else interval(draws - resampled[f"{base.name}:{metric}"])
            found[f"{result.name}:{metric}"] = Measure(one.tmr - other.tmr, between)
    return found

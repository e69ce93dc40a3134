"""1:N identification: rank of the mate (closed set), and TPIR at FPIR (open set).

Rates are defined as in NIST's evaluations (P. Grother, M. Ngan, K. Hanaoka, "Face Recognition Vendor Test
Part 2: Identification", NISTIR 8271). FPIR is the share of non-mated probes for which any candidate reaches
the threshold. FNIR is the share of mated probes whose mate does not reach the threshold or is not within the
given rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import allowed_errors, unresolved_rate
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import Interval, bootstrap_subjects, interval, interval_of
from spherecf.evaluation.rates import (
    ScoreSplit,
    SortedPairs,
    check_targets,
    sort_pairs,
    tmr_of_curve,
    tmr_rates,
)
from spherecf.evaluation.results import Measure, plain_report, signature
from spherecf.evaluation.templates import (
    TemplateImages,
    TemplateOptions,
    TemplateSet,
    check_disjoint,
    conditions,
    find_images,
    missing_file,
    score_tiles,
    set_facts,
)
from spherecf.scoring import Templates

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Result of searching a gallery, one entry per probe."""

    best: Array
    """(p,) highest score of any gallery template."""
    mate_score: Array
    """(p,) score of the mate; -inf for non-mated probes."""
    rank: Array
    """(p,) rank of the mate, 1 = first; 0 for non-mated probes. Ties count against the mate."""

    @property
    def mated(self) -> NDArray[np.bool_]:
        """(p,) whether the gallery has the probe's subject."""
        return np.asarray(self.rank > 0)

    def identified(self, max_rank: int) -> NDArray[np.float32]:
        """(mated,) score of the mate if its rank is at most ``max_rank``, else -inf."""
        scores: NDArray[np.float32] = np.where(self.rank <= max_rank, self.mate_score, -np.inf)[self.mated]
        return scores


def search(
    probes: Templates, gallery: Templates, mate: Array, score: str, radius: float, threads: int | None = None
) -> SearchResult:
    """Search every probe; ``mate`` (p,) is the position of its mate in the gallery, -1 if it has none."""
    best, mate_score = np.empty(len(probes), np.float32), np.full(len(probes), -np.inf, np.float32)
    rank = np.zeros(len(probes), np.int64)
    for rows, tile in score_tiles(probes, gallery, score, radius, threads):
        best[rows] = tile.max(1)
        mated = np.flatnonzero(mate[rows] >= 0)
        scores = tile[mated, mate[rows][mated]]
        mate_score[rows.start + mated] = scores
        rank[rows.start + mated] = (tile[mated] >= scores[:, None]).sum(1)  # counts the mate itself
    return SearchResult(best, mate_score, rank)


@dataclass(frozen=True)
class TpirAtFpir:
    """The highest TPIR whose FPIR does not exceed ``target``, with the underlying counts."""

    target: float
    tpir: float | None
    fnir: float | None
    fpir: float | None
    threshold: float | None
    identified: int | None
    false_positives: int | None
    mated: int
    non_mated: int
    unresolved: str | None = None
    """Why there is no rate."""


@dataclass(frozen=True)
class GalleryResult:
    """Results of one gallery for one pooling mode and score."""

    gallery: str
    enrolled: int
    mated: int
    """Probes whose subject is enrolled."""
    non_mated: int
    ranks: dict[str, Measure]
    """Rank ("1", "5", "10") -> share of mated probes whose mate is within this rank."""
    cmc: list[float]
    """The same share for every rank from 1 to 100, or to the size of the gallery."""
    tpir: list[TpirAtFpir]
    tpir_intervals: dict[str, Interval]
    det: dict[str, list[float]]
    """``fpir`` and ``fnir``, thinned for plotting."""


@dataclass(frozen=True)
class IdentificationResult:
    """Results of one pooling mode and score: each gallery, and the mean over galleries."""

    mode: str
    pooling: str
    score: str
    signature: str
    galleries: list[GalleryResult]
    mean: dict[str, Measure]
    """Means over galleries of "rank-1", "tpir@0.01", ...; absent if any gallery has no value."""

    @property
    def name(self) -> str:
        """Name in tables and plots, e.g. "kappa, mls"."""
        return f"{self.pooling}, {self.score}"


@dataclass(frozen=True)
class IdentificationReport:
    """Result of `evaluate_identification`; `to_dict` is JSON-serialisable."""

    name: str
    max_rank: int
    """In the open set, a probe counts as identified only if its mate is within this rank."""
    counts: dict[str, int]
    """``images``, ``probes``, ``gallery_templates``, ``people``, ``failed_images``, ``failed_probes``,
    ``failed_gallery_templates``"""
    failures: list[tuple[str, str]]
    failed_templates: list[int]
    resampling: str
    results: list[IdentificationResult]
    notes: list[str] = field(default_factory=list)
    resampled: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    """Means per bootstrap draw, keyed like "kappa, mls:tpir@0.01"; not in the JSON."""

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` CMC and DET are left out."""
        report = plain_report(self, without="resampled")
        if not curves:
            for gallery in (gallery for result in report["results"] for gallery in result["galleries"]):
                del gallery["cmc"], gallery["det"]
        return report


FPIR_TARGETS = (1e-1, 1e-2, 1e-3)
RANKS = (1, 5, 10)
_CMC_RANKS = 100
_DET_POINTS = 400


def evaluate_identification(
    embeddings: Embeddings,
    templates: TemplateSet,
    options: TemplateOptions = TemplateOptions(),
    *,
    max_rank: int = 1,
) -> IdentificationReport:
    """Search all probes in all galleries: rank-k and CMC, TPIR at FPIR, and DET, for every mode and score.

    The threshold for an FPIR target is set on the non-mated probes of each gallery: the smallest threshold
    that a candidate (score >= threshold, ties together) reaches for at most that share of them. Ties in rank
    count against the mate. Probes without an embedded image are failures to acquire: they are counted, but
    not searched. Probes of a subject whose enrolment failed are neither mated nor non-mated, and are left out
    of the search in that gallery.

    Args:
        embeddings: embeddings of the set's images; the keys are its file names.
        templates: template set with galleries and probes, from `spherecf.data.read_ijb`.
        options: pooling modes, scores, FPIR targets and bootstrap settings; the bootstrap draws the subjects
            of the probes.
        max_rank: in the open set, a probe counts as identified only if its mate is within this rank.

    Raises:
        InputError: the set has no galleries or probes, no image is embedded, no probe has a mate, or the
            embeddings lack what a mode needs.

    Example:
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.data import TemplateList, IjbMeta
        >>> ids = np.array([1, 2, 3, 4])
        >>> meta = IjbMeta(
        ...     "toy",
        ...     list("abcd"),
        ...     ids,
        ...     ids,
        ...     galleries={"G1": TemplateList(ids[:2], ids[:2])},
        ...     probes=TemplateList(ids[2:], np.array([1, 9])),
        ... )
        >>> e = Embeddings(np.array([[1, 0], [0, 1], [0.8, 0.6], [-1, 0]]), np.zeros(4), list("abcd"))
        >>> report = evaluate_identification(e, meta, TemplateOptions(modes=["N0"], targets=[1.0], draws=0))
        >>> gallery = report.results[0].galleries[0]
        >>> gallery.ranks["1"].value, gallery.tpir[0].tpir, gallery.non_mated
        (1.0, 1.0, 1)
    """
    if not templates.galleries or templates.probes is None:
        raise missing_file(templates, "galleries and probes are", "1N_")
    if max_rank < 1:
        raise InputError(f"max_rank: expected at least 1, got {max_rank}")
    targets, draws, seed = check_targets(options.targets or FPIR_TARGETS, "FPIR"), options.draws, options.seed
    images = find_images(embeddings, templates)
    scores_of, notes = conditions(options.modes, options.scores, embeddings, images)
    searches, people, counts = _gallery_searches(templates, templates.probes, images)
    r = embeddings.radius if options.radius is None else options.radius
    resampling = f"probe-subject-{draws}/{seed}" if draws else "none"
    facts = set_facts(embeddings, templates)
    results: list[IdentificationResult] = []
    resampled: dict[str, Array] = {}
    for mode, scores in scores_of.items():
        pooled = mode.pool(embeddings, images)
        for score in scores:
            outcomes = {s.gallery: s.run(pooled, score, r, options.threads) for s in searches}
            drawn = _resample(searches, outcomes, people, targets, max_rank, draws, seed) if draws else {}
            galleries = [_measure(s, outcomes[s.gallery], targets, max_rank, drawn) for s in searches]
            result_facts = {**facts, "mode": mode, "pool": f"media-mean+{mode.pooling}", "score": score,
                            "r": f"{r:g}" if score == "mls" else None, "fpir": "at-most",
                            "rank": f"<={max_rank}", "ties": "against", "ci": resampling}  # fmt: skip
            line = signature(f"{templates.name}/1:N", **result_facts)
            mean, mean_drawn = _mean_over_galleries(galleries, drawn)
            results.append(IdentificationResult(str(mode), mode.pooling, score, line, galleries, mean))
            resampled |= {f"{results[-1].name}:{name}": column for name, column in mean_drawn.items()}
    return IdentificationReport(
        templates.name, max_rank, {"images": images.images, **counts}, images.failures,
        images.empty_templates.tolist(), resampling, results, notes, resampled,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _GallerySearch:
    """The probes to search in one gallery."""

    gallery: str
    enrolled: Array
    """(g,) template ids."""
    probes: Array
    """(p,) template ids."""
    probe_indices: Array
    """(p,) position of each probe among all probes of the set."""
    mate: Array
    """(p,) position of the mate in ``enrolled``, -1 for non-mated probes."""

    def run(self, pooled: Templates, score: str, radius: float, threads: int | None) -> SearchResult:
        gallery, probes = (pooled.select(pooled.positions(ids)) for ids in (self.enrolled, self.probes))
        return search(probes, gallery, self.mate, score, radius, threads)


def _gallery_searches(
    templates: TemplateSet, listed_probes: tuple[Array, Array], images: TemplateImages
) -> tuple[list[_GallerySearch], Array, dict[str, int]]:
    """(searches, subject of every probe, counts)."""
    probes, people, failed_probes = images.split(listed_probes)
    searches, n_failed = [], 0
    for name, listed in templates.galleries.items():
        enrolled, subjects, failed_subjects = images.split(listed)
        check_disjoint(f"{templates.name}: gallery {name}", enrolled, probes)
        n_failed += failed_subjects.size
        # Probes of a subject whose enrolment failed (-2) are neither mated nor non-mated: leave them out.
        position = {s: i for i, s in enumerate(subjects.tolist())}
        position |= dict.fromkeys(failed_subjects.tolist(), -2)
        mate = np.array([position.get(subject, -1) for subject in people.tolist()], np.int64)
        searched = np.flatnonzero(mate != -2)
        if not (mate >= 0).any():
            raise InputError(
                f"{templates.name}: no probe has a mate in gallery {name}; do the lists belong together?"
            )
        searches.append(_GallerySearch(name, enrolled, probes[searched], searched, mate[searched]))
    counts = {
        "probes": int(probes.size),
        "gallery_templates": sum(s.enrolled.size for s in searches),
        "people": int(np.unique(people).size),
        "failed_images": len(images.failures),
        "failed_probes": int(failed_probes.size),
        "failed_gallery_templates": n_failed,
    }
    return searches, people, counts


def _measure(
    gallery_search: _GallerySearch,
    outcome: SearchResult,
    targets: Sequence[float],
    max_rank: int,
    drawn: Mapping[str, Array],
) -> GalleryResult:
    n_mated, n_non_mated = int(outcome.mated.sum()), int((~outcome.mated).sum())
    n_enrolled = int(gallery_search.enrolled.size)
    ranks = outcome.rank[outcome.mated]
    counts = np.bincount(np.minimum(ranks, _CMC_RANKS + 1), minlength=_CMC_RANKS + 2)  # index 0 is unused
    cmc = np.cumsum(counts)[1:-1] / n_mated
    name, tpir = gallery_search.gallery, _tpir_at_fpir(outcome, targets, max_rank)
    intervals = {f"{e.target:g}": interval_of(drawn, f"{name}:tpir@{e.target:g}") for e in tpir}
    det: dict[str, list[float]] = {"fpir": [], "fnir": []}
    if n_non_mated:
        fpir, fnir, thresholds = ScoreSplit.of(*_open_set_scores(outcome, max_rank)).det(_DET_POINTS)
        is_finite = thresholds > -np.inf
        det = {"fpir": fpir[is_finite].tolist(), "fnir": fnir[is_finite].tolist()}
    return GalleryResult(
        name, n_enrolled, n_mated, n_non_mated,
        {
            str(rank): Measure(float((ranks <= rank).mean()), interval_of(drawn, f"{name}:rank-{rank}"))
            for rank in RANKS
        },
        cmc[:n_enrolled].tolist(), tpir,
        {target: around for target, around in intervals.items() if around is not None}, det,
    )  # fmt: skip


def _open_set_scores(outcome: SearchResult, max_rank: int) -> tuple[Array, Array]:
    """(scores, mated) for which TMR at FMR equals TPIR at FPIR.

    The scores are those of the mates (mated probes) and the best scores (non-mated probes).
    """
    scores = np.concatenate([outcome.identified(max_rank), outcome.best[~outcome.mated]])
    return scores, np.arange(scores.size) < int(outcome.mated.sum())


def _tpir_at_fpir(outcome: SearchResult, targets: Sequence[float], max_rank: int) -> list[TpirAtFpir]:
    n_mated, n_non_mated = int(outcome.mated.sum()), int((~outcome.mated).sum())
    if not n_non_mated:
        reason = "every probe has a mate in this gallery: a closed set"
        return [TpirAtFpir(t, None, None, None, None, None, None, n_mated, 0, reason) for t in targets]
    entries = []
    for at_fmr in tmr_of_curve(sort_pairs(*_open_set_scores(outcome, max_rank)).curve(), targets):
        target = at_fmr.target
        if at_fmr.tmr is None or at_fmr.true_matches is None:
            reason = unresolved_rate("FPIR", target, n_non_mated, "probes without a mate")
            entries.append(TpirAtFpir(target, *(None,) * 6, n_mated, n_non_mated, reason))
            continue
        hits = at_fmr.true_matches
        if at_fmr.threshold == -np.inf:  # all non-mated probes get a candidate: only the rank matters
            hits = int((outcome.identified(max_rank) > -np.inf).sum())
        rates = hits / n_mated, 1 - hits / n_mated, at_fmr.fmr
        entries.append(
            TpirAtFpir(
                target, *rates, at_fmr.threshold, hits, at_fmr.false_matches, n_mated, n_non_mated
            )
        )  # fmt: skip
    return entries


def _resample(
    searches: Sequence[_GallerySearch],
    outcomes: Mapping[str, SearchResult],
    people: Array,
    targets: Sequence[float],
    max_rank: int,
    draws: int,
    seed: int,
) -> dict[str, Array]:
    """ "G1:rank-1", "G1:tpir@0.01", ... -> (draws,). Subjects of probes are drawn; galleries are fixed."""
    prepared: list[tuple[_GallerySearch, SearchResult, SortedPairs | None]] = []
    for s in searches:
        outcome = outcomes[s.gallery]
        pairs = None if outcome.mated.all() else sort_pairs(*_open_set_scores(outcome, max_rank))
        prepared.append((s, outcome, pairs))

    def statistic(weights: Array) -> dict[str, Array]:
        values = {}
        for s, outcome, pairs in prepared:
            probe_weights = weights[:, s.probe_indices]
            mated, non_mated = probe_weights[:, outcome.mated], probe_weights[:, ~outcome.mated]
            ranks = outcome.rank[outcome.mated]
            for rank in RANKS:
                values[f"{s.gallery}:rank-{rank}"] = mated @ (ranks <= rank) / mated.sum(1)
            if pairs is None:
                continue
            max_tpir = mated @ (ranks <= max_rank) / mated.sum(1)  # reached at FPIR 1
            curve = pairs.curve(np.concatenate([mated, non_mated], 1))
            for target in targets:
                if allowed_errors(target, int((~outcome.mated).sum())) >= 1:
                    values[f"{s.gallery}:tpir@{target:g}"] = np.minimum(tmr_rates(curve, target), max_tpir)
        return values

    return bootstrap_subjects(statistic, people, people, draws=draws, seed=seed)


def _mean_over_galleries(
    galleries: Sequence[GalleryResult], drawn: Mapping[str, Array]
) -> tuple[dict[str, Measure], dict[str, Array]]:
    """Mean over galleries of each metric that all galleries have, and its values in the bootstrap draws."""
    values: dict[str, list[float]] = {}
    for gallery in galleries:
        for rank, measure in gallery.ranks.items():
            values.setdefault(f"rank-{rank}", []).append(measure.value)
        for entry in gallery.tpir:
            if entry.tpir is not None:
                values.setdefault(f"tpir@{entry.target:g}", []).append(entry.tpir)
    means = {name: float(np.mean(column)) for name, column in values.items() if len(column) == len(galleries)}
    mean_drawn: dict[str, Array] = {}
    if drawn:
        mean_drawn = {name: np.mean([drawn[f"{g.gallery}:{name}"] for g in galleries], 0) for name in means}
    intervals = {name: interval(column) for name, column in mean_drawn.items()}
    return {name: Measure(mean, intervals.get(name)) for name, mean in means.items()}, mean_drawn

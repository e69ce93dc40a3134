"""1:N: who it is (closed set), and whether it is anybody in the gallery (open set).

Rates as in NIST's evaluations (P. Grother, M. Ngan, K. Hanaoka, "Face Recognition Vendor Test Part 2:
Identification", NISTIR 8271): FPIR is the share of probes without a mate in the gallery that get any
candidate at the threshold; FNIR the share of probes with a mate that do not get it, at rank and threshold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import allowed_errors, unresolved_rate
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import Interval, bootstrap_subjects, interval
from spherecf.evaluation.rates import (
    ScoreSplit,
    SortedPairs,
    sort_pairs,
    tmr_of_curve,
    tmr_rates,
)
from spherecf.evaluation.results import Measure, plain, signature
from spherecf.evaluation.templates import (
    TemplateImages,
    TemplateOptions,
    TemplateSet,
    check_apart,
    conditions,
    find_images,
    missing_file,
    score_tiles,
    set_facts,
)
from spherecf.scoring import Templates

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Found:
    """What searching a gallery gave, one entry per probe."""

    best: Array
    """(p,) highest score of any gallery template."""
    own: Array
    """(p,) score of the mate; -inf where the gallery lacks it."""
    rank: Array
    """(p,) place of the mate, 1 = first; 0 where the gallery lacks it. Ties count against the mate."""

    @property
    def mated(self) -> NDArray[np.bool_]:
        """(p,) whether the gallery has the probe's subject."""
        return np.asarray(self.rank > 0)

    def identified(self, max_rank: int) -> NDArray[np.float32]:
        """(mated,) score of the mate where its rank is good enough, else -inf."""
        scores: NDArray[np.float32] = np.where(self.rank <= max_rank, self.own, -np.inf)[self.mated]
        return scores


def search(
    probes: Templates, gallery: Templates, mate: Array, score: str, radius: float, threads: int | None = None
) -> Found:
    """Search every probe; ``mate`` (p,) is the position of its mate in the gallery, -1 if there is none."""
    best, own = np.empty(len(probes), np.float32), np.full(len(probes), -np.inf, np.float32)
    rank = np.zeros(len(probes), np.int64)
    for rows, tile in score_tiles(probes, gallery, score, radius, threads):
        best[rows] = tile.max(1)
        known = np.flatnonzero(mate[rows] >= 0)
        scores = tile[known, mate[rows][known]]
        at = rows.start + known
        own[at] = scores
        rank[at] = (tile[known] >= scores[:, None]).sum(1)  # the mate itself is one of them
    return Found(best, own, rank)


@dataclass(frozen=True)
class TpirAtFpir:
    """The largest TPIR whose FPIR does not exceed ``target``, with the counts behind it."""

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
    """Why there is no number."""


@dataclass(frozen=True)
class GalleryResult:
    """One gallery, for one way to pool and to score."""

    gallery: str
    enrolled: int
    mated: int
    """Probes whose subject is enrolled."""
    non_mated: int
    ranks: dict[str, Measure]
    """"1", "5", "10" to the share of mated probes whose mate is among the first so many."""
    cmc: list[float]
    """The same for every rank from 1, up to 100."""
    tpir: list[TpirAtFpir]
    tpir_intervals: dict[str, Interval]
    det: dict[str, list[float]]
    """``fpir`` and ``fnir``, thinned for plotting."""


@dataclass(frozen=True)
class IdentificationResult:
    """One way to pool and to score: every gallery, and their mean."""

    mode: str
    pooling: str
    score: str
    signature: str
    galleries: list[GalleryResult]
    mean: dict[str, Measure]
    """"rank-1", "tpir@0.01", ...: mean over galleries; absent where one gallery has no number."""

    @property
    def name(self) -> str:
        """Of the row and its line: "kappa, mls"."""
        return f"{self.pooling}, {self.score}"


@dataclass(frozen=True)
class IdentificationReport:
    """Result of 1:N search; `to_dict` is JSON-able."""

    name: str
    max_rank: int
    """A mate counts as identified in the open set if its rank is at most this."""
    counts: dict[str, int]
    """``images``, ``probes``, ``gallery_templates``, ``people``, ``failed_images``, ``failed_probes``,
    ``failed_gallery_templates``"""
    failures: list[tuple[str, str]]
    failed_templates: list[int]
    resampling: str
    results: list[IdentificationResult]
    notes: list[str] = field(default_factory=list)
    resampled: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    """Bootstrap draws of the means by "kappa, mls:tpir@0.01" and so on; not in the JSON."""

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` CMC and DET are left out."""
        found: dict[str, Any] = plain(asdict(replace(self, resampled={})))
        del found["resampled"]
        if not curves:
            for gallery in (gallery for result in found["results"] for gallery in result["galleries"]):
                del gallery["cmc"], gallery["det"]
        return found


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
    """Search every probe in every gallery: rank-k and CMC, TPIR at FPIR and DET, for every mode and score.

    The threshold for an FPIR comes from the probes searched against the gallery that lacks them: the smallest
    at which at most that share gets any candidate (score >= threshold, ties together). Ties in rank count
    against the mate. Probes without an embedded image are failures to acquire: counted, never searched.
    Where an enrolment failed, its subject's probes have neither a mate nor none: they are left out there.

    Args:
        embeddings: of the set's images, keys spelt as its file names.
        templates: from `spherecf.data.read_ijb`, with galleries and probes.
        options: modes, scores, FPIR targets and the rest; the bootstrap draws the probes' people.
        max_rank: a mate counts as identified in the open set if its rank is at most this.

    Raises:
        InputError: no galleries or probes, no image found, no probe with a mate, a mode that the embeddings
            lack.

    Example:
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
    _check(templates, max_rank)
    targets, draws, seed = options.targets or FPIR_TARGETS, options.draws, options.seed
    images = find_images(embeddings, templates)
    chosen, notes = conditions(options.modes, options.scores, embeddings, images)
    tasks, people, counts = _tasks(templates, images)
    r = embeddings.radius if options.radius is None else options.radius
    ci = f"probe-subject-{draws}/{seed}" if draws else "none"
    facts = set_facts(embeddings, templates)
    results: list[IdentificationResult] = []
    resampled: dict[str, Array] = {}
    for mode in dict.fromkeys(mode for mode, _ in chosen):
        pooled = mode.pool(embeddings, images)
        for score in (score for one, score in chosen if one == mode):
            found = {task.name: task.search(pooled, score, r, options.threads) for task in tasks}
            drawn = _resample(tasks, found, people, targets, max_rank, draws, seed) if draws else {}
            galleries = [_measure(task, found[task.name], targets, max_rank, drawn) for task in tasks]
            stated = {**facts, "mode": mode, "pool": f"media-mean+{mode.pooling}", "score": score,
                      "r": f"{r:g}" if score == "mls" else None, "fpir": "at-most", "rank": f"<={max_rank}",
                      "ties": "against", "ci": ci}  # fmt: skip
            line = signature(f"{templates.name}/1:N", **stated)
            mean = _mean(galleries, drawn)
            results.append(IdentificationResult(str(mode), mode.pooling, score, line, galleries, mean))
            names = mean if draws else ()
            resampled |= {f"{results[-1].name}:{name}": _mean_draws(tasks, drawn, name) for name in names}
    return IdentificationReport(
        templates.name, max_rank, {"images": images.images, **counts}, images.failures, images.lost.tolist(),
        ci, results, notes, resampled,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Task:
    """Search of one gallery."""

    name: str
    enrolled: Array
    """(g,) template ids."""
    probes: Array
    """(p,) template ids."""
    places: Array
    """(p,) which of all probes these are."""
    mate: Array
    """(p,) position among the enrolled, -1 where there is none."""

    def search(self, pooled: Templates, score: str, radius: float, threads: int | None) -> Found:
        gallery, probes = (pooled.select(pooled.positions(ids)) for ids in (self.enrolled, self.probes))
        return search(probes, gallery, self.mate, score, radius, threads)


def _check(templates: TemplateSet, max_rank: int) -> None:
    if not templates.galleries or templates.probes is None:
        raise missing_file(templates, "galleries and probes are", "1N_")
    if max_rank < 1:
        raise InputError(f"max_rank: expected at least 1, got {max_rank}")


def _tasks(templates: TemplateSet, images: TemplateImages) -> tuple[list[_Task], Array, dict[str, int]]:
    """(searches, subject of every probe, counts)."""
    if templates.probes is None:
        raise missing_file(templates, "probes are", "1N_probe")
    probes, people, lost = images.split(templates.probes)
    tasks, failed = [], 0
    for name, listed in templates.galleries.items():
        enrolled, subjects, gone = images.split(listed)
        check_apart(f"{templates.name}: gallery {name}", enrolled, probes)
        failed += gone.size
        # A subject whose enrolment failed (-2) is neither there nor absent: its probes are left out.
        place = {s: i for i, s in enumerate(subjects.tolist())} | dict.fromkeys(gone.tolist(), -2)
        mate = np.array([place.get(subject, -1) for subject in people.tolist()], np.int64)
        kept = np.flatnonzero(mate != -2)
        if not (mate >= 0).any():
            raise InputError(
                f"{templates.name}: gallery {name}: no probe has its mate there; are the lists of one set?"
            )
        tasks.append(_Task(name, enrolled, probes[kept], kept, mate[kept]))
    counts = {
        "probes": int(probes.size),
        "gallery_templates": sum(task.enrolled.size for task in tasks),
        "people": int(np.unique(people).size),
        "failed_images": len(images.failures),
        "failed_probes": int(lost.size),
        "failed_gallery_templates": failed,
    }
    return tasks, people, counts


def _measure(
    task: _Task, found: Found, targets: Sequence[float], max_rank: int, drawn: Mapping[str, Array]
) -> GalleryResult:
    mated, alone = int(found.mated.sum()), int((~found.mated).sum())
    ranks = found.rank[found.mated]
    cmc = np.cumsum(np.bincount(np.minimum(ranks, _CMC_RANKS + 1), minlength=_CMC_RANKS + 2))[1:-1] / mated

    def around(name: str) -> Interval | None:
        values = drawn.get(f"{task.name}:{name}")
        return None if values is None else interval(values)

    tpir = _tpir(found, targets, max_rank)
    between = {f"{entry.target:g}": around(f"tpir@{entry.target:g}") for entry in tpir}
    det: dict[str, list[float]] = {"fpir": [], "fnir": []}
    if alone:
        scores, kind = _open_set(found, max_rank)
        fpir, fnir, thresholds = ScoreSplit.of(scores, kind).det(_DET_POINTS)
        real = thresholds > -np.inf
        det = {"fpir": fpir[real].tolist(), "fnir": fnir[real].tolist()}
    return GalleryResult(
        task.name, int(task.enrolled.size), mated, alone,
        {str(rank): Measure(float((ranks <= rank).mean()), around(f"rank-{rank}")) for rank in RANKS},
        cmc[: task.enrolled.size].tolist(), tpir,
        {target: one for target, one in between.items() if one is not None}, det,
    )  # fmt: skip


def _open_set(found: Found, max_rank: int) -> tuple[Array, Array]:
    """(scores, mated) whose "TMR at FMR" is TPIR at FPIR: mates' scores, and best ones of those alone."""
    scores = np.concatenate([found.identified(max_rank), found.best[~found.mated]])
    return scores, np.arange(scores.size) < int(found.mated.sum())


def _tpir(found: Found, targets: Sequence[float], max_rank: int) -> list[TpirAtFpir]:
    mated, alone = int(found.mated.sum()), int((~found.mated).sum())
    if not alone:
        why = "every probe has a mate in this gallery: a closed set"
        return [TpirAtFpir(t, None, None, None, None, None, None, mated, 0, why) for t in targets]
    scores, kind = _open_set(found, max_rank)
    entries = []
    for one in tmr_of_curve(sort_pairs(scores, kind).curve(), targets):
        if one.tmr is None or one.true_matches is None:
            why = unresolved_rate("FPIR", one.target, alone, "probes without a mate")
            entries.append(TpirAtFpir(one.target, *(None,) * 6, mated, alone, why))
            continue
        hits = one.true_matches
        if one.threshold == -np.inf:  # every probe alone is accepted, and then only rank decides
            hits = int((found.identified(max_rank) > -np.inf).sum())
        rates = hits / mated, 1 - hits / mated, one.fmr
        entries.append(TpirAtFpir(one.target, *rates, one.threshold, hits, one.false_matches, mated, alone))
    return entries


def _resample(
    tasks: Sequence[_Task],
    found: Mapping[str, Found],
    people: Array,
    targets: Sequence[float],
    max_rank: int,
    draws: int,
    seed: int,
) -> dict[str, Array]:
    """ "G1:rank-1", "G1:tpir@0.01", ... -> (draws,): the probes' people are drawn, the galleries stay."""
    prepared: list[tuple[_Task, Found, SortedPairs | None]] = []
    for task in tasks:
        one = found[task.name]
        prepared.append((task, one, None if one.mated.all() else sort_pairs(*_open_set(one, max_rank))))

    def statistic(weights: Array) -> dict[str, Array]:
        values = {}
        for task, one, pairs in prepared:
            own = weights[:, task.places]
            mated, alone = own[:, one.mated], own[:, ~one.mated]
            for rank in RANKS:
                values[f"{task.name}:rank-{rank}"] = mated @ (one.rank[one.mated] <= rank) / mated.sum(1)
            if pairs is None:
                continue
            most = mated @ (one.rank[one.mated] <= max_rank) / mated.sum(1)  # at FPIR 1 rank alone decides
            curve = pairs.curve(np.concatenate([mated, alone], 1))
            for target in targets:
                if allowed_errors(target, int((~one.mated).sum())) >= 1:
                    values[f"{task.name}:tpir@{target:g}"] = np.minimum(tmr_rates(curve, target), most)
        return values

    return bootstrap_subjects(statistic, people, people, draws=draws, seed=seed)


def _mean(galleries: Sequence[GalleryResult], drawn: Mapping[str, Array]) -> dict[str, Measure]:
    """Over galleries, of what all of them have."""
    values: dict[str, list[float]] = {}
    for gallery in galleries:
        for rank, measure in gallery.ranks.items():
            values.setdefault(f"rank-{rank}", []).append(measure.value)
        for entry in gallery.tpir:
            if entry.tpir is not None:
                values.setdefault(f"tpir@{entry.target:g}", []).append(entry.tpir)
    return {
        name: Measure(
            float(np.mean(column)),
            interval(np.mean([drawn[f"{g.gallery}:{name}"] for g in galleries], 0)) if drawn else None,
        )
        for name, column in values.items()
        if len(column) == len(galleries)
    }


def _mean_draws(tasks: Sequence[_Task], drawn: Mapping[str, Array], name: str) -> Array:
    mean: Array = np.mean([drawn[f"{task.name}:{name}"] for task in tasks], axis=0)
    return mean

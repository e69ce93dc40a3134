"""Risk-controlled recognition: which confidence removes the errors of open-set identification."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import bootstrap_subjects, interval
from spherecf.evaluation.open_set import (
    PROBE_CONFIDENCES,
    PRR_LIMIT,
    RISKS,
    Decisions,
    OpenSet,
    RejectionOrder,
    Searched,
    decide,
    divergences,
    fpir_threshold,
    gallery_confidences,
    log_risks,
    prr_of,
    prr_shares,
)
from spherecf.evaluation.results import Measure, plain, signature
from spherecf.evaluation.templates import (
    TemplateImages,
    TemplateSet,
    check_apart,
    find_images,
    missing_file,
    parse_mode,
    set_facts,
)

Array = NDArray[Any]

_RIDGE = 1.0  # a prior of standard deviation 1 on the standardised coefficients
_NEWTON = 50
_ABSENT = 1 / 8  # chance that a trial leaves a risk out


@dataclass(frozen=True, eq=False)
class RiskWeights:
    """Weights of the four risks, as natural logarithms (-inf for 0), the largest 0."""

    log_weights: Array
    prr: float
    """On the probes they were chosen on."""

    def confidence(self, log_risks: Array) -> Array:
        """Minus log of the weighted sum of risks."""
        with np.errstate(divide="ignore"):  # log 0: no risk at all
            terms = log_risks + self.log_weights
            peak = terms.max(1)
            base = np.where(np.isfinite(peak), peak, 0)
            return np.asarray(-(base + np.log(np.exp(terms - base[:, None]).sum(1))))

    def by_name(self) -> dict[str, float]:
        """Logarithm of each weight."""
        return dict(zip(RISKS, self.log_weights.tolist(), strict=True))


def fit_risk_weights(
    log_risks: Array, decisions: Decisions, *, limit: float, trials: int, seed: int
) -> RiskWeights | None:
    """Weights of the best PRR on these probes by random search; None where PRR is undefined.

    A weight is tried at the inverse of its risk in a random probe: only weights that bring two risks to one
    scale change their order, and these scales differ by hundreds of decades. The second half of the trials
    goes around the best of the first.

    Args:
        log_risks: (n, 4), see `log_risks`.
        decisions: of the n probes.
        limit: of the PRR.
        trials: number of weights tried.
        seed: of the search; the same seed, the same weights.
    """
    rng = np.random.default_rng(seed)
    shares = prr_shares(len(log_risks), limit)
    seen = [column[np.isfinite(column)] for column in log_risks.T]
    best: RiskWeights | None = None
    for trial in range(trials):
        if trial < 2:
            candidate = np.array([0.0, 0.0, 0.0, -np.inf if trial else 0.0])
        elif trial < trials // 2 or best is None:
            candidate = np.array([-rng.choice(values) if values.size else 0.0 for values in seen])
            candidate[rng.random(4) < _ABSENT] = -np.inf
        else:
            candidate = best.log_weights + rng.normal(size=4)
        if not np.isfinite(candidate).any():
            continue
        made = RiskWeights(candidate - candidate.max(), np.nan)
        prr = prr_of(RejectionOrder.of(made.confidence(log_risks)), decisions, shares)
        if prr > (best.prr if best else -np.inf):
            best = RiskWeights(made.log_weights, prr)
    return best


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Logistic regression of "the decision is right" on a quadratic form of both divergences."""

    mean: Array
    scale: Array
    coefficients: Array
    """Of 1, a, b, a^2, a b, b^2, a and b standardised."""

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists."""
        return {name: values.tolist() for name, values in vars(self).items()}

    def confidence(self, divergences: Array) -> Array:
        """Log odds that the decision is right."""
        return np.asarray(self._terms(divergences) @ self.coefficients)

    def _terms(self, divergences: Array) -> Array:
        a, b = ((divergences - self.mean) / self.scale).T
        return np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], axis=1)


def fit_calibrator(divergences: Array, wrong: Array) -> Calibrator | None:
    """Maximum a posteriori by Newton steps; None where all decisions are right, or all wrong.

    Args:
        divergences: (n, 2), see `divergences`.
        wrong: (n,) true where the decision was an error.
    """
    if wrong.all() or not wrong.any():
        return None
    scale = divergences.std(0)
    made = Calibrator(divergences.mean(0), np.where(scale > 0, scale, 1.0), np.zeros(6))
    x, right = made._terms(divergences), (~wrong).astype(np.float64)
    penalty = np.full(6, _RIDGE)
    penalty[0] = 1e-9  # of the constant: only enough to keep the system solvable
    w = made.coefficients
    for _ in range(_NEWTON):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, x.T @ (right - p) - penalty * w)
        w = w + step
        if np.abs(step).max() < 1e-10:
            break
    return Calibrator(made.mean, made.scale, w)


@dataclass(frozen=True)
class OperatingPoint:
    """The decisions at one FPIR, and what was fitted for it on the validation subjects."""

    fpir_target: float
    threshold: float | None
    fpir: float | None
    f1: float | None
    """With nothing rejected."""
    counts: dict[str, int]
    """``identified``, ``misidentified``, ``false_rejects``, ``false_accepts``, ``true_rejects``"""
    validation_errors: int
    log_weights: dict[str, float] | None
    """Natural logarithms of the four weights of MPRisk."""
    calibrator: dict[str, list[float]] | None
    """``mean``, ``scale``, ``coefficients`` of HolUE's."""
    unresolved: str | None = None
    """Why there are no ratios."""

    @classmethod
    def without(cls, fpir: float, reason: str) -> "OperatingPoint":
        """No threshold."""
        return cls(fpir, None, None, None, {}, 0, None, None, reason)


@dataclass(frozen=True)
class ConfidencePrr:
    """One confidence at one operating point."""

    confidence: str
    fpir_target: float
    prr: Measure
    minus_kappa: Measure
    """PRR minus that of kappa, on the same draws."""
    f1: list[float]
    """After rejecting each of ``RejectionReport.shares``."""
    signature: str


@dataclass(frozen=True)
class RejectionReport:
    """Result of `evaluate_rejection`; `to_dict` is JSON-able."""

    name: str
    counts: dict[str, int]
    """``gallery``, ``probes``, ``mated``, ``non_mated``, ``subjects``, and with ``validation_`` in front."""
    kappa_gallery: dict[str, float]
    """``posterior``: at the mean direction; ``mutual``: over the probe's distribution."""
    beta: float
    limit: float
    resampling: str
    points: list[OperatingPoint]
    shares: list[float]
    prr: list[ConfidencePrr]
    absent_confidences: list[str]
    """Known confidences that these probes lack."""

    def at(self, confidence: str, fpir: float) -> ConfidencePrr | None:
        """By confidence and FPIR target; None where unresolved or absent."""
        for entry in self.prr:
            if entry.confidence == confidence and entry.fpir_target == fpir:
                return entry
        return None

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` the F1 after each share is left out."""
        found: dict[str, Any] = plain(asdict(self))
        if not curves:
            del found["shares"]
            for entry in found["prr"]:
                del entry["f1"]
        return found


FPIR_TARGETS = (0.05, 0.1, 0.2)
SHARES = tuple(round(0.01 * i, 2) for i in range(96))
_BASE = "kappa"  # what the others are compared with


@dataclass(frozen=True)
class RejectionOptions:
    """What `evaluate_rejection` fits and measures.

    Attributes:
        fpirs: targets of the operating points; thresholds accept at most this share of the non-mated.
        validation_share: of the subjects, set apart to fit on, where no validation set is given.
        kappa_gallery: "likelihood" (fitted), "cosine" (A_d of it is the mean mated cosine), or a number.
        beta: prior probability that a probe is of nobody in the gallery.
        limit: largest rejected share of the PRR.
        trials: weights tried for MPRisk.
        draws: bootstrap draws; 0 for no intervals.
        seed: of the division, the search, the bootstrap and the random confidence.

    Raises:
        InputError: fewer than 0 draws or 2 trials.
    """

    fpirs: Sequence[float] = FPIR_TARGETS
    validation_share: float = 0.5
    kappa_gallery: str | float = "likelihood"
    beta: float = 0.5
    limit: float = PRR_LIMIT
    trials: int = 512
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 0 or self.trials < 2:
            raise InputError(f"expected draws >= 0 and trials >= 2, got {self.draws} and {self.trials}")


def evaluate_rejection(
    test: OpenSet,
    options: RejectionOptions = RejectionOptions(),
    *,
    name: str,
    validation: OpenSet | None = None,
    facts: Mapping[str, object] | None = None,
) -> RejectionReport:
    """PRR on F1 of every confidence, at every FPIR.

    kappa_g, the calibrator of HolUE and the weights of MPRisk are fitted on validation subjects, each part
    with its own gallery and thresholds; no subject is in both. Thresholds, kappa_g and fits are held in the
    bootstrap, which draws the subjects of the test probes.

    Args:
        test: gallery and probes, with further confidences of the probes where there are any.
        options: what is fitted and measured.
        name: of the protocol, e.g. "ijbc/G1".
        validation: gallery and probes of other people, with the same confidences, to fit on; the test is then
            of all probes. Default: a share of the subjects is set apart.
        facts: for the signature: hashes, pooling, alignment, ...

    Raises:
        InputError: see `OpenSet`; validation and test with a common subject; parameters out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> people = rng.normal(size=(60, 16))
        >>> who = np.repeat(np.arange(60), 3)
        >>> mu = people[who] + 0.5 * rng.normal(size=(180, 16))
        >>> mu = (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32)
        >>> from spherecf.scoring import pool_templates
        >>> t = pool_templates(mu, rng.uniform(20, 60, 180), np.arange(180))
        >>> enrolled, searched = np.arange(0, 120, 3), np.flatnonzero(np.arange(180) % 3 > 0)
        >>> test = OpenSet(t.select(enrolled), who[enrolled], t.select(searched), who[searched])
        >>> report = evaluate_rejection(test, RejectionOptions([0.1], draws=0, trials=20), name="toy")
        >>> report.at("oracle", 0.1).prr.value, report.counts["mated"]
        (1.0, 40)
    """
    seed, draws, beta, limit = options.seed, options.draws, options.beta, options.limit
    kappa_gallery, share, trials = options.kappa_gallery, options.validation_share, options.trials
    fit, test = (validation, test) if validation else test.divide(share, seed)
    _check_apart(fit, test)
    kappas = fit.gallery_kappas(kappa_gallery, beta)
    learning, tested = (_Side(part, part.search(kappas, beta, seed)) for part in (fit, test))
    resampling = f"subject-{draws}/{seed}" if draws else "none"
    signed = {
        **(facts or {}), "search": "cosine",
        "kappa_g": kappa_gallery if isinstance(kappa_gallery, str) else f"{kappa_gallery:g}",
        "beta": f"{beta:g}", "fit": "other-people" if validation else f"subjects-{share:g}/{seed}",
        "metric": "f1", "rejected": f"0-{limit:g}",
    }  # fmt: skip
    points, entries = [], []
    for fpir in options.fpirs:
        learned, why = learning.decide(fpir)
        made, also = tested.decide(fpir)
        if learned is None or made is None:
            points.append(OperatingPoint.without(fpir, also or f"{why} of the validation subjects"))
            continue
        weights = fit_risk_weights(
            log_risks(learning.search, learned.accepted), learned, limit=limit, trials=trials, seed=seed
        )
        calibrator = fit_calibrator(divergences(learning.search), learned.wrong)
        point = _summary(fpir, made, tested, int(learned.wrong.sum()), weights, calibrator)
        points.append(point)
        if point.unresolved is None:
            line = {**signed, "fpir": f"at-most-{fpir:g}", "ci": resampling}
            compared = _compare(
                tested.confidences(made, weights, calibrator), made, tested, limit, draws, seed
            )
            entries += [
                ConfidencePrr(label, fpir, *found, signature(f"{name}/open-set", **line, confidence=label))
                for label, found in compared.items()
            ]
    return RejectionReport(
        name=name,
        counts=_counts(tested, "") | _counts(learning, "validation_"),
        kappa_gallery={"posterior": kappas[0], "mutual": kappas[1]},
        beta=beta,
        limit=limit,
        resampling=resampling,
        points=points,
        shares=list(SHARES),
        prr=entries,
        absent_confidences=[known for known in PROBE_CONFIDENCES if known not in tested.search.own],
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """The validation or the test subjects, after their search."""

    data: OpenSet
    search: Searched

    def decide(self, fpir: float) -> tuple[Decisions | None, str | None]:
        """At the threshold of this side's own probes, or why there is none."""
        best, truth = self.search.posterior, self.data.truth
        threshold, why = fpir_threshold(best.best_cosine, truth >= 0, fpir)
        if threshold is None:
            return None, why
        first = (best.best == truth) & (best.best_cosine > best.second_cosine)  # a tie counts against it
        return decide(best.best_cosine, first, truth >= 0, threshold), None

    def confidences(
        self, made: Decisions, weights: RiskWeights | None, calibrator: Calibrator | None
    ) -> dict[str, Array]:
        """All of them, larger = surer; the oracle last."""
        found = {**self.search.own, **gallery_confidences(self.search, made)}
        if calibrator is not None:
            found["holue"] = calibrator.confidence(divergences(self.search))
        if weights is not None:
            found["mprisk"] = weights.confidence(log_risks(self.search, made.accepted))
        return found | {"oracle": (~made.wrong).astype(np.float64)}


def _summary(
    fpir: float, made: Decisions, side: _Side, errors: int,
    weights: RiskWeights | None, calibrator: Calibrator | None,
) -> OperatingPoint:  # fmt: skip
    mated = side.data.truth >= 0
    identified, wrong = int(made.identified.sum()), int(made.wrong.sum())
    false_accepts = int((~mated & made.accepted).sum())
    return OperatingPoint(
        fpir_target=fpir,
        threshold=made.threshold,
        fpir=false_accepts / int((~mated).sum()),
        f1=2 * identified / (2 * identified + wrong) if identified else 0.0,
        counts={
            "identified": identified,
            "misidentified": int(made.misidentified.sum()),
            "false_rejects": int((mated & ~made.accepted).sum()),
            "false_accepts": false_accepts,
            "true_rejects": int((~mated & ~made.accepted).sum()),
        },
        validation_errors=errors,
        log_weights=None if weights is None else weights.by_name(),
        calibrator=None if calibrator is None else calibrator.to_dict(),
        unresolved=None if identified and wrong else
        f"{identified} probes identified and {wrong} decided wrongly: rejecting cannot move F1",
    )  # fmt: skip


def _compare(
    confidences: Mapping[str, Array], made: Decisions, side: _Side, limit: float, draws: int, seed: int
) -> dict[str, tuple[Measure, Measure, list[float]]]:
    """PRR, PRR minus that of kappa on the same draws, and the curve, by confidence."""
    orders = {label: RejectionOrder.of(values) for label, values in confidences.items()}
    shares = prr_shares(made.wrong.size, limit)
    values = {label: prr_of(order, made, shares) for label, order in orders.items()}

    def statistic(weights: Array) -> dict[str, Array]:
        return {
            label: np.array([prr_of(order, made, shares, w) for w in weights])
            for label, order in orders.items()
        }

    subjects = np.asarray(side.data.probe_subjects)
    drawn = bootstrap_subjects(statistic, subjects, subjects, draws=draws, seed=seed) if draws else {}

    def measure(label: str, minus: str | None) -> Measure:
        value = values[label] - (values[minus] if minus else 0.0)
        return Measure(value, interval(drawn[label] - (drawn[minus] if minus else 0.0)) if draws else None)

    at = np.asarray(SHARES)
    return {
        label: (measure(label, None), measure(label, _BASE), order.f1(made, at).tolist())
        for label, order in orders.items()
    }


def _counts(side: _Side, mark: str) -> dict[str, int]:
    data, mated = side.data, int((side.data.truth >= 0).sum())
    return {
        f"{mark}gallery": len(data.gallery),
        f"{mark}probes": len(data.probes),
        f"{mark}mated": mated,
        f"{mark}non_mated": len(data.probes) - mated,
        f"{mark}subjects": int(np.unique(data.probe_subjects).size),
    }


def _check_apart(fit: OpenSet, test: OpenSet) -> None:
    first, second = (np.union1d(part.gallery_subjects, part.probe_subjects) for part in (fit, test))
    common = np.intersect1d(first, second)
    if common.size:
        raise InputError(
            f"validation: {common.size} subjects are also in the test, first {common[0]}; "
            "fits would see the people they are tested on"
        )


_IMAGE_CONFIDENCES = ("norm", "sharpness")


def evaluate_template_rejection(
    embeddings: Embeddings,
    templates: TemplateSet,
    options: RejectionOptions = RejectionOptions(),
    *,
    mode: str = "K1",
    galleries: Sequence[str] = (),
) -> dict[str, RejectionReport]:
    """`evaluate_rejection` of every gallery: probes whose subject is in another gallery are non-mated.

    Confidences of images (norm, sharpness, detector score, precision) become those of templates by the mean
    inside a medium, then over media. Templates without an embedded image are failures to acquire: counted,
    never searched; so are the probes of a subject whose gallery template failed.

    Args:
        embeddings: of the images, keys spelt as the set's file names.
        templates: from `spherecf.data.read_ijb`, with galleries and probes.
        options: as in `evaluate_rejection`.
        mode: how images become templates, e.g. "N0D0K1"; see docs/ijb.md.
        galleries: names; default: all.

    Returns:
        Report by name of the gallery.

    Raises:
        InputError: no galleries or probes, no image found, a mode that the embeddings lack, or as in
            `evaluate_rejection`.

    Example:
        >>> from spherecf.data import TemplateList, IjbMeta
        >>> rng = np.random.default_rng(0)
        >>> who = np.repeat(np.arange(40), 3)
        >>> mu = rng.normal(size=(40, 8))[who] + 0.6 * rng.normal(size=(120, 8))
        >>> names = [f"{i}.jpg" for i in range(120)]
        >>> e = Embeddings(mu / np.linalg.norm(mu, axis=1, keepdims=True), rng.uniform(1, 4, 120), names)
        >>> ids = np.arange(120)
        >>> gallery, probes = ids[::3][:20], ids[ids % 3 > 0]
        >>> meta = IjbMeta(
        ...     "toy", names, ids, ids, galleries={"G1": TemplateList(gallery, who[gallery])},
        ...     probes=TemplateList(probes, who[probes]),
        ... )
        >>> reports = evaluate_template_rejection(e, meta, RejectionOptions([0.2], draws=0, trials=10))
        >>> reports["G1"].counts["mated"], reports["G1"].at("oracle", 0.2).prr.value
        (20, 1.0)
    """  # fmt: skip
    if not templates.galleries or templates.probes is None:
        raise missing_file(templates, "galleries and probes are", "1N")
    unknown = [name for name in galleries if name not in templates.galleries]
    if unknown:
        raise InputError(f"gallery {unknown[0]!r} unknown, expected some of {', '.join(templates.galleries)}")
    images = find_images(embeddings, templates)
    pooling = parse_mode(mode, embeddings, images)
    pooled = pooling.pool(embeddings, images)
    columns = _columns(embeddings, images)
    if pooling.precision:
        del columns["precision"]  # the templates have their own
    facts = {**set_facts(embeddings, templates), "mode": pooling, "pool": f"media-mean+{pooling.pooling}"}
    found = {}
    for name in galleries or templates.galleries:
        enrolled, gallery_subjects, gone = images.split(templates.galleries[name])
        probes, searched, lost = images.split(templates.probes)
        check_apart(f"{templates.name}: gallery {name}", enrolled, probes)
        kept = ~np.isin(searched, gone)
        at = pooled.positions(probes[kept])
        test = OpenSet(
            pooled.select(pooled.positions(enrolled)), gallery_subjects, pooled.select(at), searched[kept],
            {key: column[at] for key, column in columns.items()},
        )  # fmt: skip
        report = evaluate_rejection(test, options, name=f"{templates.name}/{name}", facts=facts)
        failed = {"failed_gallery": int(gone.size), "failed_probes": int(lost.size + (~kept).sum())}
        found[name] = replace(report, counts=report.counts | failed)
    return found


def _columns(embeddings: Embeddings, images: TemplateImages) -> dict[str, Array]:
    """Confidences of the templates, in ascending order of id."""
    known = {
        name: embeddings.extras[name][images.rows] for name in _IMAGE_CONFIDENCES if name in embeddings.extras
    }
    if embeddings.log_precision is not None:
        known["precision"] = embeddings.log_precision.mean(1)[images.rows]
    if images.detector_score is not None:
        known["detector_score"] = images.detector_score
    pairs, medium = np.unique(np.stack([images.templates, images.media]), axis=1, return_inverse=True)
    _, owner = np.unique(pairs[0], return_inverse=True)
    found = {}
    for name, values in known.items():
        of_media = np.bincount(medium, values) / np.bincount(medium)
        found[name] = np.bincount(owner, of_media) / np.bincount(owner)
    return found

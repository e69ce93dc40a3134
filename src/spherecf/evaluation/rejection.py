"""Rejection in open-set identification: how well each confidence finds the wrong decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import bootstrap_subjects, check_draws, interval
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
    check_disjoint,
    find_images,
    missing_file,
    parse_mode,
    set_facts,
)

Array = NDArray[Any]

_RIDGE = 1.0  # a prior of standard deviation 1 on the standardised coefficients
_NEWTON_STEPS = 50
_OMIT_PROBABILITY = 1 / 8  # probability that a trial sets the weight of a risk to 0


@dataclass(frozen=True, eq=False)
class RiskWeights:
    """Weights of the four risks of MPRisk."""

    log_weights: Array
    """(4,) natural logarithms, -inf for weight 0; the maximum is 0."""
    prr: float
    """PRR on the probes on which the weights were chosen."""

    def confidence(self, log_risks: Array) -> Array:
        """(n,) minus the logarithm of the weighted sum of risks."""
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
    """Find the weights with the highest PRR on these probes by random search; None if PRR is undefined.

    The scales of the risks differ by hundreds of decades, and weights change the order of two probes only if
    they bring two risks to a common scale. Each candidate weight is therefore the inverse of its risk for a
    random probe. The second half of the trials perturbs the best candidate so far.

    Args:
        log_risks: (n, 4), see `log_risks`.
        decisions: decisions on the n probes.
        limit: maximum rejected share of the PRR.
        trials: number of candidates.
        seed: seed of the search, which is deterministic.
    """
    rng = np.random.default_rng(seed)
    shares = prr_shares(len(log_risks), limit)
    finite_risks = [column[np.isfinite(column)] for column in log_risks.T]
    best: RiskWeights | None = None
    for trial in range(trials):
        if trial < 2:
            candidate = np.array([0.0, 0.0, 0.0, -np.inf if trial else 0.0])
        elif trial < trials // 2 or best is None:
            candidate = np.array([-rng.choice(values) if values.size else 0.0 for values in finite_risks])
            candidate[rng.random(4) < _OMIT_PROBABILITY] = -np.inf
        else:
            candidate = best.log_weights + rng.normal(size=4)
        if not np.isfinite(candidate).any():
            continue
        weights = RiskWeights(candidate - candidate.max(), np.nan)
        prr = prr_of(RejectionOrder.of(weights.confidence(log_risks)), decisions, shares)
        if prr > (best.prr if best else -np.inf):
            best = RiskWeights(weights.log_weights, prr)
    return best


@dataclass(frozen=True, eq=False)
class Calibrator:
    """HolUE's logistic regression of the decision being right on a quadratic form of both divergences."""

    mean: Array
    """(2,) means, used for standardisation."""
    scale: Array
    """(2,) standard deviations."""
    coefficients: Array
    """(6,) coefficients of 1, a, b, a^2, a b, b^2 for the standardised divergences a and b."""

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists."""
        return {name: values.tolist() for name, values in vars(self).items()}

    def confidence(self, divergences: Array) -> Array:
        """(n,) log odds that the decision is right."""
        return np.asarray(self._terms(divergences) @ self.coefficients)

    def _terms(self, divergences: Array) -> Array:
        a, b = ((divergences - self.mean) / self.scale).T
        return np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], axis=1)


def fit_calibrator(divergences: Array, wrong: Array) -> Calibrator | None:
    """Fit the calibrator by maximum a posteriori with Newton steps.

    Args:
        divergences: (n, 2), see `divergences`.
        wrong: (n,) true where the decision is an error.

    Returns:
        The calibrator; None if all decisions are right or all are wrong.
    """
    if wrong.all() or not wrong.any():
        return None
    scale = divergences.std(0)
    initial = Calibrator(divergences.mean(0), np.where(scale > 0, scale, 1.0), np.zeros(6))
    x, right = initial._terms(divergences), (~wrong).astype(np.float64)
    penalty = np.full(6, _RIDGE)
    penalty[0] = 1e-9  # the constant term: just enough to keep the system solvable
    w = initial.coefficients
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, x.T @ (right - p) - penalty * w)
        w = w + step
        if np.abs(step).max() < 1e-10:
            break
    return Calibrator(initial.mean, initial.scale, w)


@dataclass(frozen=True)
class OperatingPoint:
    """The decisions at one FPIR, and the parameters fitted for it on the validation subjects."""

    fpir_target: float
    threshold: float | None
    fpir: float | None
    f1: float | None
    """F1 without rejection."""
    counts: dict[str, int]
    """``identified``, ``misidentified``, ``false_rejects``, ``false_accepts``, ``true_rejects``"""
    validation_errors: int
    log_weights: dict[str, float] | None
    """Natural logarithms of the four weights of MPRisk."""
    calibrator: dict[str, list[float]] | None
    """``mean``, ``scale`` and ``coefficients`` of HolUE's calibrator."""
    unresolved: str | None = None
    """Why there is no PRR."""

    @classmethod
    def without(cls, fpir: float, reason: str) -> "OperatingPoint":
        """An unresolved operating point, without a threshold."""
        return cls(fpir, None, None, None, {}, 0, None, None, reason)


@dataclass(frozen=True)
class ConfidencePrr:
    """PRR of one confidence at one operating point."""

    confidence: str
    fpir_target: float
    prr: Measure
    minus_kappa: Measure
    """PRR minus that of kappa, on the same bootstrap draws."""
    f1: list[float]
    """F1 after rejecting each of ``RejectionReport.shares``."""
    signature: str


@dataclass(frozen=True)
class RejectionReport:
    """Result of `evaluate_rejection`; `to_dict` is JSON-serialisable."""

    name: str
    counts: dict[str, int]
    """``gallery``, ``probes``, ``mated``, ``non_mated``, ``subjects``; also with prefix ``validation_``."""
    kappa_gallery: dict[str, float]
    """Gallery concentration for the probes' mean directions (``posterior``) or distributions (``mutual``)."""
    beta: float
    limit: float
    resampling: str
    points: list[OperatingPoint]
    shares: list[float]
    prr: list[ConfidencePrr]
    absent_confidences: list[str]
    """Standard confidences that these probes do not have."""

    def at(self, confidence: str, fpir: float) -> ConfidencePrr | None:
        """The entry of a confidence at an FPIR target; None if unresolved or absent."""
        for entry in self.prr:
            if entry.confidence == confidence and entry.fpir_target == fpir:
                return entry
        return None

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` the F1 curves are left out."""
        report: dict[str, Any] = plain(asdict(self))
        if not curves:
            del report["shares"]
            for entry in report["prr"]:
                del entry["f1"]
        return report


FPIR_TARGETS = (0.05, 0.1, 0.2)
SHARES = tuple(round(0.01 * i, 2) for i in range(96))
_REFERENCE = "kappa"  # the confidence with which all others are compared


@dataclass(frozen=True)
class RejectionOptions:
    """Options of `evaluate_rejection`.

    Attributes:
        fpirs: FPIR targets of the operating points; at most this share of the non-mated probes is accepted.
        validation_share: share of the subjects to fit on, if there is no validation set.
        kappa_gallery: gallery concentration: "likelihood" (maximum likelihood), "cosine" (the kappa whose
            A_d(kappa) is the mean mated cosine), or a number.
        beta: prior probability that a probe's subject is not enrolled.
        limit: maximum rejected share of the PRR.
        trials: candidates in the search for MPRisk's weights.
        draws: bootstrap draws; 0 for no intervals.
        seed: seed of the division of subjects, the search, the bootstrap and the random confidence.

    Raises:
        InputError: ``draws`` or ``seed`` is negative, or ``trials`` is less than 2.
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
        check_draws(self.draws, self.seed)
        if self.trials < 2:
            raise InputError(f"trials: expected 2 or more, got {self.trials}")


def evaluate_rejection(
    test: OpenSet,
    options: RejectionOptions = RejectionOptions(),
    *,
    name: str,
    validation: OpenSet | None = None,
    facts: Mapping[str, object] | None = None,
) -> RejectionReport:
    """PRR of F1 for every confidence at every FPIR target.

    The gallery concentration, HolUE's calibrator and MPRisk's weights are fitted on validation subjects. The
    validation and test parts have separate galleries and thresholds and no subject in common. The bootstrap
    draws the subjects of the test probes; thresholds and fitted parameters are fixed.

    Args:
        test: gallery and probes, optionally with further confidences of the probes.
        options: FPIR targets and settings of fits and bootstrap.
        name: name of the protocol, e.g. "ijbc/G1".
        validation: gallery and probes of other people with the same confidences, to fit on; all of ``test``
            is then used for testing. Default: a share of the subjects of ``test``.
        facts: facts for the signature: hashes, pooling, alignment, ...

    Raises:
        InputError: see `OpenSet`; validation and test have a common subject; a parameter is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> centres = rng.normal(size=(60, 16))
        >>> subject = np.repeat(np.arange(60), 3)
        >>> mu = centres[subject] + 0.5 * rng.normal(size=(180, 16))
        >>> mu = (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32)
        >>> from spherecf.scoring import pool_templates
        >>> t = pool_templates(mu, rng.uniform(20, 60, 180), np.arange(180))
        >>> enrolled, probes = np.arange(0, 120, 3), np.flatnonzero(np.arange(180) % 3 > 0)
        >>> test = OpenSet(t.select(enrolled), subject[enrolled], t.select(probes), subject[probes])
        >>> report = evaluate_rejection(test, RejectionOptions([0.1], draws=0, trials=20), name="toy")
        >>> report.at("oracle", 0.1).prr.value, report.counts["mated"]
        (1.0, 40)
    """
    seed, draws, beta, limit = options.seed, options.draws, options.beta, options.limit
    kappa_gallery, share, trials = options.kappa_gallery, options.validation_share, options.trials
    validation_set, test = (validation, test) if validation else test.divide(share, seed)
    _check_disjoint_subjects(validation_set, test)
    kappas = validation_set.gallery_kappas(kappa_gallery, beta)
    validation_part, test_part = (
        _SearchedPart(part, part.search(kappas, beta, seed)) for part in (validation_set, test)
    )
    resampling = f"subject-{draws}/{seed}" if draws else "none"
    signature_facts = {
        **(facts or {}), "search": "cosine",
        "kappa_g": kappa_gallery if isinstance(kappa_gallery, str) else f"{kappa_gallery:g}",
        "beta": f"{beta:g}", "fit": "other-people" if validation else f"subjects-{share:g}/{seed}",
        "metric": "f1", "rejected": f"0-{limit:g}",
    }  # fmt: skip
    points, entries = [], []
    for fpir in options.fpirs:
        validation_decisions, validation_reason = validation_part.decide(fpir)
        decisions, reason = test_part.decide(fpir)
        if validation_decisions is None or decisions is None:
            unresolved = reason or f"{validation_reason} of the validation subjects"
            points.append(OperatingPoint.without(fpir, unresolved))
            continue
        risks = log_risks(validation_part.search, validation_decisions.accepted)
        weights = fit_risk_weights(risks, validation_decisions, limit=limit, trials=trials, seed=seed)
        calibrator = fit_calibrator(divergences(validation_part.search), validation_decisions.wrong)
        n_errors = int(validation_decisions.wrong.sum())
        point = _operating_point(fpir, decisions, test_part, n_errors, weights, calibrator)
        points.append(point)
        if point.unresolved is None:
            point_facts = {**signature_facts, "fpir": f"at-most-{fpir:g}", "ci": resampling}
            confidences = test_part.confidences(decisions, weights, calibrator)
            compared = _compare(confidences, decisions, test_part, limit, draws, seed)
            entries += [
                ConfidencePrr(
                    label, fpir, *results, signature(f"{name}/open-set", **point_facts, confidence=label)
                )
                for label, results in compared.items()
            ]
    return RejectionReport(
        name=name,
        counts=_counts(test_part, "") | _counts(validation_part, "validation_"),
        kappa_gallery={"posterior": kappas[0], "mutual": kappas[1]},
        beta=beta,
        limit=limit,
        resampling=resampling,
        points=points,
        shares=list(SHARES),
        prr=entries,
        absent_confidences=[c for c in PROBE_CONFIDENCES if c not in test_part.search.confidences],
    )


@dataclass(frozen=True, eq=False)
class _SearchedPart:
    """The validation or the test part, with the results of its search."""

    data: OpenSet
    search: Searched

    def decide(self, fpir: float) -> tuple[Decisions | None, str | None]:
        """Decisions at the threshold set on the probes of this part, or the reason why there is none."""
        posterior, truth = self.search.posterior, self.data.truth
        threshold, reason = fpir_threshold(posterior.best_cosine, truth >= 0, fpir)
        if threshold is None:
            return None, reason
        # A mate that ties with another entry does not count as found.
        right = (posterior.best == truth) & (posterior.best_cosine > posterior.second_cosine)
        return decide(posterior.best_cosine, right, truth >= 0, threshold), None

    def confidences(
        self, decisions: Decisions, weights: RiskWeights | None, calibrator: Calibrator | None
    ) -> dict[str, Array]:
        """All confidences by name, larger = more confident, with the oracle last."""
        confidences = {**self.search.confidences, **gallery_confidences(self.search, decisions)}
        if calibrator is not None:
            confidences["holue"] = calibrator.confidence(divergences(self.search))
        if weights is not None:
            confidences["mprisk"] = weights.confidence(log_risks(self.search, decisions.accepted))
        return confidences | {"oracle": (~decisions.wrong).astype(np.float64)}


def _operating_point(
    fpir: float, decisions: Decisions, part: _SearchedPart, validation_errors: int,
    weights: RiskWeights | None, calibrator: Calibrator | None,
) -> OperatingPoint:  # fmt: skip
    mated = part.data.truth >= 0
    identified, wrong = int(decisions.identified.sum()), int(decisions.wrong.sum())
    false_accepts = int((~mated & decisions.accepted).sum())
    return OperatingPoint(
        fpir_target=fpir,
        threshold=decisions.threshold,
        fpir=false_accepts / int((~mated).sum()),
        f1=2 * identified / (2 * identified + wrong) if identified else 0.0,
        counts={
            "identified": identified,
            "misidentified": int(decisions.misidentified.sum()),
            "false_rejects": int((mated & ~decisions.accepted).sum()),
            "false_accepts": false_accepts,
            "true_rejects": int((~mated & ~decisions.accepted).sum()),
        },
        validation_errors=validation_errors,
        log_weights=None if weights is None else weights.by_name(),
        calibrator=None if calibrator is None else calibrator.to_dict(),
        unresolved=None if identified and wrong else
        f"{identified} probes identified and {wrong} wrong decisions: rejection cannot change F1",
    )  # fmt: skip


def _compare(
    confidences: Mapping[str, Array],
    decisions: Decisions,
    part: _SearchedPart,
    limit: float,
    draws: int,
    seed: int,
) -> dict[str, tuple[Measure, Measure, list[float]]]:
    """For each confidence: PRR, PRR minus that of kappa on the same draws, and the F1 curve."""
    orders = {label: RejectionOrder.of(values) for label, values in confidences.items()}
    shares = prr_shares(decisions.wrong.size, limit)
    values = {label: prr_of(order, decisions, shares) for label, order in orders.items()}

    def statistic(weights: Array) -> dict[str, Array]:
        return {
            label: np.array([prr_of(order, decisions, shares, w) for w in weights])
            for label, order in orders.items()
        }

    subjects = np.asarray(part.data.probe_subjects)
    drawn = bootstrap_subjects(statistic, subjects, subjects, draws=draws, seed=seed) if draws else {}

    def measure(label: str, minus: str | None) -> Measure:
        value = values[label] - (values[minus] if minus else 0.0)
        return Measure(value, interval(drawn[label] - (drawn[minus] if minus else 0.0)) if draws else None)

    plotted_shares = np.asarray(SHARES)
    return {
        label: (
            measure(label, None), measure(label, _REFERENCE), order.f1(decisions, plotted_shares).tolist()
        )
        for label, order in orders.items()
    }  # fmt: skip


def _counts(part: _SearchedPart, prefix: str) -> dict[str, int]:
    data, n_mated = part.data, int((part.data.truth >= 0).sum())
    return {
        f"{prefix}gallery": len(data.gallery),
        f"{prefix}probes": len(data.probes),
        f"{prefix}mated": n_mated,
        f"{prefix}non_mated": len(data.probes) - n_mated,
        f"{prefix}subjects": int(np.unique(data.probe_subjects).size),
    }


def _check_disjoint_subjects(validation: OpenSet, test: OpenSet) -> None:
    first, second = (np.union1d(part.gallery_subjects, part.probe_subjects) for part in (validation, test))
    common = np.intersect1d(first, second)
    if common.size:
        raise InputError(
            f"validation: {common.size} subjects are also in the test set, first {common[0]}; the two sets "
            "must have no subject in common"
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
    """Apply `evaluate_rejection` to each gallery; probes of subjects in other galleries are non-mated.

    Confidences of images (norm, sharpness, detector score, precision) are averaged within each medium, then
    over the media of a template. Templates without an embedded image are failures to acquire: they are
    counted, but not searched. The same holds for probes of a subject whose gallery template failed.

    Args:
        embeddings: embeddings of the images; the keys are the set's file names.
        templates: template set with galleries and probes, from `spherecf.data.read_ijb`.
        options: as in `evaluate_rejection`.
        mode: pooling mode, e.g. "N0D0K1"; see docs/ijb.md.
        galleries: names of the galleries; default: all.

    Returns:
        Report by name of the gallery.

    Raises:
        InputError: the set has no galleries or probes, no image is embedded, the embeddings lack what the
            mode needs, or as in `evaluate_rejection`.

    Example:
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.data import TemplateList, IjbMeta
        >>> rng = np.random.default_rng(0)
        >>> subject = np.repeat(np.arange(40), 3)
        >>> mu = rng.normal(size=(40, 8))[subject] + 0.6 * rng.normal(size=(120, 8))
        >>> names = [f"{i}.jpg" for i in range(120)]
        >>> e = Embeddings(mu / np.linalg.norm(mu, axis=1, keepdims=True), rng.uniform(1, 4, 120), names)
        >>> ids = np.arange(120)
        >>> gallery, probes = ids[::3][:20], ids[ids % 3 > 0]
        >>> meta = IjbMeta(
        ...     "toy", names, ids, ids, galleries={"G1": TemplateList(gallery, subject[gallery])},
        ...     probes=TemplateList(probes, subject[probes]),
        ... )
        >>> reports = evaluate_template_rejection(e, meta, RejectionOptions([0.2], draws=0, trials=10))
        >>> reports["G1"].counts["mated"], reports["G1"].at("oracle", 0.2).prr.value
        (20, 1.0)
    """  # fmt: skip
    if not templates.galleries or templates.probes is None:
        raise missing_file(templates, "galleries and probes are", "1N")
    unknown = [name for name in galleries if name not in templates.galleries]
    if unknown:
        raise InputError(f"gallery {unknown[0]!r} unknown, expected any of {', '.join(templates.galleries)}")
    images = find_images(embeddings, templates)
    pooling = parse_mode(mode, embeddings, images)
    pooled = pooling.pool(embeddings, images)
    columns = _template_confidences(embeddings, images)
    if pooling.precision:
        del columns["precision"]  # the pooled templates have a precision
    facts = {**set_facts(embeddings, templates), "mode": pooling, "pool": f"media-mean+{pooling.pooling}"}
    reports = {}
    for name in galleries or templates.galleries:
        enrolled, gallery_subjects, failed_subjects = images.split(templates.galleries[name])
        probes, probe_subjects, failed_probes = images.split(templates.probes)
        check_disjoint(f"{templates.name}: gallery {name}", enrolled, probes)
        is_searched = ~np.isin(probe_subjects, failed_subjects)
        positions = pooled.positions(probes[is_searched])
        test = OpenSet(
            pooled.select(pooled.positions(enrolled)), gallery_subjects,
            pooled.select(positions), probe_subjects[is_searched],
            {key: column[positions] for key, column in columns.items()},
        )  # fmt: skip
        report = evaluate_rejection(test, options, name=f"{templates.name}/{name}", facts=facts)
        failures = {
            "failed_gallery": int(failed_subjects.size),
            "failed_probes": int(failed_probes.size + (~is_searched).sum()),
        }
        reports[name] = replace(report, counts=report.counts | failures)
    return reports


def _template_confidences(embeddings: Embeddings, images: TemplateImages) -> dict[str, Array]:
    """Confidences of the templates by name, (templates,) each in ascending order of template id."""
    image_values = {
        name: embeddings.extras[name][images.rows] for name in _IMAGE_CONFIDENCES if name in embeddings.extras
    }
    if embeddings.log_precision is not None:
        image_values["precision"] = embeddings.log_precision.mean(1)[images.rows]
    if images.detector_score is not None:
        image_values["detector_score"] = images.detector_score
    # Rows: template and medium; columns: the distinct media of each template.
    media, medium = np.unique(np.stack([images.templates, images.media]), axis=1, return_inverse=True)
    _, template = np.unique(media[0], return_inverse=True)
    confidences = {}
    for name, values in image_values.items():
        medium_means = np.bincount(medium, values) / np.bincount(medium)
        confidences[name] = np.bincount(template, medium_means) / np.bincount(template)
    return confidences

"""Risk-controlled recognition: which confidence removes the errors of open-set identification?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError
from spherecf.evaluation._bootstrap import bootstrap_subjects, interval
from spherecf.evaluation._open_set import OpenSet
from spherecf.evaluation._prr import (
    PRR_LIMIT,
    Decisions,
    RejectionOrder,
    decide,
    fpir_threshold,
    prr_of,
    prr_shares,
)
from spherecf.evaluation._result import Measure
from spherecf.evaluation._risk_fit import Calibrator, RiskWeights, fit_calibrator, fit_risk_weights
from spherecf.evaluation._risk_result import ConfidencePrr, OperatingPoint, RejectionReport
from spherecf.evaluation._signature import signature
from spherecf.evaluation._uncertainty import (
    PROBE_CONFIDENCES,
    Searched,
    divergences,
    gallery_confidences,
    log_risks,
)
from spherecf.scoring import Templates

Array = NDArray[Any]

FPIR_TARGETS = (0.05, 0.1, 0.2)
SHARES = tuple(round(0.01 * i, 2) for i in range(96))
_BASE = "kappa"  # what the others are compared with


def evaluate_rejection(
    gallery: Templates,
    gallery_subjects: ArrayLike,
    probes: Templates,
    probe_subjects: ArrayLike,
    *,
    name: str,
    confidences: Mapping[str, ArrayLike] | None = None,
    validation: OpenSet | None = None,
    validation_share: float = 0.5,
    fpirs: Sequence[float] = FPIR_TARGETS,
    kappa_gallery: str | float = "likelihood",
    beta: float = 0.5,
    limit: float = PRR_LIMIT,
    trials: int = 512,
    draws: int = 1000,
    seed: int = 0,
    facts: Mapping[str, object] | None = None,
) -> RejectionReport:
    """PRR on F1 of every confidence, at every FPIR.

    kappa_g, the calibrator of HolUE and the weights of MPRisk are fitted on validation subjects, each part
    with its own gallery and thresholds; no subject is in both. Thresholds, kappa_g and fits are held in the
    bootstrap, which draws the subjects of the test probes.

    Args:
        gallery: one template per subject.
        gallery_subjects: (k,) subject of each.
        probes: templates to search.
        probe_subjects: (n,) subject of each; those not in the gallery are non-mated.
        name: of the protocol, e.g. "ijbc/G1".
        confidences: further confidences of the probes, (n,) each, larger = surer.
        validation: gallery and probes of other people, with the same confidences, to fit on; the test is then
            of all probes. Default: a share of the subjects is set apart.
        validation_share: of the subjects, where ``validation`` is not given.
        fpirs: targets of the operating points; thresholds accept at most this share of the non-mated.
        kappa_gallery: "likelihood" (fitted), "cosine" (A_d of it is the mean mated cosine), or a number.
        beta: prior probability that a probe is of nobody in the gallery.
        limit: largest rejected share of the PRR.
        trials: weights tried for MPRisk.
        draws: bootstrap draws; 0 for no intervals.
        seed: of the division, the search, the bootstrap and the random confidence.
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
        >>> report = evaluate_rejection(
        ...     t.select(enrolled),
        ...     who[enrolled],
        ...     t.select(searched),
        ...     who[searched],
        ...     name="toy",
        ...     fpirs=[0.1],
        ...     draws=0,
        ...     trials=20,
        ... )
        >>> report.at("oracle", 0.1).prr.value, report.counts["mated"]
        (1.0, 40)
    """
    everyone = OpenSet(gallery, gallery_subjects, probes, probe_subjects, confidences)
    fit, test = (validation, everyone) if validation else everyone.divide(validation_share, seed)
    _check_apart(fit, test)
    if draws < 0 or trials < 2:
        raise InputError(f"expected draws >= 0 and trials >= 2, got {draws} and {trials}")
    kappas = fit.gallery_kappas(kappa_gallery, beta)
    learning, tested = (_Side(part, part.search(kappas, beta, seed)) for part in (fit, test))
    resampling = f"subject-{draws}/{seed}" if draws else "none"
    signed = {
        **(facts or {}), "search": "cosine",
        "kappa_g": kappa_gallery if isinstance(kappa_gallery, str) else f"{kappa_gallery:g}",
        "beta": f"{beta:g}", "fit": "other-people" if validation else f"subjects-{validation_share:g}/{seed}",
        "metric": "f1", "rejected": f"0-{limit:g}",
    }  # fmt: skip
    points, entries = [], []
    for fpir in fpirs:
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

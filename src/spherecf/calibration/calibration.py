"""The calibration that is saved with a model and valid only for it, and its fit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Discriminator, Tag

from spherecf.calibration.calibrators import IsotonicCalibrator, KappaScale, LogisticCalibrator
from spherecf.calibration.checks import Numbers, real_numbers
from spherecf.calibration.decisions import DecisionRule, ThresholdEntry, ThresholdTable
from spherecf.calibration.evidence import ConditionalCalibrator, Sides
from spherecf.common.parsing import checked
from spherecf.errors import InputError, ModelError

FORMAT, VERSION = "spherecf.calibration", 2
_PLAIN_VERSION = 1  # written if the calibration has neither evidence nor extrapolated rules

PAIR_SCORE, TEMPLATE_SCORE = "mls", "mls-template"
"""Names of the mutual likelihood score of two images, and of a template against one image. A calibration may
have only the first."""
PAIR_EVIDENCE, TEMPLATE_EVIDENCE, TEMPLATES_EVIDENCE = "evidence", "evidence-template", "evidence-templates"
"""Names of the evidence of two images, of a template against one image, and of two templates."""
GALLERY_SCORES = (
    (PAIR_EVIDENCE, PAIR_SCORE),
    (TEMPLATE_EVIDENCE, TEMPLATE_SCORE, PAIR_EVIDENCE, PAIR_SCORE),
)
"""Scores whose rules a gallery search may use, the best first: for templates of one image, and of several."""


def _kind(facts: Any) -> str | None:
    """The kind of calibrator that saved data describe, or None if they are damaged."""
    kind = facts.get("kind") if isinstance(facts, dict) else None
    return kind if isinstance(kind, str) else None


Calibrator = Annotated[
    Annotated[LogisticCalibrator, Tag("logistic")]
    | Annotated[IsotonicCalibrator, Tag("isotonic")]
    | Annotated[ConditionalCalibrator, Tag("conditional")],
    Discriminator(_kind),
]

CALIBRATORS: dict[str, type[LogisticCalibrator] | type[IsotonicCalibrator]] = {
    "logistic": LogisticCalibrator,
    "isotonic": IsotonicCalibrator,
}


@dataclass(frozen=True)
class Calibration:
    """The scale of kappa, likelihood ratios, thresholds and decision rules of one model.

    Args:
        model: fingerprint of the model (`spherecf.models.ConfidenceModel.fingerprint`). The calibration is
            valid only for the kappas and scores of that model.
        data: hash of the data it was fitted on.
        kappa: maps kappa to a percentile and an ISO integer.
        likelihood: the calibrator of each score, by name.
        thresholds: the threshold table of each score, by name.
        decisions: decision rules, in order of preference.
        record: provenance as JSON values: pairs, alignment, flip, view, counts, versions.

    Raises:
        InputError: a calibrator or table is for another score than its name says.

    Example:
        >>> scores, mated = [0.1, 0.2, 0.5, 0.4, 0.7, 0.9], [0, 0, 0, 1, 1, 1]
        >>> from spherecf.calibration import fit_calibration
        >>> c = fit_calibration(
        ...     model="f" * 64,
        ...     data="d" * 64,
        ...     mated=mated,
        ...     scores={"cosine": scores},
        ...     kappa=KappaScale.fit([20.0, 30.0, 60.0], dim=128, population="three faces"),
        ...     targets=[0.4],
        ... )
        >>> c.llr("cosine", [0.1, 0.9]).round(2).tolist(), c.threshold("cosine", 0.4).threshold
        ([-1.39, 1.39], 0.4)
        >>> Calibration.from_dict(c.to_dict(), model="f" * 64) == c
        True
    """

    model: str
    data: str
    kappa: KappaScale | None = None
    likelihood: Mapping[str, Calibrator] = field(default_factory=dict)
    thresholds: Mapping[str, ThresholdTable] = field(default_factory=dict)
    decisions: tuple[DecisionRule, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, part in (*self.likelihood.items(), *self.thresholds.items()):
            if part.score != name:
                raise InputError(f"calibration: the entry {name!r} is for the score {part.score!r}")

    def __repr__(self) -> str:
        parts = {
            "kappa": "none" if self.kappa is None else f"{len(self.kappa.log_kappa)} knots",
            "likelihood": ", ".join(self.likelihood) or "none",
            "thresholds": ", ".join(self.thresholds) or "none",
            "decisions": f"{len(self.decisions)} rules",
        }
        summary = "; ".join(f"{name}: {part}" for name, part in parts.items())
        return f"Calibration({summary}; model={self.model[:12]}..., data={self.data[:12]}...)"

    def llr(
        self, score: str, values: Numbers, radius: float | None = None, *, kappas: Sides | None = None
    ) -> NDArray[Any]:
        """The natural-log likelihood ratios of scores.

        Args:
            score: name of the score: "cosine", "mls", "evidence", ...
            values: the scores, of any shape; for evidence, the mutual likelihood scores.
            radius: r of the scores, if they have one; it must be that of the fit.
            kappas: concentrations of the left and of the right sides, needed for evidence.

        Raises:
            InputError: there is no calibrator for this score, the radius differs, or evidence has no
                concentrations.
        """
        calibrator: Calibrator = _lookup(self.likelihood, score, "likelihood ratio")
        _check_radius(score, calibrator.radius, radius)
        if not isinstance(calibrator, ConditionalCalibrator):
            return calibrator(values)
        if kappas is None:
            raise InputError(f"{score}: the likelihood ratio needs the kappas of both sides; pass kappas")
        return calibrator.llr(values, kappas)

    def evidence(self, score: str, values: Numbers, cosines: Numbers, kappas: Sides) -> NDArray[Any]:
        """The values to which the decision rules of a score apply: evidence, or the scores themselves.

        Args:
            score: name of the rule's score.
            values: mutual likelihood scores of pairs, of any shape.
            cosines: cosines of the same pairs.
            kappas: concentrations of their left and right sides.

        Raises:
            InputError: evidence was not calibrated for this kind of pair; the message lists what is
                available.
        """
        if score.startswith(PAIR_EVIDENCE) or score in self.likelihood:
            calibrator: Calibrator = _lookup(self.likelihood, score, "evidence")
            if isinstance(calibrator, ConditionalCalibrator):
                return calibrator.evidence(values, cosines, kappas)
        return real_numbers(cosines if score == "cosine" else values, score).astype(np.float64, copy=False)

    def best_score(self, templates: int = 0, *, evidence: bool = True) -> str:
        """The name of the most accurate score of a pair for which there is a likelihood ratio.

        Args:
            templates: number of sides (0, 1 or 2) that are templates of several images.
            evidence: False excludes evidence, which needs the kappas of both sides.

        Example:
            >>> Calibration("f" * 64, "d" * 64).best_score(1)
            'mls'
        """
        names = _scores_by_preference(templates)[not evidence :]
        return next((name for name in names if name in self.likelihood), PAIR_SCORE)

    def best_decision(self, alpha: float, templates: int = 0) -> DecisionRule:
        """The rule with this bound on the false match rate, for the most accurate score of a pair.

        Args:
            alpha: bound on the false match rate.
            templates: number of sides (0, 1 or 2) that are templates of several images.

        Raises:
            InputError: there is no such rule; the message lists the available rates.
        """
        scores = _scores_by_preference(templates)
        rules = [rule for rule in self.decisions if rule.error == "fmr" and rule.score in scores]
        for score in scores:
            for rule in rules:
                if (rule.score, rule.alpha) == (score, alpha):
                    return rule
        rates = ", ".join(f"{rate:g}" for rate in sorted({rule.alpha for rule in rules}, reverse=True))
        raise InputError(
            f"no decision rule for a false match rate of {alpha}; there are rules for {rates or 'no rate'}"
        )

    def threshold(self, score: str, target: float) -> ThresholdEntry:
        """The `ThresholdEntry` of a score at an FMR target.

        Raises:
            InputError: there is no table for the score, or no such target in it.
        """
        table: ThresholdTable = _lookup(self.thresholds, score, "threshold table")
        return table.at(target)

    def decision(self, score: str, *, error: str | None = None, alpha: float | None = None) -> DecisionRule:
        """The first rule for a score, with this error and bound if they are given.

        Raises:
            InputError: there is no such rule; the message lists the available ones.
        """
        for rule in self.decisions:
            if rule.score == score and error in (None, rule.error) and alpha in (None, rule.alpha):
                return rule
        available = ", ".join(f"{rule.score} {rule.error} <= {rule.alpha:g}" for rule in self.decisions)
        raise InputError(
            f"no decision rule for {score}, {error or 'any error'}; there are: {available or 'none'}"
        )

    def require(self, model: str) -> "Calibration":
        """The calibration itself, if it was made for this model.

        Raises:
            ModelError: it was made for another model; the message has both fingerprints.
        """
        if model != self.model:
            raise ModelError(
                f"the calibration was made for the model {self.model}, this is the model {model}: their "
                "kappas and scores differ; calibrate this one with `spherecf evaluate calibration --save`"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON values, with format and version."""
        return {
            "format": FORMAT,
            "version": self._version(),
            "model": self.model,
            "data": self.data,
            "kappa": None if self.kappa is None else self.kappa.to_dict(),
            "likelihood": {name: calibrator.to_dict() for name, calibrator in self.likelihood.items()},
            "thresholds": {name: table.to_dict() for name, table in self.thresholds.items()},
            "decisions": [rule.to_dict() for rule in self.decisions],
            "record": dict(self.record),
        }

    def _version(self) -> int:
        """The lowest version that can describe this calibration."""
        needs_newer = any(isinstance(part, ConditionalCalibrator) for part in self.likelihood.values())
        needs_newer |= any(rule.extrapolated is not None for rule in self.decisions)
        return VERSION if needs_newer else _PLAIN_VERSION

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any], *, model: str | None = None) -> "Calibration":
        """The inverse of `to_dict`.

        Args:
            facts: the result of `to_dict`, directly or from JSON.
            model: fingerprint of the model to use it with, if it is to be checked.

        Raises:
            InputError: ``facts`` are not a calibration, have an unknown version, or are damaged.
            ModelError: it was made for another model.
        """
        if facts.get("format") != FORMAT:
            raise InputError(f"expected a calibration ({FORMAT}), got the format {facts.get('format')!r}")
        if facts.get("version") not in (_PLAIN_VERSION, VERSION):
            raise InputError(
                f"calibration of version {facts.get('version')}, this spherecf reads 1 to {VERSION}; update "
                "spherecf, or calibrate again with `spherecf evaluate calibration --save`"
            )
        if missing := sorted({item.name for item in fields(cls)} - set(facts)):
            raise InputError(f"the calibration is damaged (no {', '.join(missing)}); calibrate again")
        try:
            calibration = checked(cls, facts, "calibration")
            json.dumps(calibration.to_dict(), allow_nan=False)  # fails now if it could not be saved again
        except ValueError as error:
            raise InputError(f"the calibration is damaged ({error}); calibrate again") from error
        return calibration if model is None else calibration.require(model)


def _scores_by_preference(templates: int) -> tuple[str, ...]:
    """Names of the scores for a pair with this number of templates, the most accurate first."""
    evidence = (PAIR_EVIDENCE, TEMPLATE_EVIDENCE, TEMPLATES_EVIDENCE)[templates]
    return (evidence, TEMPLATE_SCORE, PAIR_SCORE) if templates else (evidence, PAIR_SCORE)


def _lookup(by_score: Mapping[str, Any], score: str, what: str) -> Any:
    """The entry of a score, or an error that lists the scores that have one."""
    if score not in by_score:
        available = ", ".join(by_score) or "none"
        raise InputError(f"no {what} for the score {score!r}; there is one for {available}")
    return by_score[score]


def _check_radius(score: str, fitted: float | None, radius: float | None) -> None:
    if fitted is not None and radius is not None and fitted != radius:
        raise InputError(
            f"{score}: calibrated for radius {fitted:g}, these scores have radius {radius:g}; use the same r"
        )


Method = Literal["logistic", "isotonic"]
TARGETS = (1e-2, 1e-3, 1e-4)


def fit_calibration(
    *,
    model: str,
    data: str,
    scores: Mapping[str, ArrayLike],
    mated: ArrayLike,
    radius: float | None = None,
    kappa: KappaScale | None = None,
    method: Method = "logistic",
    targets: Sequence[float] = TARGETS,
) -> Calibration:
    """Fit a calibrator and a threshold table for every score.

    Decision rules and the record can be added to the result with `dataclasses.replace`.

    Args:
        model: fingerprint of the model.
        data: hash of the embeddings and pairs.
        scores: (n,) scores of the pairs by name, larger = more similar.
        mated: (n,) true for mated pairs.
        radius: r of the score "mls".
        kappa: scale of the reference images, from `KappaScale.fit`.
        method: "logistic" (two parameters, smooth tails) or "isotonic" (any increasing function).
        targets: FMR targets of the threshold tables.

    Raises:
        InputError: there are no scores, scores are NaN, mated or non-mated pairs are missing, or the method
            is unknown.

    Example:
        >>> scores, mated = [0.1, 0.2, 0.5, 0.4, 0.7, 0.9], [0, 0, 0, 1, 1, 1]
        >>> c = fit_calibration(
        ...     model="f", data="d", scores={"cosine": scores}, mated=mated, method="isotonic"
        ... )
        >>> c.llr("cosine", [0.0, 0.45]).round(3).tolist(), c.kappa is None
        ([-1.099, 0.0], True)
    """
    if not scores:
        raise InputError("fit_calibration: expected at least one score, got none")
    if method not in CALIBRATORS:
        raise InputError(f"calibration method {method!r}: expected one of {', '.join(CALIBRATORS)}")
    radii = {name: radius if name == "mls" else None for name in scores}
    return Calibration(
        model,
        data,
        kappa,
        {
            name: CALIBRATORS[method].fit(values, mated, score=name, radius=radii[name])
            for name, values in scores.items()
        },
        {
            name: ThresholdTable.fit(values, mated, targets, score=name, radius=radii[name])
            for name, values in scores.items()
        },
    )

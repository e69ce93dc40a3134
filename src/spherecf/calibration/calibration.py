"""The calibration that is saved with a model and bound to it, and how it is fitted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Discriminator, Tag

from spherecf.calibration.calibrators import IsotonicCalibrator, KappaScale, LogisticCalibrator
from spherecf.calibration.checks import Numbers
from spherecf.calibration.decisions import DecisionRule, ThresholdEntry, ThresholdTable
from spherecf.calibration.evidence import ConditionalCalibrator, Sides
from spherecf.common.parsing import checked
from spherecf.errors import InputError, ModelError

FORMAT, VERSION = "spherecf.calibration", 2
_PLAIN_VERSION = 1  # still written where nothing in it is newer, so that older programs read it

PAIR_SCORE, TEMPLATE_SCORE = "mls", "mls-template"
"""Names of the mutual likelihood score of two images, and of several images pooled against one, of which a
calibration may know only the first."""
PAIR_EVIDENCE, TEMPLATE_EVIDENCE, TEMPLATES_EVIDENCE = "evidence", "evidence-template", "evidence-templates"
"""Names of the evidence of two images, of several images pooled against one, and of two such templates."""
GALLERY_SCORES = (
    (PAIR_EVIDENCE, PAIR_SCORE),
    (TEMPLATE_EVIDENCE, TEMPLATE_SCORE, PAIR_EVIDENCE, PAIR_SCORE),
)
"""Scores whose rules a search reads, the best first: for templates of one image, and of several."""


def _kind(facts: Any) -> str | None:
    """Which calibrator saved facts are of."""
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
    """Scale of kappa, likelihood ratios, thresholds and decision rules of one model.

    Args:
        model: fingerprint of the model (`spherecf.models.ConfidenceModel.fingerprint`) whose kappa and scores
            it reads; a calibration means nothing for another.
        data: hash of what it was fitted on.
        kappa: kappa to percentile and ISO integer.
        likelihood: score name to its calibrator.
        thresholds: score name to its table.
        decisions: rules, in the order of preference.
        record: JSON-able facts about how it was made: pairs, alignment, flip, view, counts, versions.

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
                raise InputError(f"calibration: what stands under {name!r} is for the score {part.score!r}")

    def __repr__(self) -> str:
        parts = {
            "kappa": "none" if self.kappa is None else f"{len(self.kappa.log_kappa)} knots",
            "likelihood": ", ".join(self.likelihood) or "none",
            "thresholds": ", ".join(self.thresholds) or "none",
            "decisions": f"{len(self.decisions)} rules",
        }
        facts = "; ".join(f"{name}: {part}" for name, part in parts.items())
        return f"Calibration({facts}; model={self.model[:12]}..., data={self.data[:12]}...)"

    def llr(
        self, score: str, values: Numbers, radius: float | None = None, *, kappas: Sides | None = None
    ) -> NDArray[Any]:
        """Natural-log likelihood ratio of scores by name.

        Args:
            score: "cosine", "mls", "evidence", ...
            values: the scores; of evidence, the mutual likelihood scores.
            radius: r they were computed with, if the score has one; refused if it is another than at the fit.
            kappas: concentrations of the left and of the right sides, which evidence reads as well.

        Raises:
            InputError: no calibrator for this score, another radius, or evidence without concentrations.
        """
        calibrator: Calibrator = _named(self.likelihood, score, "likelihood ratio")
        _check_radius(score, calibrator.radius, radius)
        if not isinstance(calibrator, ConditionalCalibrator):
            return calibrator(values)
        if kappas is None:
            raise InputError(f"{score}: a likelihood ratio takes the kappas of both sides, too")
        return calibrator.llr(values, kappas)

    def evidence(self, score: str, values: Numbers, cosines: Numbers, kappas: Sides) -> NDArray[Any]:
        """What the decision rules of a score read: evidence, if that is its name, else the scores themselves.

        Args:
            score: name of the rule's score.
            values: mutual likelihood scores.
            cosines: of the same pairs.
            kappas: of their left and right sides.

        Raises:
            InputError: evidence of a kind of pair that was never calibrated; the message lists those there
                are.
        """
        if score.startswith(PAIR_EVIDENCE) or score in self.likelihood:
            calibrator: Calibrator = _named(self.likelihood, score, "evidence")
            if isinstance(calibrator, ConditionalCalibrator):
                return calibrator.evidence(values, cosines, kappas)
        return np.asarray(cosines if score == "cosine" else values, np.float64)

    def best_score(self, templates: int = 0, *, evidence: bool = True) -> str:
        """Name of the score that judges a pair best, of those that have a likelihood ratio here.

        Args:
            templates: how many of the two sides are several images, pooled.
            evidence: False leaves out evidence, which reads the kappas of both sides, too.

        Example:
            >>> Calibration("f" * 64, "d" * 64).best_score(1)
            'mls'
        """
        names = _preferred(templates)[not evidence :]
        return next((name for name in names if name in self.likelihood), PAIR_SCORE)

    def best_decision(self, alpha: float, templates: int = 0) -> DecisionRule:
        """The rule with this bound on false matches, of the score that judges a pair best.

        Args:
            alpha: bound on the false match rate.
            templates: how many of the two sides are several images, pooled.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        for score in _preferred(templates):
            for rule in self.decisions:
                if (rule.score, rule.error, rule.alpha) == (score, "fmr", alpha):
                    return rule
        return self.decision(PAIR_SCORE, error="fmr", alpha=alpha)

    def threshold(self, score: str, target: float) -> ThresholdEntry:
        """The `ThresholdEntry` of a score at an FMR target.

        Raises:
            InputError: no such table or target.
        """
        table: ThresholdTable = _named(self.thresholds, score, "threshold table")
        return table.at(target)

    def decision(self, score: str, *, error: str | None = None, alpha: float | None = None) -> DecisionRule:
        """The first rule for a score, of this error and bound where they are named.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        for rule in self.decisions:
            if rule.score == score and error in (None, rule.error) and alpha in (None, rule.alpha):
                return rule
        known = ", ".join(f"{rule.score} {rule.error} <= {rule.alpha:g}" for rule in self.decisions)
        raise InputError(
            f"no decision rule for {score}, {error or 'any error'}; there are: {known or 'none'}"
        )

    def require(self, model: str) -> "Calibration":
        """Itself, if it was made for this model.

        Raises:
            ModelError: it was made for another; both fingerprints are named.
        """
        if model != self.model:
            raise ModelError(
                f"the calibration was made for the model {self.model}, this is the model {model}: its kappa "
                "and scores mean something else; calibrate it with `spherecf evaluate calibration --save`"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with format and version."""
        return {
            "format": FORMAT,
            "version": self._version(),
            "model": self.model,
            "data": self.data,
            "kappa": None if self.kappa is None else self.kappa.to_dict(),
            "likelihood": {name: one.to_dict() for name, one in self.likelihood.items()},
            "thresholds": {name: one.to_dict() for name, one in self.thresholds.items()},
            "decisions": [rule.to_dict() for rule in self.decisions],
            "record": dict(self.record),
        }

    def _version(self) -> int:
        newer = any(isinstance(one, ConditionalCalibrator) for one in self.likelihood.values())
        newer |= any(rule.extrapolated is not None for rule in self.decisions)
        return VERSION if newer else _PLAIN_VERSION

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any], *, model: str | None = None) -> "Calibration":
        """The inverse of `to_dict`.

        Args:
            facts: from `to_dict`, through JSON or not.
            model: fingerprint of the model at hand; one that differs is refused.

        Raises:
            InputError: not a calibration, of an unknown version, or damaged.
            ModelError: it was made for another model.
        """
        if facts.get("format") != FORMAT:
            raise InputError(f"expected a calibration ({FORMAT}), got the format {facts.get('format')!r}")
        if facts.get("version") not in (_PLAIN_VERSION, VERSION):
            raise InputError(
                f"calibration of version {facts.get('version')}, this spherecf reads {VERSION}; update "
                "spherecf, or calibrate again with `spherecf evaluate calibration --save`"
            )
        if missing := sorted({item.name for item in fields(cls)} - set(facts)):
            raise InputError(f"the calibration is damaged (no {', '.join(missing)}); calibrate again")
        try:
            found = checked(cls, facts, "calibration")
            json.dumps(found.to_dict(), allow_nan=False)  # what opens can be saved again
        except ValueError as error:
            raise InputError(f"the calibration is damaged ({error}); calibrate again") from error
        return found if model is None else found.require(model)


def _preferred(templates: int) -> tuple[str, ...]:
    """Names of the scores for a pair of this kind, the best first."""
    evidence = (PAIR_EVIDENCE, TEMPLATE_EVIDENCE, TEMPLATES_EVIDENCE)[templates]
    return (evidence, TEMPLATE_SCORE, PAIR_SCORE) if templates else (evidence, PAIR_SCORE)


def _named(found: Mapping[str, Any], score: str, what: str) -> Any:
    if score not in found:
        raise InputError(f"no {what} for the score {score!r}; there is one for {', '.join(found) or 'none'}")
    return found[score]


def _check_radius(score: str, fitted: float | None, given: float | None) -> None:
    if fitted is not None and given is not None and fitted != given:
        raise InputError(
            f"{score}: calibrated for radius {fitted:g}, these scores have radius {given:g}; use the same r"
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
    """Fit a calibrator and a threshold table per score; `dataclasses.replace` adds rules and facts.

    Args:
        model: fingerprint of the model.
        data: hash of the embeddings and pairs.
        scores: name to (n,) scores of the pairs, larger = more alike.
        mated: (n,) true where both show one person.
        radius: r of the score "mls".
        kappa: scale of the reference images, by `KappaScale.fit`.
        method: "logistic" (two numbers, smooth tails) or "isotonic" (assumes only that it rises).
        targets: FMR targets.

    Raises:
        InputError: no scores, NaN, one kind of pair only, or an unknown method.

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

"""Compare two photos: match or non-match at a guaranteed error rate, or undecided."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from spherecf.calibration import Calibration, Decision, DecisionRule, ErrorCount
from spherecf.errors import InputError, ModelError
from spherecf.photos.assessment import NO_DIRECTION, AssessedFace, AssessedPhoto
from spherecf.scoring import mutual_likelihood_score


@dataclass(frozen=True, eq=False)
class Comparison:
    """The decision on two photos, with the evidence for it.

    Attributes:
        decision: match, non-match or undecided.
        reason: why, as a sentence.
        score: mutual likelihood score (paper equation 13); None if a photo has no face.
        cosine: of the two directions; None if a photo has no face.
        llr: natural-log likelihood ratio, positive in favour of one person; None if the calibration has none.
        evidence: what the rule compares with its thresholds: evidence that knows both kappas, or the score
            itself where the calibration has no better; None if a photo has no face.
        max_fmr: guaranteed bound on the false match rate.
        rule: the decision rule that was used, with its thresholds.
        left, right: the photos.
        faces: index of the compared face in each photo, 0 is the main one.
        notes: further remarks, e.g. that a photo has several faces.
    """

    decision: Decision
    reason: str
    score: float | None
    cosine: float | None
    llr: float | None
    max_fmr: float
    rule: DecisionRule
    left: AssessedPhoto
    right: AssessedPhoto
    faces: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    evidence: float | None = None

    @property
    def false_matches(self) -> ErrorCount | None:
        """False matches among non-mated pairs when the rule was tested, with the bound on their rate."""
        return next((count for count in self.rule.counts if count.error.startswith("false matches")), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; each photo with the face that was compared."""
        seen = self.false_matches
        return {
            "decision": str(self.decision),
            "reason": self.reason,
            "score": self.score,
            "cosine": self.cosine,
            "llr": self.llr,
            "evidence": self.evidence,
            "max_fmr": self.max_fmr,
            "accept": self.rule.accept,
            "reject": self.rule.reject,
            "min_kappa": self.rule.to_dict()["min_confidence"],
            "fmr_seen": None if seen is None or not seen.trials else seen.errors / seen.trials,
            "fmr_upper": None if seen is None else seen.upper,
            "tested_on": self.rule.tested_on,
            "fmr_extrapolated": None if self.rule.extrapolated is None else list(self.rule.extrapolated),
            "photos": [_side(self.left, self.faces[0]), _side(self.right, self.faces[1])],
            "notes": list(self.notes),
        }


def compare(
    left: AssessedPhoto,
    right: AssessedPhoto,
    calibration: Calibration | None,
    *,
    radius: float,
    max_fmr: float = 1e-4,
    faces: tuple[int, int] = (0, 0),
) -> Comparison:
    """Decide whether two photos show one person, at a false match rate of at most ``max_fmr``.

    Match if the evidence, or the mutual likelihood score where the calibration has none, reaches the upper
    threshold of the calibration's rule for ``max_fmr``, non-match if it is below the lower one. Undecided if
    it is between the two, if the kappa of a face is below the minimum of the rule, or if a photo has no face.

    Args:
        left, right: from one `FaceAssessor`.
        calibration: of the model that assessed the photos, ``model.calibration``.
        radius: r of that model, ``model.radius``.
        max_fmr: a rate for which the calibration has a rule.
        faces: index of the face in each photo, 0 is the main one.

    Raises:
        ModelError: the model is not calibrated.
        InputError: no rule for ``max_fmr`` (the message lists the available ones), or no such face.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.photos import FaceAssessor
        >>> assess, people = FaceAssessor(), orl_faces()
        >>> model, anna = assess.model, assess(people.image(0), "anna")
        >>> nobody = assess(np.zeros((80, 80, 3), np.uint8), "a wall")
        >>> found = compare(anna, nobody, model.calibration, radius=model.radius)
        >>> found.decision.value, found.reason
        ('undecided', 'a wall: no face found in 80x80 px.')
    """
    known, rule = calibrated(calibration), rule_for(calibration, max_fmr, radius=radius)
    comparison = partial(Comparison, max_fmr=max_fmr, rule=rule, left=left, right=right)
    if faceless := [photo for photo in (left, right) if photo.main is None]:
        reason = "; ".join(f"{photo.name}: {photo.reason}" for photo in faceless)
        return comparison(Decision.UNDECIDED, reason, None, None, None)
    a, b = _face(left, faces[0]), _face(right, faces[1])
    if broken := [photo.name for photo, face in ((left, a), (right, b)) if not np.isfinite(face.kappa)]:
        reason = f"{' and '.join(broken)}: {NO_DIRECTION}"
        return comparison(Decision.UNDECIDED, reason, None, None, None, faces=faces)
    score, cosine = scores(a, b, radius)
    kappa, kappas = min(a.kappa, b.kappa), (a.kappa, b.kappa)
    evidence = float(known.evidence(rule.score, score, cosine, kappas))
    decision = Decision(str(rule.decide(evidence, kappa)))
    reason = _reason(decision, rule, kappa, left.name if a.kappa <= b.kappa else right.name)
    name = known.best_score()
    llr = float(known.llr(name, score, radius, kappas=kappas)) if name in known.likelihood else None
    notes = _notes(left, right, a, b, faces)
    return comparison(decision, reason, score, cosine, llr, faces=faces, notes=notes, evidence=evidence)


def scores(a: AssessedFace, b: AssessedFace, radius: float) -> tuple[float, float]:
    """(mutual likelihood score, cosine) of two faces."""
    mu = torch.from_numpy(np.stack([a.mu, b.mu])).double()
    kappa = torch.tensor([a.kappa, b.kappa], dtype=torch.float64)
    score = mutual_likelihood_score(mu[:1], kappa[:1], mu[1:], kappa[1:], radius=radius)
    return float(score), float((mu[0] * mu[1]).sum().clamp(-1, 1))


def calibrated(calibration: Calibration | None) -> Calibration:
    """The calibration, if there is one.

    Raises:
        ModelError: there is none; the message says how to make one.
    """
    if calibration is None:
        raise ModelError(
            "this model is not calibrated, so its scores cannot be turned into decisions; calibrate it with "
            "`spherecf evaluate calibration --model MODEL --save OUT` (docs/calibration.md)"
        )
    return calibration


def rule_for(calibration: Calibration | None, max_fmr: float, *, radius: float) -> DecisionRule:
    """The rule that `compare` uses; call it before long work to fail early.

    Raises:
        ModelError: the model is not calibrated.
        InputError: no rule for ``max_fmr``; the message lists the available ones.

    Example:
        >>> import spherecf
        >>> model = spherecf.load()
        >>> rule_for(model.calibration, 1e-4, radius=model.radius).alpha
        0.0001
    """
    rule = calibrated(calibration).best_decision(max_fmr)
    if rule.radius is not None and rule.radius != radius:
        raise InputError(f"the decision rule is for radius {rule.radius:g}, the model has radius {radius:g}")
    return rule


def _face(photo: AssessedPhoto, which: int) -> AssessedFace:
    if not 0 <= which < len(photo.faces):
        raise InputError(
            f"{photo.name}: there is no face {which}; it has {len(photo.faces)}, numbered from 0"
        )
    return photo.faces[which]


def _reason(decision: Decision, rule: DecisionRule, kappa: float, weaker: str) -> str:
    if not rule.decides:
        return f"no threshold guarantees FMR {rule.alpha:g} on the calibration data"
    if decision is Decision.MATCH:
        known = "" if rule.extrapolated is None else ", extrapolated beyond what was counted"
        return f"at most 1 in {1 / rule.alpha:,.0f} pairs of different people scores this high{known}"
    if kappa < rule.min_confidence:
        return f"the quality of {weaker} is too low: kappa {kappa:.1f}, required {rule.min_confidence:.1f}"
    if decision is Decision.NON_MATCH:
        share = "few" if rule.fnmr is None else f"at most {rule.fnmr:.0%} of"
        return f"{share} pairs of one person score this low"
    return "the score is too high for a non-match and too low for a match"


def _notes(
    left: AssessedPhoto, right: AssessedPhoto, a: AssessedFace, b: AssessedFace, faces: tuple[int, int]
) -> tuple[str, ...]:
    notes = [
        f"{photo.name} has {len(photo.faces)} faces; face {which} was compared (0 is the main face)"
        for photo, which in ((left, faces[0]), (right, faces[1]))
        if len(photo.faces) > 1
    ]
    if a.captured.crop.shape == b.captured.crop.shape and np.array_equal(a.captured.crop, b.captured.crop):
        notes.append("both photos are the same picture, so a match is meaningless")
    return tuple(notes)


def _side(photo: AssessedPhoto, which: int) -> dict[str, Any]:
    facts = photo.to_dict()
    faces = facts.pop("faces")
    return facts | {"face": faces[which] if faces else None}

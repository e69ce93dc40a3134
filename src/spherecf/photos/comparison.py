"""Compare two photos: match or non-match at a guaranteed error rate, or undecided."""

from collections.abc import Sequence
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
    """Decision on two photos, with the evidence for it.

    Attributes:
        decision: match, non-match or undecided.
        reason: reason for the decision, as a sentence.
        score: mutual likelihood score (paper equation 13); None if a photo has no face.
        cosine: cosine of the two directions; None if a photo has no face.
        llr: natural-log likelihood ratio, positive if the photos support the same person; None if the
            calibration has no likelihood model.
        evidence: value that the rule compares with its thresholds: the calibrated evidence, which accounts
            for both kappas, or the score if the calibration has none; None if a photo has no face.
        max_fmr: guaranteed upper bound on the false match rate.
        rule: decision rule that was used, with its thresholds.
        left: first photo.
        right: second photo.
        faces: index of the compared face in each photo; 0 is the main face.
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
        """False matches of the rule on the non-mated pairs of its test set, with the bound on their rate."""
        return next((count for count in self.rule.counts if count.error.startswith("false matches")), None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary, in which each photo has the face that was compared."""
        measured = self.false_matches
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
            "fmr_measured": (
                None if measured is None or not measured.trials else measured.errors / measured.trials
            ),
            "fmr_upper": None if measured is None else measured.upper,
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
    """Decide whether two photos show the same person, at a false match rate of at most ``max_fmr``.

    The decision rule of the calibration for ``max_fmr`` is applied to the evidence, or to the mutual
    likelihood score if the calibration has no evidence model. The decision is a match if the value reaches
    the upper threshold, and a non-match if it is below the lower threshold. It is undecided if the value is
    between the thresholds, if the kappa of a face is below the minimum of the rule, or if a photo has no
    face.

    Args:
        left: first photo, from a `FaceAssessor`.
        right: second photo, from the same `FaceAssessor`.
        calibration: calibration of the model that assessed the photos, ``model.calibration``.
        radius: radius r of that model, ``model.radius``.
        max_fmr: maximum false match rate; the calibration must have a rule for it.
        faces: index of the face to compare in each photo; 0 is the main face.

    Raises:
        ModelError: the model is not calibrated, or a photo was assessed by another model than that of the
            calibration.
        InputError: the calibration has no rule for ``max_fmr`` (the message lists the available rates), or a
            photo has no face with the index.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.photos import FaceAssessor
        >>> assess, people = FaceAssessor(), orl_faces()
        >>> model, anna = assess.model, assess(people.image(0), "anna")
        >>> wall = assess(np.zeros((80, 80, 3), np.uint8), "a wall")
        >>> comparison = compare(anna, wall, model.calibration, radius=model.radius)
        >>> comparison.decision.value, comparison.reason
        ('undecided', 'a wall: no face found in 80x80 px.')
    """
    calibration = calibrated(calibration, (left, right))
    rule = rule_for(calibration, max_fmr, radius=radius)
    comparison = partial(Comparison, max_fmr=max_fmr, rule=rule, left=left, right=right)
    if faceless := [photo for photo in (left, right) if photo.main is None]:
        reason = "; ".join(f"{photo.name}: {photo.reason}" for photo in faceless)
        return comparison(Decision.UNDECIDED, reason, None, None, None)
    a, b = _face(left, faces[0]), _face(right, faces[1])
    if unusable := [photo.name for photo, face in ((left, a), (right, b)) if not np.isfinite(face.kappa)]:
        reason = f"{' and '.join(unusable)}: {NO_DIRECTION}"
        return comparison(Decision.UNDECIDED, reason, None, None, None, faces=faces)
    score, cosine = scores(a, b, radius)
    min_kappa, kappas = min(a.kappa, b.kappa), (a.kappa, b.kappa)
    evidence = float(calibration.evidence(rule.score, score, cosine, kappas))
    decision = Decision(str(rule.decide(evidence, min_kappa)))
    reason = _reason(decision, rule, min_kappa, left.name if a.kappa <= b.kappa else right.name)
    name, llr = calibration.best_score(), None
    if name in calibration.likelihood:
        llr = float(calibration.llr(name, score, radius, kappas=kappas))
    notes = _notes(left, right, a, b, faces)
    return comparison(decision, reason, score, cosine, llr, faces=faces, notes=notes, evidence=evidence)


def scores(a: AssessedFace, b: AssessedFace, radius: float) -> tuple[float, float]:
    """Return (mutual likelihood score, cosine) of two faces."""
    mu = torch.from_numpy(np.stack([a.mu, b.mu])).double()
    kappa = torch.tensor([a.kappa, b.kappa], dtype=torch.float64)
    score = mutual_likelihood_score(mu[:1], kappa[:1], mu[1:], kappa[1:], radius=radius)
    return float(score), float((mu[0] * mu[1]).sum().clamp(-1, 1))


def calibrated(calibration: Calibration | None, photos: Sequence[object] = ()) -> Calibration:
    """Return the calibration, or raise if it is None or not that of the model that assessed the photos.

    Raises:
        ModelError: the model is not calibrated, and the message says how to calibrate it; or a photo was
            assessed by another model.
    """
    if calibration is None:
        raise ModelError(
            "this model is not calibrated, so its scores cannot be turned into decisions; calibrate it with "
            "`spherecf evaluate calibration --model MODEL --save OUT` (docs/calibration.md)"
        )
    for model in {photo.model for photo in photos if isinstance(photo, AssessedPhoto) and photo.model}:
        calibration.require(model)
    return calibration


def rule_for(calibration: Calibration | None, max_fmr: float, *, radius: float) -> DecisionRule:
    """The decision rule that `compare` uses. Call it before long work to fail early.

    Raises:
        ModelError: the model is not calibrated.
        InputError: the calibration has no rule for ``max_fmr`` (the message lists the available rates), or
            the rule is for another radius.

    Example:
        >>> import spherecf
        >>> model = spherecf.load()
        >>> rule_for(model.calibration, 1e-4, radius=model.radius).alpha
        0.0001
    """
    rule = calibrated(calibration).best_decision(max_fmr)
    if rule.radius is not None and rule.radius != radius:
        raise InputError(
            f"the decision rule is for radius {rule.radius:g}, but the model has radius {radius:g}"
        )
    return rule


def _face(photo: AssessedPhoto, index: int) -> AssessedFace:
    if not 0 <= index < len(photo.faces):
        raise InputError(f"{photo.name}: has no face {index}; it has {len(photo.faces)}, numbered from 0")
    return photo.faces[index]


def _reason(decision: Decision, rule: DecisionRule, min_kappa: float, weaker_photo: str) -> str:
    if not rule.decides:
        return f"no threshold guarantees FMR {rule.alpha:g} on the calibration data"
    if decision is Decision.MATCH:
        caveat = "" if rule.extrapolated is None else " (extrapolated from the measured rates)"
        return f"at most 1 in {1 / rule.alpha:,.0f} pairs of different people scores this high{caveat}"
    if min_kappa < rule.min_confidence:
        return (
            f"the quality of {weaker_photo} is too low: kappa {min_kappa:.1f}, required "
            f"{rule.min_confidence:.1f}"
        )
    if decision is Decision.NON_MATCH:
        share = "few" if rule.fnmr is None else f"at most {rule.fnmr:.0%} of"
        return f"{share} pairs of the same person score this low"
    return "the score is too high for a non-match and too low for a match"


def _notes(
    left: AssessedPhoto, right: AssessedPhoto, a: AssessedFace, b: AssessedFace, faces: tuple[int, int]
) -> tuple[str, ...]:
    notes = [
        f"{photo.name} has {len(photo.faces)} faces; face {index} was compared (0 is the main face)"
        for photo, index in ((left, faces[0]), (right, faces[1]))
        if len(photo.faces) > 1
    ]
    if a.captured.crop.shape == b.captured.crop.shape and np.array_equal(a.captured.crop, b.captured.crop):
        notes.append("the two photos are the same image, so a match is meaningless")
    return tuple(notes)


def _side(photo: AssessedPhoto, face_index: int) -> dict[str, Any]:
    facts = photo.to_dict()
    faces = facts.pop("faces")
    return facts | {"face": faces[face_index] if faces else None}

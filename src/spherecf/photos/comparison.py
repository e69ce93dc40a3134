"""Are these two the same person? A decision with its error rate, or none where there is no evidence."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from spherecf.calibration import PAIR_SCORE, Calibration, Decision, DecisionRule, ErrorCount
from spherecf.errors import InputError, ModelError
from spherecf.photos.assessment import AssessedFace, AssessedPhoto
from spherecf.scoring import mutual_likelihood_score


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is said about two photos, and on what grounds.

    Attributes:
        decision: match, non-match or undecided.
        why: the same as a sentence.
        score: mutual likelihood score (paper equation 13); None where a photo has no face.
        cosine: of the two directions; likewise.
        llr: natural-log likelihood ratio; above 0 it speaks for one person. None if not calibrated for it.
        max_fmr: what was promised: at most this share of pairs of strangers is called a match.
        rule: what decided, with its thresholds.
        left, right: the photos.
        faces: which face of each was taken, 0 the main one.
        notes: what else should be known, e.g. that a photo has several faces.
    """

    decision: Decision
    why: str
    score: float | None
    cosine: float | None
    llr: float | None
    max_fmr: float
    rule: DecisionRule
    left: AssessedPhoto
    right: AssessedPhoto
    faces: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    @property
    def false_matches(self) -> ErrorCount | None:
        """What the rule's test saw: false matches among pairs of strangers, and the bound on their rate."""
        return next((count for count in self.rule.counts if count.error.startswith("false matches")), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the two photos with the face that was taken."""
        seen = self.false_matches
        return {
            "decision": str(self.decision),
            "why": self.why,
            "score": self.score,
            "cosine": self.cosine,
            "llr": self.llr,
            "max_fmr": self.max_fmr,
            "accept": self.rule.accept,
            "reject": self.rule.reject,
            "least_kappa": self.rule.to_dict()["least_confidence"],
            "fmr_seen": None if seen is None or not seen.trials else seen.errors / seen.trials,
            "fmr_upper": None if seen is None else seen.upper,
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
    """Decide whether two photos show one person, with at most ``max_fmr`` false matches among strangers.

    Match if the mutual likelihood score reaches the threshold of the calibration's rule for ``max_fmr``,
    non-match if it stays below its lower one; undecided between the two, where a face is too poor to decide
    anything (its kappa is below the rule's least), and where a photo has no face.

    Args:
        left, right: from `FaceAssessor`, by one model.
        calibration: of that model (``model.calibration``).
        radius: r of that model.
        max_fmr: one of the rates the calibration has a rule for.
        faces: which face of each photo, 0 the main one.

    Raises:
        ModelError: the model is not calibrated.
        InputError: no rule for ``max_fmr`` (those there are are listed), or no such face.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.photos import FaceAssessor
        >>> assess, people = FaceAssessor(), orl_faces()
        >>> model, anna = assess.model, assess(people.image(0), "anna")
        >>> nobody = assess(np.zeros((80, 80, 3), np.uint8), "a wall")
        >>> found = compare(anna, nobody, model.calibration, radius=model.radius)
        >>> found.decision.value, found.why
        ('undecided', 'a wall: no face found in 80x80 px.')
    """
    known, rule = calibrated(calibration), rule_for(calibration, max_fmr, radius=radius)
    said = partial(Comparison, max_fmr=max_fmr, rule=rule, left=left, right=right)
    if faceless := [photo for photo in (left, right) if photo.main is None]:
        why = "; ".join(f"{photo.name}: {photo.reason}" for photo in faceless)
        return said(Decision.UNDECIDED, why, None, None, None)
    a, b = _face(left, faces[0]), _face(right, faces[1])
    if broken := [photo.name for photo, face in ((left, a), (right, b)) if not np.isfinite(face.kappa)]:
        why = f"{' and '.join(broken)}: the recogniser gives no direction for this face"
        return said(Decision.UNDECIDED, why, None, None, None, faces=faces)
    score, cosine = scores(a, b, radius)
    least = min(a.kappa, b.kappa)
    decision = Decision(str(rule.decide(score, least)))
    why = _why(decision, rule, least, left.name if a.kappa <= b.kappa else right.name)
    llr = float(known.llr(PAIR_SCORE, score, radius)) if PAIR_SCORE in known.likelihood else None
    notes = _notes(left, right, a, b, faces)
    return said(decision, why, score, cosine, llr, faces=faces, notes=notes)


def scores(a: AssessedFace, b: AssessedFace, radius: float) -> tuple[float, float]:
    """(mutual likelihood score, cosine) of two faces."""
    mu = torch.from_numpy(np.stack([a.mu, b.mu])).double()
    kappa = torch.tensor([a.kappa, b.kappa], dtype=torch.float64)
    score = mutual_likelihood_score(mu[:1], kappa[:1], mu[1:], kappa[1:], radius=radius)
    return float(score), float((mu[0] * mu[1]).sum().clamp(-1, 1))


def calibrated(calibration: Calibration | None) -> Calibration:
    """Itself, if there is one.

    Raises:
        ModelError: there is none; the message says how to make it.
    """
    if calibration is None:
        raise ModelError(
            "this model is not calibrated, so no score of it means match or non-match; calibrate it with "
            "`spherecf evaluate calibration --model MODEL --save OUT` (docs/calibration.md)"
        )
    return calibration


def rule_for(calibration: Calibration | None, max_fmr: float, *, radius: float) -> DecisionRule:
    """The rule that `compare` decides by; long work asks for it first.

    Raises:
        ModelError: the model is not calibrated.
        InputError: no rule for ``max_fmr``; those there are are listed.

    Example:
        >>> import spherecf
        >>> model = spherecf.load()
        >>> rule_for(model.calibration, 1e-4, radius=model.radius).alpha
        0.0001
    """
    rule = calibrated(calibration).decision(PAIR_SCORE, error="fmr", alpha=max_fmr)
    if rule.radius is not None and rule.radius != radius:
        raise InputError(f"the rule was made for radius {rule.radius:g}, the model has {radius:g}")
    return rule


def _face(photo: AssessedPhoto, which: int) -> AssessedFace:
    if not 0 <= which < len(photo.faces):
        raise InputError(f"{photo.name}: no face {which}; it has {len(photo.faces)}, counted from 0")
    return photo.faces[which]


def _why(decision: Decision, rule: DecisionRule, least: float, weaker: str) -> str:
    if not rule.decides:
        return f"no threshold could keep the promise of FMR {rule.alpha:g} on the calibration data"
    if decision is Decision.MATCH:
        return f"of pairs of strangers at most 1 in {1 / rule.alpha:,.0f} scores as high"
    if least < rule.least_confidence:
        return f"{weaker} is too poor: kappa {least:.1f}, at least {rule.least_confidence:.1f} is needed"
    if decision is Decision.NON_MATCH:
        few = "few" if rule.fnmr is None else f"at most {rule.fnmr:.0%}"
        return f"of pairs of one person {few} score as low"
    return "more alike than a clear non-match, not alike enough to rule out strangers"


def _notes(
    left: AssessedPhoto, right: AssessedPhoto, a: AssessedFace, b: AssessedFace, faces: tuple[int, int]
) -> tuple[str, ...]:
    found = [
        f"{photo.name} has {len(photo.faces)} faces; face {which} was taken, 0 being the main one"
        for photo, which in ((left, faces[0]), (right, faces[1]))
        if len(photo.faces) > 1
    ]
    if a.captured.crop.shape == b.captured.crop.shape and np.array_equal(a.captured.crop, b.captured.crop):
        found.append("both are the same picture: that it matches itself says nothing")
    return tuple(found)


def _side(photo: AssessedPhoto, which: int) -> dict[str, Any]:
    facts = photo.to_dict()
    faces = facts.pop("faces")
    return facts | {"face": faces[which] if faces else None}

"""Prediction-rejection ratio of open-set identification: does rejecting by confidence remove the errors?

A probe is accepted as its best gallery identity iff the similarity reaches the threshold. Right are mated
probes accepted as themselves (TP) and non-mated probes turned away (TN). Wrong are non-mated probes accepted
(FP) and mated probes turned away or taken for somebody else (FN). F1 = 2 TP / (2 TP + FP + FN), as in
Scheirer et al., "Toward open set recognition", TPAMI 2013, and Erlygin and Zaytsev, arXiv 2408.14229.

Probes are rejected from the least confident on. Where a share cuts through probes of equal confidence, the
*expected* counts over their random order remain, so a tie is neither luck nor loss: a confidence that tells
nothing has a flat curve, exactly. PRR (Malinin and Gales, "Uncertainty estimation in autoregressive
structured prediction", ICLR 2021) is the area between the curve and that flat one over the same of the
oracle, which rejects the errors first: 1 for the oracle, 0 for a confidence that tells nothing, below 0 for
a harmful one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError

Array = NDArray[Any]

PRR_LIMIT = 0.5
"""Up to this rejected share the area is taken, unless said otherwise."""
_ROUNDING = 1e-12  # of the number of probes: counts below it are the rounding of an interpolation


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a threshold made of every probe, (probes,) booleans."""

    threshold: float
    accepted: Array
    identified: Array
    """True positives: mated probes accepted as themselves."""
    wrong: Array
    """False positives and false negatives."""
    misidentified: Array
    """Those of ``wrong`` that are mated probes accepted as somebody else."""


def decide(similarity: ArrayLike, right: ArrayLike, mated: ArrayLike, threshold: float) -> Decisions:
    """Accept iff ``similarity >= threshold``, and compare with the truth.

    Args:
        similarity: (n,) of each probe to its best gallery entry.
        right: (n,) true where that entry is of the probe's subject.
        mated: (n,) true where the gallery holds the probe's subject.
        threshold: of acceptance.

    Raises:
        InputError: shapes that differ.

    Example:
        >>> made = decide([0.9, 0.8, 0.7, 0.1], [1, 0, 0, 1], [1, 1, 0, 1], 0.5)
        >>> made.identified.tolist(), made.wrong.tolist()
        ([True, False, False, False], [False, True, True, True])
    """
    accepted = np.asarray(similarity) >= threshold
    right, mated = np.asarray(right, bool), np.asarray(mated, bool)
    if not accepted.shape == right.shape == mated.shape:
        raise InputError(
            "similarity, right and mated: expected three (n,) arrays, got "
            f"{accepted.shape}, {right.shape} and {mated.shape}"
        )
    identified = accepted & right & mated
    wrong = np.where(mated, ~identified, accepted)
    return Decisions(float(threshold), accepted, identified, wrong, accepted & mated & ~right)


def fpir_threshold(similarity: ArrayLike, mated: ArrayLike, fpir: float) -> tuple[float | None, str | None]:
    """Smallest observed similarity that accepts at most the share ``fpir`` of the non-mated probes.

    Returns:
        The threshold and None, or None and why the number of non-mated probes cannot resolve the target.

    Raises:
        InputError: ``fpir`` outside 0 .. 1, shapes that differ, or NaN similarities.

    Example:
        >>> fpir_threshold([0.9, 0.8, 0.6, 0.5, 0.3], [1, 1, 0, 1, 0], 0.5)
        (0.5, None)
        >>> fpir_threshold([0.9, 0.8], [1, 0], 0.1)
        (None, 'FPIR 0.1 needs at least 10 non-mated probes, there are 1')
    """
    s, m = np.asarray(similarity, np.float64), np.asarray(mated, bool)
    if not 0 < fpir < 1:
        raise InputError(f"FPIR target: expected 0 < fpir < 1, got {fpir}")
    if s.ndim != 1 or s.shape != m.shape or np.isnan(s).any():
        raise InputError(
            f"similarity and mated: expected two (n,) arrays without NaN, got {s.shape} and {m.shape}"
        )
    others = np.sort(s[~m])[::-1]
    allowed = int(fpir * others.size * (1 + 1e-12))
    if allowed < 1:
        needed = int(np.ceil(1 / fpir))
        return None, f"FPIR {fpir:g} needs at least {needed} non-mated probes, there are {others.size}"
    candidates = s[s > others[allowed]] if allowed < others.size else s
    return (float(candidates.min()), None) if candidates.size else (np.inf, None)


@dataclass(frozen=True, eq=False)
class RejectionOrder:
    """Probes from the least confident on; ``ends`` closes each group of equal confidence."""

    order: Array
    ends: Array

    @classmethod
    def of(cls, confidence: ArrayLike) -> "RejectionOrder":
        """Sort once, for any number of weights."""
        c = np.asarray(confidence, np.float64)
        if c.ndim != 1 or not c.size:
            raise InputError(f"confidence: expected (n,) with n > 0, got {c.shape}")
        bad = np.flatnonzero(np.isnan(c))
        if bad.size:
            raise InputError(f"confidence: {bad.size} of {c.size} are NaN, first at {bad[0]}")
        order = np.argsort(c, kind="stable")
        c = c[order]
        return cls(order, np.append(np.flatnonzero(c[1:] != c[:-1]), c.size - 1))

    def f1(self, decisions: Decisions, shares: Array, weights: Array | None = None) -> Array:
        """F1 of what remains after rejecting each of ``shares``; 0 where only true negatives remain."""
        w = np.ones(self.order.size) if weights is None else weights
        identified, wrong = (np.where(kind, w, 0.0) for kind in (decisions.identified, decisions.wrong))
        gone, gone_right, gone_wrong = (
            np.concatenate([[0.0], np.cumsum(column[self.order])[self.ends]])
            for column in (w, identified, wrong)
        )
        at = shares * gone[-1]
        left = (column[-1] - np.interp(at, gone, column) for column in (gone_right, gone_wrong))
        tp, errors = (np.where(column > _ROUNDING * gone[-1], column, 0.0) for column in left)
        return np.asarray(np.divide(2 * tp, 2 * tp + errors, out=np.zeros_like(tp), where=tp > 0))


def f1_after_rejection(confidence: ArrayLike, decisions: Decisions, shares: Sequence[float]) -> list[float]:
    """F1 after rejecting each share of the probes, least confident first.

    Args:
        confidence: (n,) larger = surer.
        decisions: of the n probes, see `decide`.
        shares: rejected shares, 0 .. below 1.

    Raises:
        InputError: NaN confidences, shapes that differ, or shares out of range.

    Example:
        >>> made = decide([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 0], [1, 1, 0, 0], 0.5)
        >>> f1_after_rejection([4, 3, 1, 2], made, [0.0, 0.25])
        [0.8, 1.0]
    """
    at = np.asarray(shares, np.float64)
    if not ((at >= 0) & (at < 1)).all():
        raise InputError(f"rejected shares: expected 0 <= share < 1, got {at.min()} .. {at.max()}")
    found: list[float] = _checked(confidence, decisions).f1(decisions, at).tolist()
    return found


def prediction_rejection_ratio(
    confidence: ArrayLike, decisions: Decisions, *, limit: float = PRR_LIMIT
) -> float | None:
    """PRR of F1 over rejected shares 0 .. ``limit``, from the F1 at every possible number of rejected probes.

    Args:
        confidence: (n,) larger = surer.
        decisions: of the n probes, see `decide`.
        limit: largest rejected share, 0 < limit < 1.

    Returns:
        At most 1; None where no decision is wrong or none is a true positive, so that F1 cannot move.

    Raises:
        InputError: NaN confidences, shapes that differ, or a limit out of range.

    Example:
        >>> made = decide([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 0], [1, 1, 0, 0], 0.5)
        >>> prediction_rejection_ratio([4, 3, 1, 2], made), prediction_rejection_ratio([1, 1, 1, 1], made)
        (1.0, 0.0)
    """
    order = _checked(confidence, decisions)
    value = prr_of(order, decisions, prr_shares(order.order.size, limit))
    return None if np.isnan(value) else value


def prr_shares(n: int, limit: float) -> Array:
    """0, 1/n, 2/n, ... up to ``limit``, and the limit itself."""
    if not 0 < limit < 1:
        raise InputError(f"PRR limit: expected 0 < limit < 1, got {limit}")
    shares = np.arange(int(limit * n * (1 + 1e-12)) + 1) / n
    return shares if shares[-1] >= limit else np.append(shares, limit)


def prr_of(order: RejectionOrder, decisions: Decisions, shares: Array, weights: Array | None = None) -> float:
    """`prediction_rejection_ratio` of a confidence sorted before, weighted in a bootstrap; NaN for None."""
    w = np.ones(decisions.wrong.size) if weights is None else weights
    tp, wrong = float(w @ decisions.identified), float(w @ decisions.wrong)
    if not (tp and wrong):
        return float("nan")
    curve = order.f1(decisions, shares, weights)
    flat = curve[0] * shares[-1]
    oracle = 2 * tp / (2 * tp + np.maximum(wrong - shares * w.sum(), 0))  # errors first, then right ones
    return float((np.trapezoid(curve, shares) - flat) / (np.trapezoid(oracle, shares) - flat))


def _checked(confidence: ArrayLike, decisions: Decisions) -> RejectionOrder:
    order = RejectionOrder.of(confidence)
    if order.order.shape != decisions.wrong.shape:
        raise InputError(
            f"confidence: expected one per probe {decisions.wrong.shape}, got {order.order.shape}"
        )
    return order

"""A rule whose two errors stay below their bounds under every condition it was tested on.

Fixed-sequence testing, as in `_selective`: the order is from the strictest threshold on, which is known
before any data are seen, so nothing is spent on finding it and all pairs can test.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import DecisionRule, ErrorCount
from spherecf.errors import InputError
from spherecf.evaluation._subject_rates import SubjectRates


def bounded_rule(
    non_mated: Sequence[SubjectRates],
    mated: Sequence[SubjectRates],
    *,
    alpha: float,
    fnmr: float,
    delta: float = 0.05,
    score: str = "mls",
    radius: float | None = None,
    confidence: str = "kappa",
    least_confidence: float = -np.inf,
) -> DecisionRule:
    """Match above, non-match below, undecided between: the most decisive rule that the tests support.

    ``accept`` is the smallest threshold for which it and all larger ones keep false matches, as a share of
    *all* non-mated pairs, below ``alpha`` under every condition; ``reject`` the largest one for which it and
    all smaller ones keep the mated pairs below it at a share of at most ``fnmr``. Each is tested by
    `SubjectRates.upper` at level delta. A floor on the confidence only withholds decisions, so both promises
    hold with it.

    Args:
        non_mated: of non-mated pairs, one per condition, on the same thresholds.
        mated: of mated pairs, likewise, on thresholds of their own.
        alpha: bound on the false match rate.
        fnmr: bound on the share of mated pairs that are called non-match.
        delta: chance that a promise is not kept.
        score: name of the score, for the rule.
        radius: of the score, for the rule.
        confidence: name of the confidence, for the rule.
        least_confidence: floor, for the rule.

    Returns:
        The rule; one that decides nothing where no threshold passes.

    Raises:
        InputError: no conditions, or other thresholds in one than in another.

    Example:
        >>> rng, people = np.random.default_rng(0), np.arange(4000) % 100
        >>> other = SubjectRates.of(rng.normal(0, 1, 4000), people, (people + 1) % 100, np.arange(0, 5, 0.1))
        >>> same = SubjectRates.of(rng.normal(4, 1, 4000), people, people, np.arange(0, 5, 0.1))
        >>> rule = bounded_rule([other], [same], alpha=0.01, fnmr=0.01)
        >>> bool(2.3 < rule.accept < 2.8), bool(1.3 < rule.reject < 1.7), rule.counts[0].upper <= 0.01
        (True, True, True)
    """
    for name, side in (("non_mated", non_mated), ("mated", mated)):
        if not side or any(not np.array_equal(side[0].thresholds, one.thresholds) for one in side):
            raise InputError(f"bounded_rule: {name}: expected conditions with the same thresholds")
    false_matches = np.array([one.upper(delta) for one in non_mated])
    misses = np.array([one.upper(delta, below=True) for one in mated])
    accepted = non_mated[0].thresholds.size - _passed(false_matches.max(0)[::-1] <= alpha)
    rejected = _passed(misses.max(0) <= fnmr) - 1
    rule = DecisionRule(
        score, radius, confidence, None, None, least_confidence, "fmr", alpha, delta, fnmr=fnmr
    )  # fmt: skip
    if accepted == non_mated[0].thresholds.size or rejected < 0:
        return rule
    accept = float(non_mated[0].thresholds[accepted])
    worst, missed = int(false_matches[:, accepted].argmax()), int(misses[:, rejected].argmax())
    others, own = non_mated[worst], mated[missed]
    return DecisionRule(
        score, radius, confidence, accept, min(accept, float(mated[0].thresholds[rejected])),
        least_confidence, "fmr", alpha, delta, "all pairs of the worst condition",
        (
            ErrorCount("false matches of non-mated pairs", int(others.reached[accepted]), others.pairs,
                       float(false_matches[worst, accepted])),
            ErrorCount("false non-matches of mated pairs", own.pairs - int(own.reached[rejected]), own.pairs,
                       float(misses[missed, rejected])),
        ),
        fnmr,
    )  # fmt: skip


def _passed(passes: NDArray[Any]) -> int:
    """How many pass before the first that fails."""
    return int(np.argmin(np.append(passes, False)))

"""The field's habit, under its own name: TAR at the ROC point whose FAR lies nearest to the target."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from spherecf.errors import InputError
from spherecf.evaluation._curve import Curve, roc
from spherecf.evaluation._rates import Targets


@dataclass(frozen=True)
class NearestPoint:
    """The point of the ROC nearest to ``target``, and what it really is."""

    target: float
    tmr: float
    fmr: float
    """Really reached there."""
    excess: float
    """``fmr - target``: above zero the TMR flatters, below zero it is too modest."""


def tmr_at_nearest_fmr(scores: ArrayLike, mated: ArrayLike, targets: Targets) -> list[NearestPoint]:
    """TAR at FAR as the IJB scripts of insightface and its descendants count it, to compare with old papers.

    Of the corners of the ROC (scikit-learn's ``roc_curve`` leaves out points within a straight run) it takes
    the one with the smallest ``|FMR - target|``, of equals the one with the larger FMR. That point may accept
    more non-mated pairs than the target allows. For numbers of your own use `tmr_at_fmr`.

    Source: ``eval_ijbc.py`` in insightface's ``recognition/arcface_torch``.

    Raises:
        InputError: a target outside 0 .. 1, NaN scores, or only one kind of pair.

    Example:
        >>> scores, mated = [0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, False, False]
        >>> found = tmr_at_nearest_fmr(scores, mated, 0.2)[0]
        >>> found.tmr, round(found.fmr, 3), round(found.excess, 3)
        (1.0, 0.333, 0.133)
    """
    return nearest_of_curve(roc(scores, mated), targets)


def nearest_of_curve(curve: Curve, targets: Targets) -> list[NearestPoint]:
    """`tmr_at_nearest_fmr` for counts at hand."""
    keep = np.ones(curve.thresholds.size, bool)
    # A point goes if the step to it equals the step from it; the first observed score always stays.
    keep[2:-1] = (np.diff(curve.false[1:], 2) != 0) | (np.diff(curve.true[1:], 2) != 0)
    fmr, tmr = curve.fmr[keep][::-1], curve.tmr[keep][::-1]  # from the right: the larger of equals first
    found = []
    for target in np.atleast_1d(np.asarray(targets, np.float64)).tolist():
        if not 0 < target <= 1:
            raise InputError(f"FMR target: expected 0 < target <= 1, got {target}")
        at = int(np.argmin(np.abs(fmr - target)))
        found.append(NearestPoint(target, float(tmr[at]), float(fmr[at]), float(fmr[at]) - target))
    return found

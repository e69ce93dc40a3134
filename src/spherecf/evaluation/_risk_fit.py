"""What HolUE and MPRisk learn from the errors of other people: a calibrator and four weights."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.evaluation._prr import Decisions, RejectionOrder, prr_of, prr_shares
from spherecf.evaluation._uncertainty import RISKS

Array = NDArray[Any]

_RIDGE = 1.0  # a prior of standard deviation 1 on the standardised coefficients
_NEWTON = 50
_ABSENT = 1 / 8  # chance that a trial leaves a risk out


@dataclass(frozen=True, eq=False)
class RiskWeights:
    """Weights of the four risks, as natural logarithms (-inf for 0), the largest 0."""

    log_weights: Array
    prr: float
    """On the probes they were chosen on."""

    def confidence(self, log_risks: Array) -> Array:
        """Minus log of the weighted sum of risks."""
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
    """Weights of the best PRR on these probes by random search; None where PRR is undefined.

    A weight is tried at the inverse of its risk in a random probe: only weights that bring two risks to one
    scale change their order, and these scales differ by hundreds of decades. The second half of the trials
    goes around the best of the first.

    Args:
        log_risks: (n, 4), see `log_risks`.
        decisions: of the n probes.
        limit: of the PRR.
        trials: number of weights tried.
        seed: of the search; the same seed, the same weights.
    """
    rng = np.random.default_rng(seed)
    shares = prr_shares(len(log_risks), limit)
    seen = [column[np.isfinite(column)] for column in log_risks.T]
    best: RiskWeights | None = None
    for trial in range(trials):
        if trial < 2:
            candidate = np.array([0.0, 0.0, 0.0, -np.inf if trial else 0.0])
        elif trial < trials // 2 or best is None:
            candidate = np.array([-rng.choice(values) if values.size else 0.0 for values in seen])
            candidate[rng.random(4) < _ABSENT] = -np.inf
        else:
            candidate = best.log_weights + rng.normal(size=4)
        if not np.isfinite(candidate).any():
            continue
        made = RiskWeights(candidate - candidate.max(), np.nan)
        prr = prr_of(RejectionOrder.of(made.confidence(log_risks)), decisions, shares)
        if prr > (best.prr if best else -np.inf):
            best = RiskWeights(made.log_weights, prr)
    return best


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Logistic regression of "the decision is right" on a quadratic form of both divergences."""

    mean: Array
    scale: Array
    coefficients: Array
    """Of 1, a, b, a^2, a b, b^2, a and b standardised."""

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists."""
        return {name: values.tolist() for name, values in vars(self).items()}

    def confidence(self, divergences: Array) -> Array:
        """Log odds that the decision is right."""
        return np.asarray(self._terms(divergences) @ self.coefficients)

    def _terms(self, divergences: Array) -> Array:
        a, b = ((divergences - self.mean) / self.scale).T
        return np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], axis=1)


def fit_calibrator(divergences: Array, wrong: Array) -> Calibrator | None:
    """Maximum a posteriori by Newton steps; None where all decisions are right, or all wrong.

    Args:
        divergences: (n, 2), see `divergences`.
        wrong: (n,) true where the decision was an error.
    """
    if wrong.all() or not wrong.any():
        return None
    scale = divergences.std(0)
    made = Calibrator(divergences.mean(0), np.where(scale > 0, scale, 1.0), np.zeros(6))
    x, right = made._terms(divergences), (~wrong).astype(np.float64)
    penalty = np.full(6, _RIDGE)
    penalty[0] = 1e-9  # of the constant: only enough to keep the system solvable
    w = made.coefficients
    for _ in range(_NEWTON):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, x.T @ (right - p) - penalty * w)
        w = w + step
        if np.abs(step).max() < 1e-10:
            break
    return Calibrator(made.mean, made.scale, w)

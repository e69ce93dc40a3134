"""Open-set identification: decisions of a gallery, their confidences, and prediction-rejection ratios.

A probe is accepted as its best gallery identity if and only if the similarity reaches the threshold. Correct
decisions are mated probes accepted as themselves (TP) and non-mated probes rejected (TN). Errors are
non-mated probes accepted (FP), and mated probes rejected or accepted as another person (FN).
F1 = 2 TP / (2 TP + FP + FN), as in Scheirer et al., "Toward open set recognition", TPAMI 2013, and Erlygin
and Zaytsev, arXiv 2408.14229.

For a rejection curve, probes are removed in order of increasing confidence. If only some probes of equal
confidence are to be removed, the counts are *expected* values over a random order of these probes, so ties
neither help nor harm: an uninformative confidence has an exactly flat curve. The prediction rejection ratio
(PRR; Malinin and Gales, "Uncertainty estimation in autoregressive structured prediction", ICLR 2021) is the
area between the curve and the flat one, divided by the same area for an oracle that rejects the errors first:
1 for the oracle, 0 for an uninformative confidence, below 0 for a harmful one.

Some confidences depend on the probe alone (kappa, A_d(kappa), norm, ...) and measure its quality; others also
depend on the gallery and measure whether the decision is affected. Sources: distance to the threshold, GalUE,
HolUE: Erlygin and Zaytsev, "Holistic uncertainty estimation for open-set recognition", arXiv 2408.14229;
MPRisk: Erlygin, Proskura and Zaytsev, 2025. Probabilities are stored as logarithms, so that values near 0 and
1 can still be ordered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import allowed_errors, check_mated, threshold_at_rate, unresolved_rate
from spherecf.errors import InputError
from spherecf.scoring import (
    OpenSetPosterior,
    Templates,
    fit_gallery_kappa,
    mean_cosine_kappa,
    open_set_posterior,
)
from spherecf.vmf import log_normalizer, log_normalizer_scaled, mean_resultant_length

Array = NDArray[Any]

PRR_LIMIT = 0.5
"""Default upper limit of the rejected share in the PRR."""
_ROUNDING = 1e-12  # interpolated counts below this share of all probes are rounding errors of 0


@dataclass(frozen=True, eq=False)
class Decisions:
    """Decisions on all probes at one threshold, as (probes,) booleans."""

    threshold: float
    accepted: Array
    identified: Array
    """True positives: mated probes accepted as themselves."""
    wrong: Array
    """False positives and false negatives."""
    misidentified: Array
    """Mated probes accepted as another person, a subset of ``wrong``."""


def decide(similarity: ArrayLike, right: ArrayLike, mated: ArrayLike, threshold: float) -> Decisions:
    """Accept every probe with ``similarity >= threshold``, and compare the decisions with the truth.

    Args:
        similarity: (n,) similarity of each probe to its best gallery entry.
        right: (n,) true where that entry is of the probe's subject.
        mated: (n,) true where the probe's subject is enrolled.
        threshold: acceptance threshold.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> decisions = decide([0.9, 0.8, 0.7, 0.1], [1, 0, 0, 1], [1, 1, 0, 1], 0.5)
        >>> decisions.identified.tolist(), decisions.wrong.tolist()
        ([True, False, False, False], [False, True, True, True])
    """
    accepted = np.asarray(similarity) >= threshold
    right, mated = np.asarray(right, bool), check_mated(mated)
    if not accepted.shape == right.shape == mated.shape:
        raise InputError(
            "similarity, right and mated: expected three (n,) arrays, got "
            f"{accepted.shape}, {right.shape} and {mated.shape}"
        )
    identified = accepted & right & mated
    wrong = np.where(mated, ~identified, accepted)
    return Decisions(float(threshold), accepted, identified, wrong, accepted & mated & ~right)


def fpir_threshold(similarity: ArrayLike, mated: ArrayLike, fpir: float) -> tuple[float | None, str | None]:
    """Smallest observed similarity that at most the share ``fpir`` of the non-mated probes reaches.

    Args:
        similarity: (n,) similarity of each probe to its best gallery entry.
        mated: (n,) true where the probe's subject is enrolled.
        fpir: target, 0 < fpir < 1.

    Returns:
        The threshold and None; or None and the reason if there are too few non-mated probes for the target.

    Raises:
        InputError: ``fpir`` is out of range, the shapes differ, or a similarity is NaN.

    Example:
        >>> fpir_threshold([0.9, 0.8, 0.6, 0.5, 0.3], [1, 1, 0, 1, 0], 0.5)
        (0.5, None)
        >>> fpir_threshold([0.9, 0.8], [1, 0], 0.1)
        (None, 'FPIR 0.1 needs at least 10 non-mated probes, there are 1')
    """
    s, m = np.asarray(similarity, np.float64), check_mated(mated)
    if not 0 < fpir < 1:
        raise InputError(f"FPIR target: expected 0 < fpir < 1, got {fpir}")
    if s.ndim != 1 or s.shape != m.shape or np.isnan(s).any():
        raise InputError(
            f"similarity and mated: expected two (n,) arrays without NaN, got {s.shape} and {m.shape}"
        )
    threshold = threshold_at_rate(np.sort(s[m]), np.sort(s[~m]), fpir)
    if threshold is None:
        return None, unresolved_rate("FPIR", fpir, int((~m).sum()), "non-mated probes")
    return float(threshold), None


@dataclass(frozen=True, eq=False)
class RejectionOrder:
    """Probes in order of increasing confidence."""

    order: Array
    """(n,) indices of the probes, least confident first."""
    ends: Array
    """Position in ``order`` of the last probe of each group of equal confidence."""

    @classmethod
    def of(cls, confidence: ArrayLike) -> "RejectionOrder":
        """Sort the probes; the order serves any number of bootstrap weights."""
        c = np.asarray(confidence, np.float64)
        if c.ndim != 1 or not c.size:
            raise InputError(f"confidence: expected (n,) with n > 0, got {c.shape}")
        nan_indices = np.flatnonzero(np.isnan(c))
        if nan_indices.size:
            raise InputError(f"confidence: {nan_indices.size} of {c.size} are NaN, first at {nan_indices[0]}")
        order = np.argsort(c, kind="stable")
        c = c[order]
        return cls(order, np.append(np.flatnonzero(c[1:] != c[:-1]), c.size - 1))

    def f1(self, decisions: Decisions, shares: Array, weights: Array | None = None) -> Array:
        """(shares,) F1 of the remaining probes after rejecting each share; 0 without true positives."""
        w = np.ones(self.order.size) if weights is None else weights
        identified, wrong = (np.where(mask, w, 0.0) for mask in (decisions.identified, decisions.wrong))
        # Cumulative weights of rejected probes after each group of equal confidence, (groups + 1,).
        rejected, rejected_identified, rejected_wrong = (
            np.concatenate([[0.0], np.cumsum(column[self.order])[self.ends]])
            for column in (w, identified, wrong)
        )
        total = rejected[-1]
        remaining = (
            column[-1] - np.interp(shares * total, rejected, column)
            for column in (rejected_identified, rejected_wrong)
        )
        tp, errors = (np.where(column > _ROUNDING * total, column, 0.0) for column in remaining)
        return np.asarray(np.divide(2 * tp, 2 * tp + errors, out=np.zeros_like(tp), where=tp > 0))


def f1_after_rejection(confidence: ArrayLike, decisions: Decisions, shares: Sequence[float]) -> list[float]:
    """F1 after rejecting each share of the probes, least confident first.

    Args:
        confidence: (n,) larger = more confident.
        decisions: decisions on the n probes, see `decide`.
        shares: rejected shares, 0 <= share < 1.

    Raises:
        InputError: a confidence is NaN, the shapes differ, or a share is out of range.

    Example:
        >>> decisions = decide([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 0], [1, 1, 0, 0], 0.5)
        >>> f1_after_rejection([4, 3, 1, 2], decisions, [0.0, 0.25])
        [0.8, 1.0]
    """
    s = np.asarray(shares, np.float64)
    if not ((s >= 0) & (s < 1)).all():
        raise InputError(f"rejected shares: expected 0 <= share < 1, got {s.min()} .. {s.max()}")
    values: list[float] = _rejection_order(confidence, decisions).f1(decisions, s).tolist()
    return values


def prediction_rejection_ratio(
    confidence: ArrayLike, decisions: Decisions, *, limit: float = PRR_LIMIT
) -> float | None:
    """Prediction rejection ratio (PRR) of F1 over rejected shares 0 .. ``limit``.

    With F1(s) after rejecting the share s, the ratio is the area of F1(s) - F1(0) over the area of
    F1_oracle(s) - F1(0), where the oracle rejects errors first. F1 is evaluated at every possible number of
    rejected probes.

    Args:
        confidence: (n,) larger = more confident.
        decisions: decisions on the n probes, see `decide`.
        limit: maximum rejected share, 0 < limit < 1.

    Returns:
        The ratio, at most 1; None if there are no errors or no true positives, since then F1 cannot change.

    Raises:
        InputError: a confidence is NaN, the shapes differ, or the limit is out of range.

    Example:
        >>> decisions = decide([0.9, 0.8, 0.7, 0.1], [1, 1, 0, 0], [1, 1, 0, 0], 0.5)
        >>> prediction_rejection_ratio([4, 3, 1, 2], decisions)
        1.0
        >>> prediction_rejection_ratio([1, 1, 1, 1], decisions)
        0.0
    """
    order = _rejection_order(confidence, decisions)
    value = prr_of(order, decisions, prr_shares(order.order.size, limit))
    return None if np.isnan(value) else value


def prr_shares(n: int, limit: float) -> Array:
    """Rejected shares 0, 1/n, 2/n, ... up to and including ``limit``."""
    if not 0 < limit < 1:
        raise InputError(f"PRR limit: expected 0 < limit < 1, got {limit}")
    shares = np.arange(int(allowed_errors(limit, n)) + 1) / n
    return shares if shares[-1] >= limit else np.append(shares, limit)


def prr_of(order: RejectionOrder, decisions: Decisions, shares: Array, weights: Array | None = None) -> float:
    """`prediction_rejection_ratio` of sorted probes, optionally with bootstrap weights; NaN if undefined."""
    w = np.ones(decisions.wrong.size) if weights is None else weights
    tp, wrong = float(w @ decisions.identified), float(w @ decisions.wrong)
    if not (tp and wrong):
        return float("nan")
    curve = order.f1(decisions, shares, weights)
    flat = curve[0] * shares[-1]
    oracle = 2 * tp / (2 * tp + np.maximum(wrong - shares * w.sum(), 0))  # errors are rejected first
    return float((np.trapezoid(curve, shares) - flat) / (np.trapezoid(oracle, shares) - flat))


def _rejection_order(confidence: ArrayLike, decisions: Decisions) -> RejectionOrder:
    order = RejectionOrder.of(confidence)
    if order.order.shape != decisions.wrong.shape:
        raise InputError(
            f"confidence: expected one per probe {decisions.wrong.shape}, got {order.order.shape}"
        )
    return order


RISKS = ("false_accept", "misidentification", "false_reject", "non_specificity")
PROBE_CONFIDENCES = (
    "kappa", "mean_resultant", "norm", "precision", "detector_score", "sharpness", "random",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Searched:
    """Probes after the search in a gallery."""

    posterior: OpenSetPosterior
    """Posterior given the mean direction of each probe."""
    mutual: OpenSetPosterior
    """Posterior given the distribution of each probe (with ``probe_kappa``)."""
    kappa: Array
    dim: int
    confidences: Mapping[str, Array]
    """Confidences that depend on the probe alone, by name."""


def probe_confidences(kappa: Array, dim: int, extras: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Confidences that do not depend on the gallery.

    A_d(kappa) is a rising function of kappa, so ``mean_resultant`` orders and rejects probes exactly as
    ``kappa`` does; it is included because its value has a meaning: the expected cosine to the true direction.

    Args:
        kappa: (n,) concentrations.
        dim: dimension d.
        extras: further confidences by name, (n,) each.
        seed: seed of the confidence ``random``.
    """
    length = mean_resultant_length(torch.from_numpy(np.asarray(kappa, np.float64)), dim).numpy()
    confidences = {"kappa": np.asarray(kappa, np.float64), "mean_resultant": length, **extras}
    return confidences | {"random": np.random.default_rng(seed).random(len(kappa))}


def gallery_confidences(probes: Searched, decisions: Decisions) -> dict[str, Array]:
    """Confidences in the decisions that need no fitting.

    - ``threshold_distance``: |best cosine - threshold|.
    - ``margin``: best cosine - second-best cosine.
    - ``max_posterior``: -log(1 - max(P_0, P_best)).
    - ``galue``: minus the entropy of the posterior.
    - ``mutual_risk``: minus the log probability that the decision is wrong, under the posterior of the
      probe's distribution, whose evidence is eq. 13 of Li et al., CVPR 2021. For data drawn from this model
      it is the true probability.
    """
    p, q = probes.posterior, probes.mutual
    not_best = np.logaddexp(p.log_others, p.log_unknown)
    log_wrong = np.where(decisions.accepted, np.logaddexp(q.log_others, q.log_unknown), q.log_known)
    return {
        "threshold_distance": np.abs(p.best_cosine - decisions.threshold),
        "margin": p.best_cosine - p.second_cosine,
        "max_posterior": -np.minimum(not_best, p.log_known),
        "galue": -p.entropy,
        "mutual_risk": -log_wrong,
    }


def log_risks(probes: Searched, accepted: Array) -> Array:
    """Logarithms of the four risks of MPRisk, (n, 4) in the order of `RISKS`; -inf if a risk does not apply.

    False accept and misidentification apply to accepted probes: r_FA = P_0, r_ID = sum of P_j over the other
    identities. False reject and non-specificity apply to rejected ones: r_FR = 1 - P_0, r_NS = P_0 N_0, with
    N_0 = C_d(2k) / (S_{d-1} C_d(k)^2), which is 1 for kappa k = 0 and falls as kappa increases.
    """
    p = probes.posterior
    k = torch.from_numpy(np.asarray(probes.kappa, np.float64))
    uniform = float(log_normalizer(torch.zeros(1, dtype=torch.float64), probes.dim))
    scaled, doubled = (log_normalizer_scaled(x, probes.dim).numpy() for x in (k, 2 * k))
    log_non_specificity = doubled - 2 * scaled + uniform
    zero = -np.inf  # the logarithm of no risk
    return np.stack(
        [
            np.where(accepted, p.log_unknown, zero),
            np.where(accepted, p.log_others, zero),
            np.where(accepted, zero, p.log_known),
            np.where(accepted, zero, p.log_unknown + log_non_specificity),
        ],
        axis=1,
    )


def divergences(probes: Searched) -> Array:
    """The two parts of HolUE's KL(posterior, prior), (n, 2): gallery and unknown.

    Gallery part: sum of P_i log(P_i / prior). Unknown part: P_0 (log p(z | x) - log p(z)) at the mean
    direction z; the probe's density p(z | x) brings in its kappa.
    """
    p = probes.posterior
    k = torch.from_numpy(np.asarray(probes.kappa, np.float64))
    log_density = log_normalizer_scaled(k, probes.dim).numpy()  # log C_d(k) + k, at the mode
    unknown = np.exp(p.log_unknown) * (log_density - p.log_evidence)
    return np.stack([p.gallery_divergence, unknown], axis=1)


KAPPA_CHOICES = ("likelihood", "cosine")


@dataclass(eq=False)
class OpenSet:
    """A gallery and the probes to search in it; probes whose subject is not enrolled are non-mated.

    Args:
        gallery: one template per subject.
        gallery_subjects: (k,) subject of each gallery template, all different.
        probes: templates to search.
        probe_subjects: (n,) subject of each probe.
        extras: confidences of the probes by name, (n,) each, larger = more confident: "norm",
            "detector_score", ...

    Raises:
        InputError: the shapes or the dimensions differ, a subject is enrolled twice, a confidence is NaN, or
            the probes are all mated or all non-mated.

    Example:
        >>> from spherecf.scoring import pool_templates
        >>> t = pool_templates(np.eye(4, dtype=np.float32), np.ones(4), [0, 1, 2, 3])
        >>> open_set = OpenSet(t.select([0, 1]), ["ann", "bo"], t.select([2, 3]), ["bo", "cy"])
        >>> open_set.truth.tolist()
        [1, -1]
    """

    gallery: Templates
    gallery_subjects: ArrayLike
    probes: Templates
    probe_subjects: ArrayLike
    extras: Mapping[str, ArrayLike] | None = None

    def __post_init__(self) -> None:
        for name in ("gallery", "probe"):
            side = self.gallery if name == "gallery" else self.probes
            subjects = np.asarray(getattr(self, f"{name}_subjects"))
            if subjects.shape != (len(side),):
                raise InputError(
                    f"{name}_subjects: expected one per template ({len(side)},), got {subjects.shape}"
                )
            setattr(self, f"{name}_subjects", subjects)
        names, counts = np.unique(self.gallery_subjects, return_counts=True)
        if (counts > 1).any():
            raise InputError(
                f"gallery: {int((counts > 1).sum())} subjects are enrolled more than once, first "
                f"{names[counts > 1][0]}; pool their images into one template each"
            )
        if self.gallery.dim != self.probes.dim:
            raise InputError(
                f"gallery templates have dimension {self.gallery.dim}, probes {self.probes.dim}: "
                "not the same recogniser"
            )
        self.extras = self._columns()
        mated = int((self.truth >= 0).sum())
        if not 0 < mated < len(self.probes):
            raise InputError(
                f"probes: {mated} of {len(self.probes)} show enrolled subjects; open-set rates need mated "
                "and non-mated probes"
            )

    def _columns(self) -> dict[str, Array]:
        columns: dict[str, Array] = {}
        for name, values in (self.extras or {}).items():
            column = np.asarray(values, np.float64)
            if column.shape != (len(self.probes),) or np.isnan(column).any():
                raise InputError(
                    f"confidence {name!r}: expected {len(self.probes)} numbers, got shape {column.shape} "
                    f"with {int(np.isnan(column).sum())} NaN"
                )
            columns[name] = column
        if self.probes.log_precision is not None:
            columns.setdefault("precision", self.probes.log_precision.mean(1, dtype=np.float64))
        return columns

    @property
    def truth(self) -> NDArray[np.int64]:
        """(n,) gallery position of each probe's subject, -1 for non-mated probes."""
        subjects = np.asarray(self.gallery_subjects)
        order = np.argsort(subjects)
        position = np.searchsorted(subjects, self.probe_subjects, sorter=order)
        row = order[np.minimum(position, len(order) - 1)]
        return np.where(subjects[row] == self.probe_subjects, row, -1).astype(np.int64)

    def divide(self, share: float, seed: int) -> tuple["OpenSet", "OpenSet"]:
        """Divide into two open sets without a common subject.

        Args:
            share: share of the enrolled and of the other subjects that the first part gets.
            seed: seed of the random division.

        Raises:
            InputError: ``share`` is not between 0 and 1, or a part has no mated or no non-mated probe.
        """
        if not 0 < share < 1:
            raise InputError(f"validation share: expected 0 < share < 1, got {share}")
        rng = np.random.default_rng(seed)
        enrolled = np.unique(self.gallery_subjects)
        others = np.setdiff1d(self.probe_subjects, enrolled)
        first = np.concatenate(
            [rng.permutation(people)[: round(share * people.size)] for people in (enrolled, others)]
        )
        masks = np.isin(self.gallery_subjects, first), np.isin(self.probe_subjects, first)
        return self._part(*masks), self._part(*(~mask for mask in masks))

    def _part(self, gallery: Array, probes: Array) -> "OpenSet":
        subjects = np.asarray(self.gallery_subjects)[gallery], np.asarray(self.probe_subjects)[probes]
        if not gallery.any() or not probes.any():
            raise InputError(
                f"open set: too few subjects to divide ({gallery.size} enrolled, {probes.size} probes); "
                "give validation data of other people instead"
            )
        return OpenSet(
            self.gallery.select(np.flatnonzero(gallery)), subjects[0],
            self.probes.select(np.flatnonzero(probes)), subjects[1],
            {name: column[probes] for name, column in self._columns().items()},
        )  # fmt: skip

    def gallery_kappas(self, choice: str | float, beta: float) -> tuple[float, float]:
        """Gallery concentrations kappa_g: given the probes' mean directions, and given their distributions.

        Args:
            choice: a number for both, "cosine" (`mean_cosine_kappa`) or "likelihood" (`fit_gallery_kappa`).
            beta: prior probability that a probe's subject is not enrolled.
        """
        if not isinstance(choice, str):
            return float(choice), float(choice)
        if choice not in KAPPA_CHOICES:
            raise InputError(f"kappa_gallery: expected a number or one of {KAPPA_CHOICES}, got {choice!r}")
        mu = self.probes.mu, self.gallery.mu, self.truth
        if choice == "cosine":
            return (mean_cosine_kappa(*mu),) * 2
        kappa = self.probes.kappa.astype(np.float64)
        return fit_gallery_kappa(*mu, beta), fit_gallery_kappa(*mu, beta, probe_kappa=kappa)

    def search(self, kappas: tuple[float, float], beta: float, seed: int) -> Searched:
        """Search the gallery: posteriors, and the confidences that depend on the probe alone."""
        kappa = self.probes.kappa.astype(np.float64)
        mu = self.probes.mu, self.gallery.mu
        return Searched(
            open_set_posterior(*mu, kappas[0], beta),
            open_set_posterior(*mu, kappas[1], beta, probe_kappa=kappa),
            kappa,
            self.probes.dim,
            probe_confidences(kappa, self.probes.dim, self._columns(), seed),
        )

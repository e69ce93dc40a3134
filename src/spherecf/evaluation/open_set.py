"""Open-set identification: decisions of a gallery, their confidences, and prediction-rejection ratios.

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

Confidences that see the probe alone (kappa, A_d(kappa), norm, ...) know how good the picture is; those that
see the gallery, too, know whether it matters. Sources: distance to the threshold, GalUE, HolUE: Erlygin and
Zaytsev, "Holistic uncertainty estimation for open-set recognition", arXiv 2408.14229; MPRisk: Erlygin,
Proskura and Zaytsev, 2025. Probabilities near 0 and 1 are kept as logarithms, so that their order survives.
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
    shares = np.arange(int(allowed_errors(limit, n)) + 1) / n
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


RISKS = ("false_accept", "misidentification", "false_reject", "non_specificity")
PROBE_CONFIDENCES = (
    "kappa", "mean_resultant", "norm", "precision", "detector_score", "sharpness", "random",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Searched:
    """Probes after their search of a gallery."""

    posterior: OpenSetPosterior
    """At the mean directions."""
    mutual: OpenSetPosterior
    """Of the probes' distributions (``probe_kappa`` given)."""
    kappa: Array
    dim: int
    own: Mapping[str, Array]
    """Confidences that see the probe alone, by name."""


def probe_confidences(kappa: Array, dim: int, extras: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """Confidences that do not look at the gallery.

    A_d(kappa) increases with kappa, so ``mean_resultant`` orders, and rejects, exactly as ``kappa`` does; it
    is there because its value can be read: the expected cosine to the true direction.

    Args:
        kappa: (n,) concentrations.
        dim: dimension d.
        extras: further ones by name, (n,) each.
        seed: of ``random``.
    """
    length = mean_resultant_length(torch.from_numpy(np.asarray(kappa, np.float64)), dim).numpy()
    own = {"kappa": np.asarray(kappa, np.float64), "mean_resultant": length, **extras}
    return own | {"random": np.random.default_rng(seed).random(len(kappa))}


def gallery_confidences(probes: Searched, decisions: Decisions) -> dict[str, Array]:
    """Confidences in a decision that need no fitting.

    - ``threshold_distance``: |best cosine - threshold|.
    - ``margin``: best cosine - second best.
    - ``max_posterior``: max(P_0, P_best), as -log(1 - it).
    - ``galue``: minus the entropy of the posterior.
    - ``mutual_risk``: minus log of the chance that the decision taken is wrong, under the posterior that
      takes the probe as a distribution, with eq. 13 of Li et al., CVPR 2021, as the evidence: in a world
      drawn from the model that chance itself.
    """
    p, q = probes.posterior, probes.mutual
    not_best = np.logaddexp(p.log_others, p.log_unknown)
    wrong = np.where(decisions.accepted, np.logaddexp(q.log_others, q.log_unknown), q.log_known)
    return {
        "threshold_distance": np.abs(p.best_cosine - decisions.threshold),
        "margin": p.best_cosine - p.second_cosine,
        "max_posterior": -np.minimum(not_best, p.log_known),
        "galue": -p.entropy,
        "mutual_risk": -wrong,
    }


def log_risks(probes: Searched, accepted: Array) -> Array:
    """Logarithms of the four risks of MPRisk, (n, 4) in the order of `RISKS`; -inf where one does not apply.

    r_FA = accepted P_0, r_ID = accepted sum of the other P_j, r_FR = rejected (1 - P_0), r_NS = rejected P_0
    N_0, with the non-specificity N_0 = C_d(2k) / (S_{d-1} C_d(k)^2): 1 for kappa 0, falling as the probe gets
    sharper.
    """
    p = probes.posterior
    k = torch.from_numpy(np.asarray(probes.kappa, np.float64))
    uniform = float(log_normalizer(torch.zeros(1, dtype=torch.float64), probes.dim))
    scaled, doubled = (log_normalizer_scaled(x, probes.dim).numpy() for x in (k, 2 * k))
    vague = doubled - 2 * scaled + uniform
    none = -np.inf
    return np.stack(
        [
            np.where(accepted, p.log_unknown, none),
            np.where(accepted, p.log_others, none),
            np.where(accepted, none, p.log_known),
            np.where(accepted, none, p.log_unknown + vague),
        ],
        axis=1,
    )


def divergences(probes: Searched) -> Array:
    """The two parts of HolUE's KL(posterior, prior), (n, 2): gallery and unknown.

    Gallery: sum of P_i log(P_i / prior). Unknown: P_0 (log p(z | x) - log p(z)) at the mean direction z,
    where the probe's own density enters, and with it its kappa.
    """
    p = probes.posterior
    k = torch.from_numpy(np.asarray(probes.kappa, np.float64))
    own = log_normalizer_scaled(k, probes.dim).numpy()  # log C_d(k) + k: log density at the mode
    return np.stack([p.gallery_divergence, np.exp(p.log_unknown) * (own - p.log_evidence)], axis=1)


KAPPA_CHOICES = ("likelihood", "cosine")


@dataclass(eq=False)
class OpenSet:
    """Who is enrolled and who is searched; a probe whose subject is not enrolled is non-mated.

    Args:
        gallery: one template per subject.
        gallery_subjects: (k,) subject of each, all different.
        probes: templates to search.
        probe_subjects: (n,) subject of each.
        extras: confidences of the probes by name, (n,) each, larger = surer: "norm", "detector_score", ...

    Raises:
        InputError: shapes that disagree, a subject enrolled twice, dimensions that differ, NaN confidences,
            or only one kind of probe.

    Example:
        >>> from spherecf.scoring import pool_templates
        >>> t = pool_templates(np.eye(4, dtype=np.float32), np.ones(4), [0, 1, 2, 3])
        >>> world = OpenSet(t.select([0, 1]), ["ann", "bo"], t.select([2, 3]), ["bo", "cy"])
        >>> world.truth.tolist()
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
                f"probes: {mated} of {len(self.probes)} are of enrolled subjects; open-set rates need mated "
                "and non-mated probes"
            )

    def _columns(self) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, values in (self.extras or {}).items():
            column = np.asarray(values, np.float64)
            if column.shape != (len(self.probes),) or np.isnan(column).any():
                raise InputError(
                    f"confidence {name!r}: expected {len(self.probes)} numbers, got shape {column.shape} "
                    f"with {int(np.isnan(column).sum())} NaN"
                )
            found[name] = column
        if self.probes.log_precision is not None:
            found.setdefault("precision", self.probes.log_precision.mean(1, dtype=np.float64))
        return found

    @property
    def truth(self) -> NDArray[np.int64]:
        """(n,) gallery position of each probe's subject, -1 where it is not enrolled."""
        subjects = np.asarray(self.gallery_subjects)
        order = np.argsort(subjects)
        place = np.searchsorted(subjects, self.probe_subjects, sorter=order)
        row = order[np.minimum(place, len(order) - 1)]
        return np.where(subjects[row] == self.probe_subjects, row, -1).astype(np.int64)

    def divide(self, share: float, seed: int) -> tuple["OpenSet", "OpenSet"]:
        """Two worlds without a common subject, the first with this share of enrolled and of other people.

        Raises:
            InputError: the share is not between 0 and 1, or a part has no mated or no non-mated probe.
        """
        if not 0 < share < 1:
            raise InputError(f"validation share: expected 0 < share < 1, got {share}")
        rng = np.random.default_rng(seed)
        enrolled = np.unique(self.gallery_subjects)
        others = np.setdiff1d(self.probe_subjects, enrolled)
        first = np.concatenate(
            [rng.permutation(people)[: round(share * people.size)] for people in (enrolled, others)]
        )
        inside = np.isin(self.gallery_subjects, first), np.isin(self.probe_subjects, first)
        return self._part(*inside), self._part(*(~mask for mask in inside))

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
        """kappa_g of the posterior at the mean direction, and of the one over the probe's distribution.

        Args:
            choice: a number for both, "cosine" (`mean_cosine_kappa`) or "likelihood" (`fit_gallery_kappa`).
            beta: prior of unknown.
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
        """Posteriors and the confidences that see the probe alone."""
        kappa = self.probes.kappa.astype(np.float64)
        mu = self.probes.mu, self.gallery.mu
        return Searched(
            open_set_posterior(*mu, kappas[0], beta),
            open_set_posterior(*mu, kappas[1], beta, probe_kappa=kappa),
            kappa,
            self.probes.dim,
            probe_confidences(kappa, self.probes.dim, self._columns(), seed),
        )

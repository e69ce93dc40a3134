"""The posterior of open-set identification: who it is, or nobody in the gallery.

Identity i of K has the density ``vMF(mu_i, kappa_g)`` and the prior ``(1 - beta) / K``, "unknown" the uniform
density and the prior ``beta``. At the mean direction mu of a probe

    P_i ~ (1 - beta) / K * C_d(kappa_g) exp(kappa_g mu_i^T mu),    P_0 ~ beta * C_d(0)

(Erlygin and Zaytsev, "Holistic uncertainty estimation for open-set recognition", arXiv 2408.14229). With
``probe_kappa`` the probe is its distribution instead of its mode, and the density is replaced by the evidence
``C_d(k) C_d(kappa_g) / C_d(|k mu + kappa_g mu_i|)``, the mutual likelihood (Li et al., CVPR 2021, eq. 13);
both agree as k grows. All is kept as logarithms: at d = 512 a posterior of 1e-40 is an everyday number, and
the order of such numbers is what rejection looks at.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from spherecf.common.arrays import SCORE_TOLERANCE, AnyArray, as_array, check_directions, check_kappa
from spherecf.errors import InputError
from spherecf.scoring.kernels import eager_kernel, normalizer_form
from spherecf.scoring.matrix import tiles
from spherecf.vmf import inverse_mean_resultant_length, log_normalizer, log_normalizer_scaled

Array = NDArray[Any]

_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 16  # of the golden section: 8 * 8 * 0.618^16 leaves 0.2 % of kappa
_FACTOR = 8.0  # the likelihood is searched this far on both sides of the first guess


@dataclass(frozen=True, eq=False)
class OpenSetPosterior:
    """What every probe's posterior has to say, (probes,) each; logarithms are natural."""

    best: Array
    """Row of the most similar gallery entry."""
    best_cosine: Array
    second_cosine: Array
    """-inf where the gallery has one entry."""
    log_unknown: Array
    """log P_0."""
    log_known: Array
    """log(1 - P_0)."""
    log_best: Array
    """log P_best, the largest of the P_i."""
    log_others: Array
    """log of the sum of the P_i other than the best; -inf where there are none."""
    entropy: Array
    """-sum P log P over the identities and unknown, in nats."""
    gallery_divergence: Array
    """sum over i of P_i log(P_i / prior): the gallery's part of KL(posterior, prior)."""
    log_evidence: Array
    """log density of the mean direction under the whole mixture (with ``probe_kappa``: of the probe)."""


def open_set_posterior(
    probes: Float[AnyArray, "n d"],
    gallery: Float[AnyArray, "k d"],
    kappa_gallery: float,
    beta: float = 0.5,
    *,
    probe_kappa: Float[AnyArray, " n"] | None = None,
    threads: int | None = None,
) -> OpenSetPosterior:
    """Posterior of every probe over the gallery's identities and "unknown".

    The matrix of similarities is made tile by tile and never held; sums are float64.

    Args:
        probes: (n, dim) unit mean directions, like all columns a NumPy array or a tensor.
        gallery: (k, dim) unit directions, one per identity.
        kappa_gallery: concentration of an identity around its gallery direction, > 0; see
            `fit_gallery_kappa`.
        beta: prior probability that a probe is of nobody in the gallery.
        probe_kappa: (n,) the probes' concentrations; default: infinite, the probe is its mean direction.
        threads: of the matrix products; changes no result.

    Raises:
        InputError: directions that are not of unit length (as in `cosine_score`), NaN, negative or infinite
            concentrations, an empty gallery, shapes that do not fit, or kappa or beta out of range.

    Example:
        >>> gallery = np.eye(3)
        >>> probes = np.array([[1.0, 0.0, 0.0], [0.577, 0.577, 0.577]])
        >>> posterior = open_set_posterior(probes, gallery, 20.0)
        >>> posterior.best.tolist(), np.exp(posterior.log_unknown).round(3).tolist()
        ([0, 0], [0.07..., 0.99...])
    """
    world = _World.of(probes, gallery, probe_kappa)
    _check_rates(kappa_gallery, beta)
    prior = math.log1p(-beta) - math.log(len(world.gallery))
    scores = _Scores(world, kappa_gallery)
    found = {field.name: np.empty(len(world.probes)) for field in fields(OpenSetPosterior)}
    for rows, cosines in tiles(threads, probes=world.probes, gallery=world.gallery):
        for name, values in _reduce(cosines, scores(rows, cosines) + prior, math.log(beta), prior).items():
            found[name][rows] = values
    found["log_evidence"] += scores.log_uniform
    return OpenSetPosterior(**{**found, "best": found["best"].astype(np.int64)})


@dataclass(frozen=True, eq=False)
class _World:
    """Who is searched for and among whom, checked; lengths of directions are looked at tile by tile."""

    probes: Array
    gallery: Array
    probe_kappa: Array | None

    @classmethod
    def of(cls, probes: AnyArray, gallery: AnyArray, probe_kappa: AnyArray | None) -> "_World":
        n, k = as_array(probes, "probes"), as_array(gallery, "gallery")
        own = None if probe_kappa is None else as_array(probe_kappa, "probe_kappa", np.float64)
        if n.ndim != 2 or k.ndim != 2 or not n.shape[0] or not k.shape[0] or n.shape[1] != k.shape[1]:
            raise InputError(
                f"posterior: expected probes (n, dim) and a gallery (k, dim) of one recogniser, n and k "
                f">= 1, got {n.shape} and {k.shape}"
            )
        if own is not None:
            if own.shape != n.shape[:1]:
                raise InputError(f"probe_kappa: expected one per probe, ({len(n)},), got {own.shape}")
            check_kappa(own, "probe_kappa")
        return cls(n, k, own)

    def truth(self, rows: AnyArray) -> NDArray[np.int64]:
        """(n,) gallery row of each probe, checked."""
        truth, count = as_array(rows, "truth"), len(self.gallery)
        if truth.shape != self.probes.shape[:1] or truth.dtype.kind not in "iu":
            raise InputError(
                f"truth: expected ({len(self.probes)},) integers, got {truth.shape} of {truth.dtype}"
            )
        if truth.min() < -1 or truth.max() >= count:
            raise InputError(
                f"truth: expected rows of the gallery, 0 .. {count - 1}, or -1 for unknown, got "
                f"{truth.min()} .. {truth.max()}"
            )
        return truth.astype(np.int64, copy=False)


class _Scores:
    """log of (density under identity i over uniform density) of every pair of a tile, float64."""

    def __init__(self, world: _World, kappa: float) -> None:
        self.dim = dim = world.probes.shape[1]
        self.kappa = torch.tensor([kappa, 0.0], dtype=torch.float64)
        log_c, self.log_uniform = log_normalizer(self.kappa, dim).tolist()
        self.offset = log_c - self.log_uniform
        self.probes: tuple[torch.Tensor, torch.Tensor] | None = None
        if world.probe_kappa is not None:
            k = torch.from_numpy(world.probe_kappa)
            self.probes = k, log_normalizer_scaled(k, dim) - normalizer_form(dim).constant - self.log_uniform

    def __call__(self, rows: slice, cosines: Array) -> Array:
        scores = cosines.astype(np.float64)  # (rows, k)
        if self.probes is None:
            scores *= float(self.kappa[0])
            scores += self.offset
        else:
            # Equation 13 of a probe and an identity; the constants went into the probes' offsets.
            tall, tall_offset = (column[rows, None] for column in self.probes)  # (rows, 1)
            wide = self.kappa[:1].expand(1, scores.shape[1])
            eager_kernel(self.dim)(
                torch.from_numpy(scores), tall, wide, tall_offset, log_normalizer_scaled(wide, self.dim)
            )
        return scores


def _reduce(cosines: Array, logits: Array, unknown: float, prior: float) -> dict[str, Array]:
    """Everything of `OpenSetPosterior` from one tile of log(prior * density) relative to the uniform one."""
    each = np.arange(len(logits))  # (rows,), as everything below but logits and cosines (rows, k)
    best = cosines.argmax(1)
    top, best_cosine = logits[each, best], cosines[each, best]
    second_cosine, others, spread = _without(cosines, logits, each, best)
    # Sums of logarithms throughout: 1 - P_0 is wanted where P_0 rounds to 1, and the other way round.
    known = np.logaddexp(top, others)
    rest = np.logaddexp(others, unknown)
    total = np.logaddexp(known, unknown)
    log_best, log_unknown = -np.logaddexp(0, rest - top), -np.logaddexp(0, known - unknown)
    p_best, p_unknown, p_others = np.exp(log_best), np.exp(log_unknown), np.exp(others - total)
    inner = p_others * (np.where(p_others > 0, others, 0) - total - spread)  # sum of P_j log P_j, j not best
    return {
        "best": best,
        "best_cosine": best_cosine,
        "second_cosine": second_cosine,
        "log_unknown": log_unknown,
        "log_known": -np.logaddexp(0, unknown - known),
        "log_best": log_best,
        "log_others": others - total,
        "entropy": -(inner + p_best * log_best + p_unknown * log_unknown),
        "gallery_divergence": inner + p_best * log_best - (p_best + p_others) * prior,
        "log_evidence": total,
    }


def _without(cosines: Array, logits: Array, each: Array, best: Array) -> tuple[Array, Array, Array]:
    """Second cosine, log of the summed others, and the entropy among them; ``logits`` are overwritten."""
    if logits.shape[1] == 1:
        none = np.full(len(logits), -np.inf)
        return none, none, np.zeros(len(logits))
    cosines = cosines.copy()  # the caller's, of a tile
    cosines[each, best] = -np.inf
    second = cosines.argmax(1)
    peak = logits[each, second]
    logits -= peak[:, None]  # the largest of the others becomes 0, so that exp cannot overflow
    logits[each, best] = 0.0
    weights = np.exp(logits)
    weights[each, best] = 0.0
    total = weights.sum(1)
    spread = np.log(total) - np.einsum("nk,nk->n", weights, logits) / total
    return cosines[each, second], peak + np.log(total), spread


def fit_gallery_kappa(
    probes: Float[AnyArray, "n d"],
    gallery: Float[AnyArray, "k d"],
    truth: Int64[AnyArray, " n"],
    beta: float = 0.5,
    *,
    probe_kappa: Float[AnyArray, " n"] | None = None,
    threads: int | None = None,
) -> float:
    """kappa_g that makes the true answers likeliest: the maximum of the mean log P_truth.

    A golden section around `mean_cosine_kappa`, over a factor of 8 on both sides.

    Args:
        probes: (n, dim) unit mean directions.
        gallery: (k, dim) unit directions.
        truth: (n,) gallery row of each probe's identity, -1 for unknown.
        beta: prior of unknown.
        probe_kappa: as in `open_set_posterior`.
        threads: of the matrix products.

    Raises:
        InputError: as in `open_set_posterior` and `mean_cosine_kappa`.

    Example:
        >>> gallery = np.eye(4)
        >>> probes = np.array([[0.9, 0.436, 0.0, 0.0], [0.436, 0.0, 0.0, 0.9], [0.5, 0.5, 0.5, -0.5]])
        >>> 1 < fit_gallery_kappa(probes, gallery, np.array([0, 3, -1])) < 100
        True
    """
    world = _World.of(probes, gallery, probe_kappa)
    answers = world.truth(truth)
    middle = math.log(mean_cosine_kappa(world.probes, world.gallery, answers))

    def miss(log_kappa: float) -> float:
        return -_log_truth(world, answers, math.exp(log_kappa), beta, threads)

    low, high = middle - math.log(_FACTOR), middle + math.log(_FACTOR)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = miss(left), miss(right)
    for _ in range(_STEPS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = miss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = miss(right)
    return math.exp((low + high) / 2)


def mean_cosine_kappa(
    probes: Float[AnyArray, "n d"], gallery: Float[AnyArray, "k d"], truth: Int64[AnyArray, " n"]
) -> float:
    """kappa_g with A_d(kappa_g) = mean cosine of the mated probes to their gallery entries.

    Raises:
        InputError: no mated probe, or their mean cosine is not in (0, 1); directions that are not of unit
            length (as in `cosine_score`), shapes that do not fit, or rows that the gallery lacks.

    Example:
        >>> round(mean_cosine_kappa(np.array([[0.9, 0.4359, 0.0]]), np.eye(3), np.array([0])), 2)
        10.0
    """
    world = _World.of(probes, gallery, None)
    answers = world.truth(truth)
    mated = np.flatnonzero(answers >= 0)
    left, right = world.probes[mated], world.gallery[answers[mated]]
    for name, mu in (("mated probes", left), ("their gallery entries", right)):
        check_directions(mu, name, SCORE_TOLERANCE)
    cosines = np.einsum("nd,nd->n", left, right, dtype=np.float64)
    if not mated.size or not 0 < cosines.mean() < 1:
        raise InputError(
            f"gallery kappa: expected mated probes with a mean cosine between 0 and 1, got {mated.size} with "
            f"{cosines.mean() if mated.size else float('nan'):.3g}; give kappa_gallery as a number"
        )
    rho = torch.tensor(cosines.mean(), dtype=torch.float64)
    return float(inverse_mean_resultant_length(rho, left.shape[1]))


def _log_truth(
    world: _World, truth: NDArray[np.int64], kappa: float, beta: float, threads: int | None
) -> float:
    """Mean log P of the true answers."""
    _check_rates(kappa, beta)
    prior = math.log1p(-beta) - math.log(len(world.gallery))
    scores = _Scores(world, kappa)
    total = 0.0
    for rows, cosines in tiles(threads, probes=world.probes, gallery=world.gallery):
        logits, right = scores(rows, cosines) + prior, truth[rows]
        answer = np.where(right < 0, math.log(beta), logits[np.arange(len(logits)), right])
        peak = logits.max(1)
        known = peak + np.log(np.exp(logits - peak[:, None]).sum(1))
        total += float((answer - np.logaddexp(known, math.log(beta))).sum())
    return total / len(truth)


def _check_rates(kappa: float, beta: float) -> None:
    if not (0 < kappa < math.inf and 0 < beta < 1):
        raise InputError(
            f"posterior: expected 0 < kappa_gallery < inf and 0 < beta < 1, got {kappa} and {beta}"
        )

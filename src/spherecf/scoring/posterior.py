"""The posterior of open-set identification, over the identities of a gallery and "unknown".

Identity i of K has the density ``vMF(mu_i, kappa_g)`` and the prior ``(1 - beta) / K``; "unknown" has the
uniform density and the prior ``beta``. At the mean direction mu of a probe

    P_i ~ (1 - beta) / K * C_d(kappa_g) exp(kappa_g mu_i^T mu),    P_0 ~ beta * C_d(0)

(Erlygin and Zaytsev, "Holistic uncertainty estimation for open-set recognition", arXiv 2408.14229). With
``probe_kappa`` the probe is represented by its distribution instead of its mode, and the density is replaced
by the evidence ``C_d(k) C_d(kappa_g) / C_d(|k mu + kappa_g mu_i|)``, the mutual likelihood (Li et al., CVPR
2021, eq. 13); the two agree as k grows. All values are logarithms: at d = 512 a posterior of 1e-40 is common,
and rejection depends on the order of such values.
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
_STEPS = 16  # of the golden-section search, which leaves an interval of log(64) * 0.618^16: 0.2 % of kappa
_FACTOR = 8.0  # the search covers this factor on both sides of the start value


@dataclass(frozen=True, eq=False)
class OpenSetPosterior:
    """Quantities of every probe's posterior, (probes,) each; logarithms are natural."""

    best: Array
    """Row of the gallery entry with the largest cosine."""
    best_cosine: Array
    """Largest cosine to a gallery entry."""
    second_cosine: Array
    """Second largest cosine; -inf if the gallery has only one entry."""
    log_unknown: Array
    """log P_0."""
    log_known: Array
    """log(1 - P_0)."""
    log_best: Array
    """log P_best, the largest of the P_i."""
    log_others: Array
    """log of the sum of all P_i but the largest; -inf if there are no others."""
    entropy: Array
    """-sum P log P over the identities and "unknown", in nats."""
    gallery_divergence: Array
    """sum over i of P_i log(P_i / prior), the gallery's part of KL(posterior || prior)."""
    log_evidence: Array
    """log density of the mixture at the mean direction (with ``probe_kappa``: log evidence of the probe)."""


def open_set_posterior(
    probes: Float[AnyArray, "n d"],
    gallery: Float[AnyArray, "k d"],
    kappa_gallery: float,
    beta: float = 0.5,
    *,
    probe_kappa: Float[AnyArray, " n"] | None = None,
    threads: int | None = None,
) -> OpenSetPosterior:
    """The posterior of every probe over the gallery's identities and "unknown".

        P_i ~ (1 - beta) / K * C_d(kappa_g) exp(kappa_g mu_i^T mu),    P_0 ~ beta * C_d(0)

    (Erlygin and Zaytsev, arXiv 2408.14229). The matrix of cosines is computed tile by tile and never stored
    as a whole; sums are float64.

    Args:
        probes: (n, dim) unit mean directions: a NumPy array or a tensor, like the other arguments.
        gallery: (k, dim) unit directions, one per identity.
        kappa_gallery: kappa_g > 0, the concentration of an identity around its gallery direction; see
            `fit_gallery_kappa`.
        beta: prior probability that the probe's identity is not in the gallery.
        probe_kappa: (n,) concentrations of the probes. Default: infinite, so that a probe is its mean
            direction.
        threads: number of threads of the matrix products; does not change the result.

    Raises:
        InputError: directions are not of unit length (as in `cosine_score`), concentrations are NaN, negative
            or infinite, the gallery is empty, shapes do not fit, or kappa_gallery or beta is out of range.

    Example:
        >>> gallery = np.eye(3)
        >>> probes = np.array([[1.0, 0.0, 0.0], [0.577, 0.577, 0.577]])
        >>> posterior = open_set_posterior(probes, gallery, 20.0)
        >>> posterior.best.tolist(), np.exp(posterior.log_unknown).round(3).tolist()
        ([0, 0], [0.07..., 0.99...])
    """
    search = _Search.of(probes, gallery, probe_kappa)
    _check_parameters(kappa_gallery, beta)
    log_prior = math.log1p(-beta) - math.log(len(search.gallery))
    scores = _LogRatios(search, kappa_gallery)
    results = {field.name: np.empty(len(search.probes)) for field in fields(OpenSetPosterior)}
    for rows, cosines in tiles(threads, probes=search.probes, gallery=search.gallery):
        logits = scores(rows, cosines) + log_prior
        for name, values in _reduce(cosines, logits, math.log(beta), log_prior).items():
            results[name][rows] = values
    results["log_evidence"] += scores.log_uniform
    return OpenSetPosterior(**{**results, "best": results["best"].astype(np.int64)})


@dataclass(frozen=True, eq=False)
class _Search:
    """Probes and gallery, checked; only the lengths of the directions are checked later, tile by tile."""

    probes: Array
    gallery: Array
    probe_kappa: Array | None

    @classmethod
    def of(cls, probes: AnyArray, gallery: AnyArray, probe_kappa: AnyArray | None) -> "_Search":
        n, k = as_array(probes, "probes"), as_array(gallery, "gallery")
        kappa = None if probe_kappa is None else as_array(probe_kappa, "probe_kappa", np.float64)
        if n.ndim != 2 or k.ndim != 2 or not n.shape[0] or not k.shape[0] or n.shape[1] != k.shape[1]:
            raise InputError(
                f"posterior: expected probes (n, dim) and a gallery (k, dim) of the same recogniser, n and k "
                f">= 1, got {n.shape} and {k.shape}"
            )
        if kappa is not None:
            if kappa.shape != n.shape[:1]:
                raise InputError(f"probe_kappa: expected one per probe, ({len(n)},), got {kappa.shape}")
            check_kappa(kappa, "probe_kappa")
        return cls(n, k, kappa)

    def truth(self, rows: AnyArray) -> NDArray[np.int64]:
        """The true gallery row of each probe (n,), checked; -1 for unknown."""
        truth, count = as_array(rows, "truth"), len(self.gallery)
        if truth.shape != self.probes.shape[:1] or truth.dtype.kind not in "iu":
            raise InputError(
                f"truth: expected ({len(self.probes)},) integers, got {truth.shape} of {truth.dtype}"
            )
        if truth.min() < -1 or truth.max() >= count:
            raise InputError(
                f"truth: expected rows of the gallery, 0 .. {count - 1}, or -1 for unknown; got values from "
                f"{truth.min()} to {truth.max()}"
            )
        return truth.astype(np.int64, copy=False)


class _LogRatios:
    """Log densities of a tile's probes under each identity, relative to the uniform density: (rows, k)."""

    def __init__(self, search: _Search, kappa: float) -> None:
        self.dim = dim = search.probes.shape[1]
        self.kappa = torch.tensor([kappa, 0.0], dtype=torch.float64)
        log_c, self.log_uniform = log_normalizer(self.kappa, dim).tolist()
        self.offset = log_c - self.log_uniform
        self.probe_terms: tuple[torch.Tensor, torch.Tensor] | None = None
        if search.probe_kappa is not None:
            k = torch.from_numpy(search.probe_kappa)
            offset = log_normalizer_scaled(k, dim) - normalizer_form(dim).constant - self.log_uniform
            self.probe_terms = k, offset

    def __call__(self, rows: slice, cosines: Array) -> Array:
        scores = cosines.astype(np.float64)  # (rows, k)
        if self.probe_terms is None:
            scores *= float(self.kappa[0])
            scores += self.offset
        else:
            # Equation 13 for a probe and an identity; its constants are in the probes' offsets.
            probe_kappa, probe_offset = (terms[rows, None] for terms in self.probe_terms)  # (rows, 1)
            kappa = self.kappa[:1].expand(1, scores.shape[1])  # (1, k)
            offset = log_normalizer_scaled(kappa, self.dim)
            eager_kernel(self.dim)(torch.from_numpy(scores), probe_kappa, kappa, probe_offset, offset)
        return scores


def _reduce(cosines: Array, logits: Array, log_beta: float, log_prior: float) -> dict[str, Array]:
    """All fields of `OpenSetPosterior` from one tile.

    Args:
        cosines: (rows, k).
        logits: (rows, k) log(prior * density) relative to the uniform density; overwritten.
        log_beta: the same of "unknown".
        log_prior: log prior of one identity.
    """
    each = np.arange(len(logits))  # (rows,), like all arrays below
    best = cosines.argmax(1)
    top, best_cosine = logits[each, best], cosines[each, best]
    second_cosine, others, entropy_of_others = _without_best(cosines, logits, each, best)
    # Logarithms throughout: 1 - P_0 is needed where P_0 rounds to 1, and P_0 where it rounds to 0.
    known = np.logaddexp(top, others)
    not_best = np.logaddexp(others, log_beta)
    total = np.logaddexp(known, log_beta)
    log_best, log_unknown = -np.logaddexp(0, not_best - top), -np.logaddexp(0, known - log_beta)
    p_best, p_unknown, p_others = np.exp(log_best), np.exp(log_unknown), np.exp(others - total)
    # sum of P_j log P_j over all j but the best
    inner = p_others * (np.where(p_others > 0, others, 0) - total - entropy_of_others)
    return {
        "best": best,
        "best_cosine": best_cosine,
        "second_cosine": second_cosine,
        "log_unknown": log_unknown,
        "log_known": -np.logaddexp(0, log_beta - known),
        "log_best": log_best,
        "log_others": others - total,
        "entropy": -(inner + p_best * log_best + p_unknown * log_unknown),
        "gallery_divergence": inner + p_best * log_best - (p_best + p_others) * log_prior,
        "log_evidence": total,
    }


def _without_best(cosines: Array, logits: Array, each: Array, best: Array) -> tuple[Array, Array, Array]:
    """The second cosine, and the log-sum-exp and entropy of the logits without the best, (rows,) each.

    ``logits`` are overwritten.
    """
    if logits.shape[1] == 1:
        no_others = np.full(len(logits), -np.inf)
        return no_others, no_others, np.zeros(len(logits))
    cosines = cosines.copy()
    cosines[each, best] = -np.inf
    second = cosines.argmax(1)
    peak = logits[each, second]
    logits -= peak[:, None]  # the largest of the others becomes 0, so that exp cannot overflow
    logits[each, best] = 0.0
    weights = np.exp(logits)
    weights[each, best] = 0.0
    total = weights.sum(1)
    entropy = np.log(total) - np.einsum("nk,nk->n", weights, logits) / total
    return cosines[each, second], peak + np.log(total), entropy


def fit_gallery_kappa(
    probes: Float[AnyArray, "n d"],
    gallery: Float[AnyArray, "k d"],
    truth: Int64[AnyArray, " n"],
    beta: float = 0.5,
    *,
    probe_kappa: Float[AnyArray, " n"] | None = None,
    threads: int | None = None,
) -> float:
    """The maximum likelihood estimate of kappa_g: it maximises the mean log posterior of the true answers.

    It is found by a golden-section search in log kappa_g, over a factor of 8 on both sides of
    `mean_cosine_kappa`.

    Args:
        probes: (n, dim) unit mean directions.
        gallery: (k, dim) unit directions.
        truth: (n,) gallery row of each probe's identity, -1 for unknown.
        beta: prior probability of "unknown".
        probe_kappa: as in `open_set_posterior`.
        threads: as in `open_set_posterior`.

    Raises:
        InputError: as in `open_set_posterior` and `mean_cosine_kappa`.

    Example:
        >>> gallery = np.eye(4)
        >>> probes = np.array([[0.9, 0.436, 0.0, 0.0], [0.436, 0.0, 0.0, 0.9], [0.5, 0.5, 0.5, -0.5]])
        >>> 1 < fit_gallery_kappa(probes, gallery, np.array([0, 3, -1])) < 100
        True
    """
    search = _Search.of(probes, gallery, probe_kappa)
    answers = search.truth(truth)
    middle = math.log(mean_cosine_kappa(search.probes, search.gallery, answers))

    def loss(log_kappa: float) -> float:
        return -_mean_log_truth(search, answers, math.exp(log_kappa), beta, threads)

    low, high = middle - math.log(_FACTOR), middle + math.log(_FACTOR)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    left_loss, right_loss = loss(left), loss(right)
    for _ in range(_STEPS):
        if left_loss < right_loss:
            high, right, right_loss = right, left, left_loss
            left = high - _GOLDEN * (high - low)
            left_loss = loss(left)
        else:
            low, left, left_loss = left, right, right_loss
            right = low + _GOLDEN * (high - low)
            right_loss = loss(right)
    return math.exp((low + high) / 2)


def mean_cosine_kappa(
    probes: Float[AnyArray, "n d"], gallery: Float[AnyArray, "k d"], truth: Int64[AnyArray, " n"]
) -> float:
    """The kappa_g for which A_d(kappa_g) is the mean cosine of the mated probes to their gallery entries.

    Args:
        probes: (n, dim) unit mean directions.
        gallery: (k, dim) unit directions.
        truth: (n,) gallery row of each probe's identity, -1 for unknown.

    Raises:
        InputError: there is no mated probe, the mean cosine is not in (0, 1), directions are not of unit
            length (as in `cosine_score`), shapes do not fit, or ``truth`` has rows that are not in the
            gallery.

    Example:
        >>> round(mean_cosine_kappa(np.array([[0.9, 0.4359, 0.0]]), np.eye(3), np.array([0])), 2)
        10.0
    """
    search = _Search.of(probes, gallery, None)
    answers = search.truth(truth)
    mated = np.flatnonzero(answers >= 0)
    left, right = search.probes[mated], search.gallery[answers[mated]]
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


def _mean_log_truth(
    search: _Search, truth: NDArray[np.int64], kappa: float, beta: float, threads: int | None
) -> float:
    """The mean log posterior of the true answers."""
    _check_parameters(kappa, beta)
    log_prior = math.log1p(-beta) - math.log(len(search.gallery))
    scores = _LogRatios(search, kappa)
    total = 0.0
    for rows, cosines in tiles(threads, probes=search.probes, gallery=search.gallery):
        logits, columns = scores(rows, cosines) + log_prior, truth[rows]  # (rows, k), (rows,)
        true_logit = np.where(columns < 0, math.log(beta), logits[np.arange(len(logits)), columns])
        peak = logits.max(1)
        known = peak + np.log(np.exp(logits - peak[:, None]).sum(1))
        total += float((true_logit - np.logaddexp(known, math.log(beta))).sum())
    return total / len(truth)


def _check_parameters(kappa: Any, beta: Any) -> None:
    try:
        valid = bool(0 < kappa < math.inf and 0 < beta < 1)
    except (TypeError, ValueError, RuntimeError):  # no numbers, or arrays or tensors of several
        valid = False
    if not valid:
        raise InputError(
            f"posterior: expected 0 < kappa_gallery < inf and 0 < beta < 1, got {kappa} and {beta}"
        )

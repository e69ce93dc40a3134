"""Open-set identification as one would explain it: 40-digit posteriors, loops over probes and ties."""

import mpmath as mp
import numpy as np

DIGITS = 40


def log_c(kappa, dim):
    """log C_d(kappa) of the von Mises-Fisher density."""
    kappa, half = mp.mpf(float(kappa)), mp.mpf(dim) / 2
    if kappa == 0:
        return mp.loggamma(half) - mp.log(2) - half * mp.log(mp.pi)
    return (half - 1) * mp.log(kappa) - half * mp.log(2 * mp.pi) - mp.log(mp.besseli(half - 1, kappa))


def posterior(cosines, dim, kappa_gallery, beta, probe_kappa=None):
    """[P_0, P_1, ..., P_K] and the density of one probe with these cosines to the gallery, in mpmath."""
    k = len(cosines)
    joint = [mp.mpf(beta) * mp.exp(log_c(0, dim))]
    for cosine in map(float, cosines):
        kappa, prior = mp.mpf(float(kappa_gallery)), (1 - mp.mpf(beta)) / k
        if probe_kappa is None:
            density = mp.exp(log_c(kappa, dim) + kappa * cosine)
        else:
            own = mp.mpf(float(probe_kappa))
            both = mp.sqrt(own**2 + kappa**2 + 2 * own * kappa * cosine)
            density = mp.exp(log_c(own, dim) + log_c(kappa, dim) - log_c(both, dim))
        joint.append(prior * density)
    total = mp.fsum(joint)
    return [p / total for p in joint], total


def pieces(p, total, beta):
    """What `OpenSetPosterior` holds, from the probabilities [P_0, P_1, ...]."""
    known = p[1:]
    best = max(range(len(known)), key=lambda i: known[i])
    others = mp.fsum(q for i, q in enumerate(known) if i != best)
    prior = (1 - mp.mpf(beta)) / len(known)
    return {
        "best": best,
        "log_unknown": mp.log(p[0]),
        "log_known": mp.log(mp.fsum(known)),
        "log_best": mp.log(known[best]),
        "log_others": mp.log(others) if others else -mp.inf,
        "entropy": -mp.fsum(q * mp.log(q) for q in p),
        "gallery_divergence": mp.fsum(q * mp.log(q / prior) for q in known),
        "log_evidence": mp.log(total),
    }


def unknown_divergence(p_unknown, total, kappa, dim):
    """P_0 (log p(z | x) - log p(z)) at the mean direction."""
    return p_unknown * (log_c(kappa, dim) + mp.mpf(float(kappa)) - mp.log(total))


def non_specificity(kappa, dim):
    """C_d(2k) / (S C_d(k)^2), S = 1 / C_d(0)."""
    return mp.exp(log_c(2 * kappa, dim) + log_c(0, dim) - 2 * log_c(kappa, dim))


def outcomes(similarity, right, mated, threshold):
    """Of each probe "tp", "wrong" or "tn"."""
    found = []
    for s, r, m in zip(similarity, right, mated):
        if m:
            found.append("tp" if s >= threshold and r else "wrong")
        else:
            found.append("wrong" if s >= threshold else "tn")
    return found


def f1_after(confidence, kinds, rejected):
    """F1 with ``rejected`` probes gone, least confident first; a cut tie leaves its expected counts."""
    left = {"tp": 0.0, "wrong": 0.0, "tn": 0.0}
    gone = 0
    for level in sorted(set(confidence)):
        group = [kind for c, kind in zip(confidence, kinds) if c == level]
        stay = 1 - min(max(rejected - gone, 0), len(group)) / len(group)
        for kind in group:
            left[kind] += stay
        gone += len(group)
    return 2 * left["tp"] / (2 * left["tp"] + left["wrong"]) if left["tp"] > 1e-9 else 0.0


def prr(confidence, kinds, limit):
    """Area over that of random, divided by the oracle's, by trapezia between whole numbers of probes."""
    n = len(kinds)
    counts = [*range(int(limit * n + 1e-9) + 1)]
    if counts[-1] < limit * n - 1e-9:
        counts.append(limit * n)

    def area(scores):
        heights = [f1_after(scores, kinds, k) for k in counts]
        return sum((b - a) / n * (x + y) / 2 for a, b, x, y in zip(counts, counts[1:], heights, heights[1:]))

    flat = area([0] * n)
    return (area(confidence) - flat) / (area([kind != "wrong" for kind in kinds]) - flat)


def fpir_threshold(similarity, mated, fpir):
    """The smallest observed similarity that accepts at most this share of the non-mated; inf if none does."""
    others = [s for s, m in zip(similarity, mated) if not m]
    fitting = [t for t in similarity if sum(s >= t for s in others) <= fpir * len(others) + 1e-9]
    return min(fitting, default=np.inf)

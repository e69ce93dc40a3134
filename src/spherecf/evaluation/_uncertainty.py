"""How sure is an open-set decision: every confidence of the literature, larger = surer.

Confidences that see the probe alone (kappa, A_d(kappa), norm, ...) know how good the picture is; those that
see the gallery, too, know whether it matters. Sources: distance to the threshold, GalUE, HolUE: Erlygin and
Zaytsev, "Holistic uncertainty estimation for open-set recognition", arXiv 2408.14229; MPRisk: Erlygin,
Proskura and Zaytsev, 2025. Probabilities near 0 and 1 are kept as logarithms, so that their order survives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.evaluation._prr import Decisions
from spherecf.scoring import OpenSetPosterior
from spherecf.vmf import log_normalizer, log_normalizer_scaled, mean_resultant_length

Array = NDArray[Any]

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

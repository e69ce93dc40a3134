"""One template setting of one seed: every head by the protocols of IJB, on the same templates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.data import IjbMeta
from spherecf.embeddings import Embeddings
from spherecf.evaluation import (
    IdentificationReport,
    RejectionReport,
    TemplateReport,
    evaluate_identification,
    evaluate_ijb,
    evaluate_template_rejection,
)
from spherecf.experiments._variants import HeadVariant

TARGETS = (1e-3, 1e-4, 1e-5)
FPIRS = (0.1, 0.01)
HEADLESS = ("N0", "N1", "D1")
"""Poolings that need no head: mean, norm, detector score."""


@dataclass(frozen=True, eq=False)
class TemplateTrial:
    """What was found in one setting.

    Attributes:
        backbone: name of the recogniser.
        plan: name of the setting.
        seed: of heads, templates and degradations.
        pairs: 1:1, reports by head; "" for the poolings without one.
        searches: 1:N, likewise.
        rejection: of the head "mls", by gallery.
    """

    backbone: str
    plan: str
    seed: int
    pairs: dict[str, TemplateReport] = field(default_factory=dict)
    searches: dict[str, IdentificationReport] = field(default_factory=dict)
    rejection: dict[str, RejectionReport] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Faces:
    """All images as the templates show them, one row each, and what every head says of them.

    Attributes:
        mu: (n, dim).
        keys: n.
        extras: norm, sharpness, severity: (n,) each.
        said: by head, (n,) log kappas or log precisions, or (n, dim) log precisions.
        provenance: for the signatures.
    """

    mu: NDArray[np.float32]
    keys: list[str]
    extras: Mapping[str, NDArray[np.float32]]
    said: Mapping[str, NDArray[np.float32]]
    provenance: Mapping[str, Any]

    def embeddings(self, variant: HeadVariant) -> Embeddings:
        """By one head; an isotropic Gaussian has equal precisions."""
        said = self.said[variant.score]
        log_kappa = said if said.ndim == 1 else np.log(np.exp(said).mean(1))
        precision = None
        if variant.gaussian:
            precision = np.ascontiguousarray(np.broadcast_to(said.reshape(len(said), -1), self.mu.shape))
        return Embeddings(
            self.mu, log_kappa, self.keys, extras=dict(self.extras),
            provenance={**self.provenance, "head": variant.score}, log_precision=precision,
        )  # fmt: skip


def run_trial(
    trial: TemplateTrial,
    faces: Faces,
    protocol: IjbMeta,
    variants: Sequence[HeadVariant],
    *,
    radius: float,
    draws: int,
) -> None:
    """Fill a trial. All draws of subjects are the same, whatever the head and the seed of the trial."""
    for variant in variants:
        shown = faces.embeddings(variant)
        own: list[tuple[str, dict[str, Any]]] = [
            (variant.score, {"modes": ["precision" if variant.gaussian else "K1"],
                             "scores": ["cosine", "pfe" if variant.gaussian else "mls"]})
        ]  # fmt: skip
        if variant.score == "mls":
            own.insert(0, ("", {"modes": list(HEADLESS), "scores": ["cosine"]}))
            trial.rejection.update(evaluate_template_rejection(shown, protocol, draws=0, seed=trial.seed))
        for head, how in own:
            how["radius"] = radius
            trial.pairs[head] = evaluate_ijb(shown, protocol, targets=TARGETS, draws=draws, **how)
            trial.searches[head] = evaluate_identification(shown, protocol, targets=FPIRS, draws=draws, **how)

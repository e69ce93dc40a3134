"""Template sets drawn from labelled images, and every head by the protocols of IJB on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.data import IjbMeta, TemplateList, TemplatePairs
from spherecf.demo.trial import HeadVariant
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import (
    IdentificationReport,
    RejectionOptions,
    RejectionReport,
    TemplateOptions,
    TemplateReport,
    evaluate_identification,
    evaluate_ijb,
    evaluate_template_rejection,
)


@dataclass(frozen=True)
class TemplatePlan:
    """What templates are like.

    Attributes:
        name: in tables, e.g. "3 images, half degraded".
        images: per template.
        degraded: share of the images that are degraded.
        most: templates per person.
    """

    name: str
    images: int
    degraded: float
    most: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """Which images stand in which template.

    Attributes:
        image: (m,) index of each template image among all images.
        template: (m,) number of its template.
        degraded: (m,) whether it is shown degraded.
        subject: (t,) whose template it is.
        place: (t,) 0 for the first template of a subject, 1 for the second, ...
    """

    image: NDArray[np.int64]
    template: NDArray[np.int64]
    degraded: NDArray[np.bool_]
    subject: NDArray[np.int64]
    place: NDArray[np.int64]

    def protocol(self, name: str, keys: list[str], detector_score: NDArray[np.float32] | None) -> IjbMeta:
        """A benchmark of IJB's kind: every template against every other, and two galleries.

        The first templates of every second person are gallery G1, of the others G2; all further templates are
        searched in both.

        Args:
            name: of the set.
            keys: of all images.
            detector_score: (m,) of the template images as shown.
        """
        left, right = np.triu_indices(len(self.subject), 1)
        pairs = TemplatePairs(left, right, self.subject[left] == self.subject[right])
        half = np.unique(self.subject, return_inverse=True)[1] % 2
        enrolled = [np.flatnonzero((self.place == 0) & (half == which)) for which in (0, 1)]
        searched = np.flatnonzero(self.place > 0)
        return IjbMeta(
            name,
            [keys[image] for image in self.image.tolist()],
            self.template,
            np.arange(len(self.image)),
            pairs,
            detector_score,
            galleries={f"G{i}": TemplateList(rows, self.subject[rows]) for i, rows in enumerate(enrolled, 1)},
            probes=TemplateList(searched, self.subject[searched]),
        )


def draw_templates(
    labels: NDArray[np.int64], usable: NDArray[np.bool_], plan: TemplatePlan, seed: int
) -> Drawn:
    """Disjoint templates of the plan's size: as many per person as the images allow, and at most ``most``.

    Args:
        labels: (images,) whose each image is, -1 unknown.
        usable: (images,) in every view.
        plan: sizes and share of degraded images.
        seed: of the draw; the same for the same images.

    Raises:
        InputError: fewer than four people have two templates (two for each gallery).
    """
    rng = np.random.default_rng(seed)
    images: list[NDArray[np.int64]] = []
    subjects: list[int] = []
    places: list[int] = []
    for person in np.unique(labels[(labels >= 0) & usable]).tolist():
        own = rng.permutation(np.flatnonzero((labels == person) & usable))
        count = min(plan.most, len(own) // plan.images)
        images.append(own[: count * plan.images])
        subjects += [person] * count
        places += range(count)
    subject = np.array(subjects, np.int64)
    several = int((np.bincount(subject, minlength=1) > 1).sum())
    if several < 4:
        raise InputError(
            f"templates of {plan.images} images: expected at least 4 people with images for two of them, got "
            f"{several}"
        )
    image = np.concatenate(images)
    degraded = np.zeros(len(image), np.bool_)
    degraded[rng.permutation(len(image))[: round(plan.degraded * len(image))]] = True
    template = np.repeat(np.arange(len(subject)), plan.images)
    return Drawn(image, template, degraded, subject, np.array(places, np.int64))


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
            trial.rejection.update(
                evaluate_template_rejection(shown, protocol, RejectionOptions(draws=0, seed=trial.seed))
            )
        for head, how in own:
            how["radius"] = radius
            trial.pairs[head] = evaluate_ijb(
                shown, protocol, TemplateOptions(targets=TARGETS, draws=draws, **how)
            )
            trial.searches[head] = evaluate_identification(
                shown, protocol, TemplateOptions(targets=FPIRS, draws=draws, **how)
            )

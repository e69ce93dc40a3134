"""Template sets drawn from labelled images, and their evaluation with the protocols of IJB."""

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
    """Settings of a template set.

    Attributes:
        name: in tables, e.g. "3 images, half degraded".
        images: images per template.
        degraded: share of the images that are degraded.
        most: maximum number of templates per person.
    """

    name: str
    images: int
    degraded: float
    most: int


@dataclass(frozen=True, eq=False)
class TemplateDraw:
    """The images of each template.

    Attributes:
        image: (m,) index of each template image among all images.
        template: (m,) number of its template.
        degraded: (m,) whether it is degraded.
        subject: (t,) person of each template.
        place: (t,) 0 for the first template of a subject, 1 for the second, ...
    """

    image: NDArray[np.int64]
    template: NDArray[np.int64]
    degraded: NDArray[np.bool_]
    subject: NDArray[np.int64]
    place: NDArray[np.int64]

    def protocol(self, name: str, keys: list[str], detector_score: NDArray[np.float32] | None) -> IjbMeta:
        """A benchmark like IJB: every template is compared with every other, and there are two galleries.

        The first templates of every second person form gallery G1, those of the other people G2; all further
        templates are searched in both.

        Args:
            name: of the set.
            keys: of all images.
            detector_score: (m,) of the template images, degraded or not.
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
) -> TemplateDraw:
    """Disjoint templates of the plan's size: as many per person as the images allow, up to ``most``.

    Args:
        labels: (images,) person in each image, -1 if unknown.
        usable: (images,) whether the image is usable in every view.
        plan: sizes and share of degraded images.
        seed: of the draw; the same seed and images give the same templates.

    Raises:
        InputError: fewer than four people have two templates (two people are needed for each gallery).
    """
    rng = np.random.default_rng(seed)
    images: list[NDArray[np.int64]] = []
    subjects: list[int] = []
    places: list[int] = []
    for person in np.unique(labels[(labels >= 0) & usable]).tolist():
        rows = rng.permutation(np.flatnonzero((labels == person) & usable))
        count = min(plan.most, len(rows) // plan.images)
        images.append(rows[: count * plan.images])
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
    return TemplateDraw(image, template, degraded, subject, np.array(places, np.int64))


TARGETS = (1e-3, 1e-4, 1e-5)
FPIRS = (0.1, 0.01)
HEADLESS = ("N0", "N1", "D1")
"""Pooling modes that need no head: mean, norm, detector score."""


@dataclass(frozen=True, eq=False)
class TemplateTrial:
    """Results of one setting.

    Attributes:
        backbone: name of the recogniser.
        plan: name of the setting.
        seed: of heads, templates and degradations.
        pairs: 1:1 reports by head; "" for pooling without a head.
        searches: 1:N reports by head, likewise.
        rejection: reports of the head "mls", by gallery.
    """

    backbone: str
    plan: str
    seed: int
    pairs: dict[str, TemplateReport] = field(default_factory=dict)
    searches: dict[str, IdentificationReport] = field(default_factory=dict)
    rejection: dict[str, RejectionReport] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Faces:
    """All images as used in the templates, clean or degraded, one row each, with the outputs of every head.

    Attributes:
        mu: (n, dim) directions.
        keys: of the n images.
        extras: norm, sharpness, severity: (n,) each.
        outputs: by head, (n,) log kappas or log precisions, or (n, dim) log precisions.
        provenance: for the signatures.
    """

    mu: NDArray[np.float32]
    keys: list[str]
    extras: Mapping[str, NDArray[np.float32]]
    outputs: Mapping[str, NDArray[np.float32]]
    provenance: Mapping[str, Any]

    def embeddings(self, variant: HeadVariant) -> Embeddings:
        """Embeddings with the outputs of one head; an isotropic Gaussian has equal precisions."""
        output = self.outputs[variant.score]
        log_kappa = output if output.ndim == 1 else np.log(np.exp(output).mean(1))
        precision = None
        if variant.gaussian:
            precision = np.ascontiguousarray(np.broadcast_to(output.reshape(len(output), -1), self.mu.shape))
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
    """Fill in the reports of a trial. All heads and seeds have the same bootstrap samples of subjects."""
    for variant in variants:
        embeddings = faces.embeddings(variant)
        settings: list[tuple[str, dict[str, Any]]] = [
            (variant.score, {"modes": ["precision" if variant.gaussian else "K1"],
                             "scores": ["cosine", "pfe" if variant.gaussian else "mls"]})
        ]  # fmt: skip
        if variant.score == "mls":
            settings.insert(0, ("", {"modes": list(HEADLESS), "scores": ["cosine"]}))
            trial.rejection.update(
                evaluate_template_rejection(embeddings, protocol, RejectionOptions(draws=0, seed=trial.seed))
            )
        for head, options in settings:
            options["radius"] = radius
            trial.pairs[head] = evaluate_ijb(
                embeddings, protocol, TemplateOptions(targets=TARGETS, draws=draws, **options)
            )
            trial.searches[head] = evaluate_identification(
                embeddings, protocol, TemplateOptions(targets=FPIRS, draws=draws, **options)
            )

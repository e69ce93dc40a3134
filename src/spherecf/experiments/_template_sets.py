"""Template sets drawn from labelled images: several pictures of one person, some of them degraded."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spherecf.data import Enrolled, IjbMeta, TemplatePairs
from spherecf.errors import InputError


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
            galleries={f"G{i}": Enrolled(rows, self.subject[rows]) for i, rows in enumerate(enrolled, 1)},
            probes=Enrolled(searched, self.subject[searched]),
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

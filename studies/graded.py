"""Faces of known people at every grade of degradation, their pairs, and the split into training and test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.audit import find_overlap, find_suspects
from spherecf.audit.labels import IdentityPair
from spherecf.data import RECIPES, Degradation, DegradationRecipe, ImageSource, View
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import SubjectRates
from spherecf.models import ConfidenceModel
from spherecf.scoring import cosine_matrix, mutual_likelihood_matrix, pool
from spherecf.training import FeatureCache, TrainingData

_KINDS = RECIPES["train"].kinds


def _graded(name: str, weakest: float, strongest: float) -> View:
    """One or two kinds of damage from training, with limited strength and a separate random stream."""
    return View(Degradation(DegradationRecipe(name, 1, _KINDS, (1, 2), (weakest, strongest), "graded")))


GRADES: dict[str, View] = {
    "none": View(),
    "mild": _graded("mild", 0.0, 0.3),
    "medium": _graded("medium", 0.3, 0.6),
    "strong": _graded("strong", 0.6, 0.9),
    "unseen": View(Degradation("unseen", 0)),
}
"""Views of the test images. "unseen" has kinds of damage that are in neither training nor calibration."""

CALIBRATED = ("none", "mild", "medium", "strong")
"""Grades that thresholds and rules are fitted on."""


@dataclass(frozen=True)
class Condition:
    """The grades of the left and of the right images of all pairs.

    Example:
        >>> [condition.name for condition in conditions(["none", "mild"])]
        ['none', 'none/mild', 'mild']
    """

    left: str
    right: str

    @property
    def name(self) -> str:
        """The name in tables: a single grade if it is the same on both sides."""
        return self.left if self.left == self.right else f"{self.left}/{self.right}"


def conditions(grades: list[str]) -> list[Condition]:
    """Undamaged images on both sides; then every other grade on the right side and on both sides."""
    result = [Condition("none", "none")]
    for grade in grades:
        if grade != "none":
            result += [Condition("none", grade), Condition(grade, grade)]
    return result


Array = NDArray[Any]

TEMPLATE_SIZES = (2, 3, 4, 5)


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """All pairs under one condition.

    Attributes:
        scores: by name, (n,).
        kappas: of the left and of the right side, (n,) each.
        mated: (n,) whether both sides show the same person.
        left: (n,) person on the left side.
        right: (n,) person on the right side.
    """

    scores: dict[str, NDArray[np.float32]]
    kappas: tuple[NDArray[np.float32], NDArray[np.float32]]
    mated: NDArray[np.bool_]
    left: NDArray[np.int64]
    right: NDArray[np.int64]

    @property
    def confidence(self) -> NDArray[np.float32]:
        """(n,) the smaller kappa of each pair."""
        return np.minimum(*self.kappas)

    def select(self, rows: Array) -> "ScoredPairs":
        """The pairs in the given rows."""
        return ScoredPairs(
            {name: values[rows] for name, values in self.scores.items()},
            (self.kappas[0][rows], self.kappas[1][rows]), self.mated[rows], self.left[rows], self.right[rows],
        )  # fmt: skip

    def add(self, name: str, values: Array) -> "ScoredPairs":
        """The same pairs with an additional score."""
        scores = {**self.scores, name: values.astype(np.float32)}
        return ScoredPairs(scores, self.kappas, self.mated, self.left, self.right)

    def reach(self, values: Array, mated: bool, thresholds: Array, draws: int, seed: int = 0) -> SubjectRates:
        """Share of the mated, or of the non-mated, pairs whose values reach the thresholds."""
        rows = self.mated if mated else ~self.mated
        return SubjectRates.of(
            values[rows], self.left[rows], self.right[rows], thresholds, draws=draws, seed=seed
        )


@dataclass(frozen=True, eq=False)
class GradedFaces:
    """Embeddings of every image at every grade.

    Attributes:
        grades: names of the grades.
        mu: (images, grades, dim) directions.
        kappa: (images, grades) concentrations.
        person: (images,) labels.
        keys: of the images.
        radius: r of the mutual likelihood score.
    """

    grades: Sequence[str]
    mu: NDArray[np.float32]
    kappa: NDArray[np.float32]
    person: NDArray[np.int64]
    keys: Sequence[str]
    radius: float

    def only(self, images: Array) -> "GradedFaces":
        """These images only, given by a mask or by row indices."""
        rows = np.flatnonzero(images) if images.dtype == np.bool_ else images
        keys = [self.keys[row] for row in rows.tolist()]
        return GradedFaces(self.grades, self.mu[rows], self.kappa[rows], self.person[rows], keys, self.radius)

    def of(self, grade: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(mu, kappa) at this grade."""
        column = list(self.grades).index(grade)
        return np.ascontiguousarray(self.mu[:, column]), np.ascontiguousarray(self.kappa[:, column])

    def groups(self) -> NDArray[Any]:
        """(images,) folder inside the person's: "frontal" for "001/frontal/01.jpg", "" if there is none."""
        return np.array([key.split("/")[-2] if key.count("/") > 1 else "" for key in self.keys])

    def pairs(self, condition: Condition) -> ScoredPairs:
        """Every image against every later one."""
        left, right = np.triu_indices(len(self.person), 1)
        return self._score(self.of(condition.left), self.of(condition.right), left, right, self.person)

    def template_pairs(self, condition: Condition, seed: int = 0) -> ScoredPairs:
        """Templates of 2 to 5 images, one of each size per person, against images that are in no template.

        Templates are pooled by natural parameters. The condition's left grade is that of the template, the
        right one that of the single image. This is repeated twice with different random images.
        """
        return _joined([self._drawn_templates(condition, np.random.default_rng([seed, i])) for i in range(2)])

    def two_template_pairs(self, condition: Condition, seed: int = 0) -> ScoredPairs:
        """Templates against templates: one of each size per person and side; no image is on both sides.

        The condition's left grade is that of all left templates, the right one that of the right templates.
        This is repeated twice with different random images.
        """
        return _joined([self._drawn_twice(condition, np.random.default_rng([seed, i, 2])) for i in range(2)])

    def _drawn_twice(self, condition: Condition, rng: np.random.Generator) -> ScoredPairs:
        sides: tuple[list[Array], list[Array]] = ([], [])
        people: tuple[list[int], list[int]] = ([], [])
        for person in np.unique(self.person).tolist():
            rows = rng.permutation(np.flatnonzero(self.person == person))
            for side, half in enumerate((rows[::2], rows[1::2])):
                parts = [half[:size] for size in TEMPLATE_SIZES if size <= len(half)]
                sides[side].extend(parts)
                people[side].extend([person] * len(parts))
        pooled = [
            self._pooled(grade, parts) for grade, parts in zip((condition.left, condition.right), sides)
        ]
        left, right = (part.reshape(-1) for part in np.indices((len(sides[0]), len(sides[1]))))
        return self._score(pooled[0], pooled[1], left, right, *map(np.array, people))

    def _pooled(self, grade: str, parts: Sequence[Array]) -> tuple[Array, Array]:
        """(mu, kappa) of templates, by natural parameters."""
        mu, kappa = self.of(grade)
        rows = np.concatenate(parts)
        pooled = pool(mu[rows], kappa[rows], np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
        return pooled.mu, pooled.kappa

    def _drawn_templates(self, condition: Condition, rng: np.random.Generator) -> ScoredPairs:
        chosen, people, probes = [], [], []
        for person in np.unique(self.person).tolist():
            rows = rng.permutation(np.flatnonzero(self.person == person))
            sizes = [size for size in TEMPLATE_SIZES if size < len(rows)]
            for size in sizes:
                chosen.append(rows[:size])
                people.append(person)
            probes.append(rows[max(sizes, default=0) :])
        probe = np.concatenate(probes)
        single_mu, single_kappa = self.of(condition.right)
        left, right = (part.reshape(-1) for part in np.indices((len(chosen), len(probe))))
        return self._score(
            self._pooled(condition.left, chosen),
            (single_mu[probe], single_kappa[probe]),
            left, right, np.array(people), self.person[probe],
        )  # fmt: skip

    def _score(
        self,
        left_side: tuple[Array, Array],
        right_side: tuple[Array, Array],
        left: Array,
        right: Array,
        people: Array,
        right_people: Array | None = None,
    ) -> ScoredPairs:
        """Score row ``left[i]`` of one side against row ``right[i]`` of the other; a side is (mu, kappa)."""
        (mu, kappa), (other_mu, other_kappa) = (map(torch.from_numpy, s) for s in (left_side, right_side))
        left_person = people[left]
        right_person = (people if right_people is None else right_people)[right]
        return ScoredPairs(
            {
                "mls": mutual_likelihood_matrix(mu, kappa, other_mu, other_kappa, self.radius).numpy()[
                    left, right
                ],
                "cosine": cosine_matrix(mu, other_mu).numpy()[left, right],
            },
            (left_side[1][left], right_side[1][right]),
            left_person == right_person,
            left_person,
            right_person,
        )


def _joined(parts: Sequence[ScoredPairs]) -> ScoredPairs:
    names = parts[0].scores
    return ScoredPairs(
        {name: np.concatenate([part.scores[name] for part in parts]) for name in names},
        (
            np.concatenate([part.kappas[0] for part in parts]),
            np.concatenate([part.kappas[1] for part in parts]),
        ),
        np.concatenate([part.mated for part in parts]),
        np.concatenate([part.left for part in parts]),
        np.concatenate([part.right for part in parts]),
    )


@dataclass(frozen=True, eq=False)
class Division:
    """A training set split into people to train on and people to test on.

    Attributes:
        held_out: (images,) images of the people for the template tests: people who may also be in the test
            set, and a share of the rest. All other people are used for training.
        shared: pairs of identities that look like one person in both sets.
        facts: JSON-serialisable counts.
    """

    held_out: NDArray[np.bool_]
    shared: list[IdentityPair]
    facts: dict[str, Any]

    def training(self, data: TrainingData) -> TrainingData:
        """The same features, with label -1 for the held-out people so that they are not used for training."""
        cache = data.cache
        source = cache.source.subset(np.arange(len(cache.source)))
        source.labels = np.where(self.held_out, -1, source.labels)
        used = int((~self.held_out).sum()) - len(cache.skipped)
        return TrainingData(
            FeatureCache(cache.store, source, cache.views), {**data.facts, **self.facts, "used": used}
        )

    def tested(self, source: ImageSource) -> ImageSource:
        """The images of the held-out people."""
        return source.subset(np.flatnonzero(self.held_out))


def divide(
    train: FeatureCache, test: FeatureCache, *, min_images: int = 6, share: float = 1 / 3, seed: int = 0
) -> Division:
    """Hold out all people of a training set who look like a person of the test set, and some more to test on.

    Args:
        train: features of the training set; the clean views are compared. Two people look alike if the cosine
            of their class means is one that a search reaches by chance once in 100
            (`spherecf.audit.find_suspects`).
        test: features of another data set, from the same recogniser.
        min_images: number of images that a person needs to be drawn for the template tests.
        share: share of the other people with at least ``min_images`` images to hold out as well.
        seed: of that draw.

    Raises:
        InputError: nobody is left to train on.
    """
    train_clean, test_clean, source = _clean(train), _clean(test), train.source
    shared = find_overlap(train_clean, test_clean, find_suspects(train_clean).thresholds.other)
    label = {name: i for i, name in enumerate(source.identities)}
    alike = np.array(sorted({label[pair.left] for pair in shared}), np.int64)
    counts = np.bincount(source.labels, minlength=len(source.identities))
    rest = np.setdiff1d(np.flatnonzero(counts >= min_images), alike)
    drawn = np.random.default_rng(seed).permutation(rest)[: round(share * len(rest))]
    held_out = np.isin(source.labels, np.concatenate([alike, drawn]))
    if held_out.all():
        raise InputError(
            f"{source.name}: everybody looks like a person of {test.source.name}, nobody is left to train on"
        )
    facts = {
        "people_of_both": len(alike),
        "train_people": len(np.unique(source.labels[~held_out])),
        "train_images": int((~held_out).sum()),
        "held_out_people": len(np.unique(source.labels[held_out])),
        "held_out_images": int(held_out.sum()),
    }
    return Division(held_out, shared, facts)


def centred(model: ConfidenceModel, mu: NDArray[np.float32]) -> NDArray[np.float32]:
    """The model's directions (n, dim), from the recogniser's, as a cache has them."""
    if model.centring is None:
        return mu
    directions: NDArray[np.float32] = model.centring(torch.from_numpy(np.array(mu))).numpy()
    return directions


def _clean(cache: FeatureCache) -> Embeddings:
    """Embeddings of the clean view; kappa is not used."""
    return cache.embeddings(0, np.zeros(len(cache), np.float32), {})

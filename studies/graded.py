"""Faces of known people in every grade of degradation, their pairs, and people who may learn or test."""

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
from spherecf.scoring import cosine_matrix, mutual_likelihood_matrix, pool
from spherecf.training import FeatureCache, TrainingData

_KINDS = RECIPES["train"].kinds


def _graded(name: str, weakest: float, strongest: float) -> View:
    """One or two of the kinds that training knows, of limited strength; the draws are of its own stream."""
    return View(Degradation(DegradationRecipe(name, 1, _KINDS, (1, 2), (weakest, strongest), "graded")))


GRADES: dict[str, View] = {
    "none": View(),
    "mild": _graded("mild", 0.0, 0.3),
    "medium": _graded("medium", 0.3, 0.6),
    "strong": _graded("strong", 0.6, 0.9),
    "unseen": View(Degradation("unseen", 0)),
}
"""How the test pictures are shown. "unseen" has kinds that neither training nor calibration contains."""

CALIBRATED = ("none", "mild", "medium", "strong")
"""Grades that thresholds and rules are made on."""


@dataclass(frozen=True)
class Condition:
    """Which grade stands left and right in every pair.

    Example:
        >>> [condition.name for condition in conditions(["none", "mild"])]
        ['none', 'none/mild', 'mild']
    """

    left: str
    right: str

    @property
    def name(self) -> str:
        """In tables: one grade if both pictures have it."""
        return self.left if self.left == self.right else f"{self.left}/{self.right}"


def conditions(grades: list[str]) -> list[Condition]:
    """Good pictures among each other, and by every other grade one and both of them degraded."""
    found = [Condition("none", "none")]
    for grade in grades:
        if grade != "none":
            found += [Condition("none", grade), Condition(grade, grade)]
    return found


Array = NDArray[Any]

TEMPLATE_SIZES = (2, 3, 4, 5)


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """All pairs under one condition.

    Attributes:
        scores: by name, (n,).
        kappas: of the left and of the right side, (n,) each.
        mated: (n,).
        left: (n,) person of the left image.
        right: (n,) of the right one.
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
        """Some of the pairs."""
        return ScoredPairs(
            {name: values[rows] for name, values in self.scores.items()},
            (self.kappas[0][rows], self.kappas[1][rows]), self.mated[rows], self.left[rows], self.right[rows],
        )  # fmt: skip

    def add(self, name: str, values: Array) -> "ScoredPairs":
        """The same pairs with one score more."""
        scores = {**self.scores, name: values.astype(np.float32)}
        return ScoredPairs(scores, self.kappas, self.mated, self.left, self.right)

    def reach(self, values: Array, mated: bool, thresholds: Array, draws: int, seed: int = 0) -> SubjectRates:
        """How many pairs of one kind reach the thresholds."""
        own = self.mated if mated else ~self.mated
        return SubjectRates.of(
            values[own], self.left[own], self.right[own], thresholds, draws=draws, seed=seed
        )


@dataclass(frozen=True, eq=False)
class GradedFaces:
    """Every image of some people as every grade shows it.

    Attributes:
        grades: names.
        mu: (images, grades, dim).
        kappa: (images, grades).
        person: (images,).
        keys: images.
        radius: r of the mutual likelihood score.
    """

    grades: Sequence[str]
    mu: NDArray[np.float32]
    kappa: NDArray[np.float32]
    person: NDArray[np.int64]
    keys: Sequence[str]
    radius: float

    def only(self, images: Array) -> "GradedFaces":
        """Some of the images."""
        rows = np.flatnonzero(images) if images.dtype == np.bool_ else images
        keys = [self.keys[row] for row in rows.tolist()]
        return GradedFaces(self.grades, self.mu[rows], self.kappa[rows], self.person[rows], keys, self.radius)

    def of(self, grade: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(mu, kappa) in this grade."""
        at = list(self.grades).index(grade)
        return np.ascontiguousarray(self.mu[:, at]), np.ascontiguousarray(self.kappa[:, at])

    def groups(self) -> NDArray[Any]:
        """(images,) "frontal" of "001/frontal/01.jpg"; "" of keys without a folder inside the person's."""
        return np.array([key.split("/")[-2] if key.count("/") > 1 else "" for key in self.keys])

    def pairs(self, condition: Condition) -> ScoredPairs:
        """Every image with every later one."""
        left, right = np.triu_indices(len(self.person), 1)
        return self._score(self.of(condition.left), self.of(condition.right), left, right, self.person)

    def template_pairs(self, condition: Condition, seed: int = 0) -> ScoredPairs:
        """Templates of 2 to 5 images, one of each size per person, against images that are in none of them.

        Pooled by natural parameters. The condition's left grade is that of the template, the right one that
        of the single image. Twice, with other images drawn.
        """
        return _joined([self._drawn_templates(condition, np.random.default_rng([seed, i])) for i in range(2)])

    def two_template_pairs(self, condition: Condition, seed: int = 0) -> ScoredPairs:
        """Templates against templates: one of each size per person and side, no image on both sides.

        The condition's left grade is that of all left templates, the right one that of the others. Twice,
        with other images drawn.
        """
        return _joined([self._drawn_twice(condition, np.random.default_rng([seed, i, 2])) for i in range(2)])

    def _drawn_twice(self, condition: Condition, rng: np.random.Generator) -> ScoredPairs:
        sides: tuple[list[Array], list[Array]] = ([], [])
        people: tuple[list[int], list[int]] = ([], [])
        for person in np.unique(self.person).tolist():
            own = rng.permutation(np.flatnonzero(self.person == person))
            for side, half in enumerate((own[::2], own[1::2])):
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
        found = pool(mu[rows], kappa[rows], np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
        return found.mu, found.kappa

    def _drawn_templates(self, condition: Condition, rng: np.random.Generator) -> ScoredPairs:
        chosen, people, probes = [], [], []
        for person in np.unique(self.person).tolist():
            own = rng.permutation(np.flatnonzero(self.person == person))
            sizes = [size for size in TEMPLATE_SIZES if size < len(own)]
            for size in sizes:
                chosen.append(own[:size])
                people.append(person)
            probes.append(own[max(sizes, default=0) :])
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
        one: tuple[Array, Array],
        two: tuple[Array, Array],
        left: Array,
        right: Array,
        people: Array,
        others: Array | None = None,
    ) -> ScoredPairs:
        (mu, kappa), (other_mu, other_kappa) = (map(torch.from_numpy, side) for side in (one, two))
        own, their = people[left], (people if others is None else others)[right]
        return ScoredPairs(
            {
                "mls": mutual_likelihood_matrix(mu, kappa, other_mu, other_kappa, self.radius).numpy()[
                    left, right
                ],
                "cosine": cosine_matrix(mu, other_mu).numpy()[left, right],
            },
            (one[1][left], two[1][right]),
            own == their,
            own,
            their,
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
    """The people of a training set in two parts.

    Attributes:
        held_out: (images,) images of the people for the template tests: those who may be in the test set as
            well, and a share of the rest. All others train.
        shared: pairs of identities that look like one person in both sets.
        facts: JSON-able counts.
    """

    held_out: NDArray[np.bool_]
    shared: list[IdentityPair]
    facts: dict[str, Any]

    def training(self, data: TrainingData) -> TrainingData:
        """The same features with the held-out people unnamed, so that nothing is learnt from them."""
        cache = data.cache
        source = cache.source.subset(np.arange(len(cache.source)))
        source.labels = np.where(self.held_out, -1, source.labels)
        used = int((~self.held_out).sum()) - len(cache.skipped)
        return TrainingData(
            FeatureCache(cache.store, source, cache.views), {**data.facts, **self.facts, "used": used}
        )

    def tested(self, source: ImageSource) -> ImageSource:
        """The held-out people's images."""
        return source.subset(np.flatnonzero(self.held_out))


def divide(
    train: FeatureCache, test: FeatureCache, *, min_images: int = 6, share: float = 1 / 3, seed: int = 0
) -> Division:
    """Hold out everybody of a training set who looks like a person of the test set, and some more to test on.

    Args:
        train: features of the training set; the clean views are compared. Class means with a cosine that a
            search reaches by chance once in 100 (`spherecf.audit.find_suspects`) look alike.
        test: features of another data set, by the same recogniser.
        min_images: number of images that a person needs to be drawn for the template tests.
        share: of the other people with as many images who are held out, too.
        seed: of that draw.

    Raises:
        InputError: nobody is left to train on.
    """
    own, other, source = _clean(train), _clean(test), train.source
    shared = find_overlap(own, other, find_suspects(own).thresholds.other)
    label = {name: place for place, name in enumerate(source.identities)}
    alike = np.array(sorted({label[pair.left] for pair in shared}), np.int64)
    counts = np.bincount(source.labels, minlength=len(source.identities))
    rest = np.setdiff1d(np.flatnonzero(counts >= min_images), alike)
    drawn = np.random.default_rng(seed).permutation(rest)[: round(share * len(rest))]
    out = np.isin(source.labels, np.concatenate([alike, drawn]))
    if out.all():
        raise InputError(
            f"{source.name}: everybody looks like a person of {test.source.name}, nobody is left to train on"
        )
    facts = {
        "people_of_both": len(alike),
        "train_people": len(np.unique(source.labels[~out])),
        "train_images": int((~out).sum()),
        "held_out_people": len(np.unique(source.labels[out])),
        "held_out_images": int(out.sum()),
    }
    return Division(out, shared, facts)


def _clean(cache: FeatureCache) -> Embeddings:
    return cache.embeddings(0, np.zeros(len(cache), np.float32), {})

"""A small complete data set: people, severities, extras, and two files with the same keys."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from spherecf.data import PairList
from spherecf.embeddings import Embeddings
from spherecf.evaluation import PairOptions, PairReport, evaluate_pairs

PEOPLE, EACH, DIM = 40, 6, 16


@dataclass(frozen=True)
class Toy:
    """Embeddings of clean and degraded images, and a pair list."""

    clean: Embeddings
    degraded: Embeddings
    left: list[str]
    right: list[str]
    mated: np.ndarray
    folds: np.ndarray

    def report(
        self, left: Embeddings | None = None, right: Embeddings | None = None, **options: Any
    ) -> PairReport:
        """Evaluate, by default clean against clean and without intervals."""
        arguments = {
            name: options.pop(name)
            for name in ("extra_scores", "condition", "label", "step") & options.keys()
        }
        pairs = self.pairs(options.pop("name", "toy"), options.pop("subjects", None))
        left_file = left or self.clean
        return evaluate_pairs(
            left_file, right or left_file, pairs, PairOptions(**{"draws": 0} | options), **arguments
        )

    def pairs(self, name: str = "toy", subjects: Any = None, count: int | None = None) -> PairList:
        """The pair list, or its first ``count`` pairs."""
        columns = [column[:count] for column in (self.left, self.right, self.mated, self.folds)]
        return PairList(name, *columns, *(subjects or ()))


def embeddings(noise: np.ndarray, seed: int, **provenance: object) -> Embeddings:
    """The direction of each person plus noise; kappa and norm fall with the noise."""
    rng = np.random.default_rng(seed)
    people = np.random.default_rng(0).normal(size=(PEOPLE, DIM)) / DIM**0.5
    labels = np.repeat(np.arange(PEOPLE), EACH)
    mu = people[labels] + rng.normal(size=(labels.size, DIM)) / DIM**0.5 * noise[:, None]
    return Embeddings(
        mu / np.linalg.norm(mu, axis=1, keepdims=True), np.log(60 / noise**2),
        [f"p{label}/{i % EACH}.jpg" for i, label in enumerate(labels)],
        labels, [f"p{i}" for i in range(PEOPLE)],
        {"norm": 10 / noise + rng.normal(size=noise.size), "severity": np.maximum(0, noise - 0.8)},
        provenance={"data": "d" * 64, "backbone": "b" * 64, "model": "m" * 64, "radius": 64.0, **provenance},
    )  # fmt: skip


@pytest.fixture(scope="session")
def toy() -> Toy:
    """400 pairs, half mated, ten folds."""
    rng = np.random.default_rng(1)
    noise = rng.uniform(0.3, 0.8, PEOPLE * EACH)
    clean = embeddings(noise, 2, view="clean")
    degraded = embeddings(noise + rng.uniform(0.01, 1.2, noise.size), 3, view="cross-v1/0")
    left, right, mated = [], [], np.arange(400) % 2 == 0
    for is_mated in mated:
        a, b = (p := rng.integers(PEOPLE), p) if is_mated else rng.choice(PEOPLE, 2, replace=False)
        i, j = rng.choice(EACH, 2, replace=False)
        left.append(f"p{a}/{i}.jpg")
        right.append(f"p{b}/{j}.jpg")
    return Toy(clean, degraded, left, right, mated, np.arange(400) // 40)

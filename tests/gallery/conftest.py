"""Synthetic people for the gallery tests: random directions and kappas, without faces."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spherecf.calibration import Calibration, DecisionRule
from spherecf.gallery import Gallery

MODEL, BACKBONE, DIM, RADIUS = "a" * 64, "b" * 64, 32, 1.0


@pytest.fixture(scope="session")
def people() -> np.ndarray:
    """(40, 32) unit directions."""
    return unit(np.random.default_rng(7), 40)


def unit(rng: np.random.Generator, n: int) -> np.ndarray:
    mu = rng.standard_normal((n, DIM))
    return (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32)


def near(mu: np.ndarray, seed: int, noise: float = 0.1) -> np.ndarray:
    """Directions of other images of the same people."""
    shifted = mu + noise * unit(np.random.default_rng(seed), len(mu))
    return (shifted / np.linalg.norm(shifted, axis=1, keepdims=True)).astype(np.float32)


def calibration(**changes: Any) -> Calibration:
    """Decision rules at FMR 1e-2, 1e-4 and 1e-6; non-mated scores of the synthetic people are far below 0."""
    rules = tuple(
        DecisionRule("mls", RADIUS, "kappa", accept, -20.0, 50.0, "fmr", alpha, 0.05)
        for alpha, accept in ((1e-2, 0.0), (1e-4, 10.0), (1e-6, 15.0))
    )
    facts = {"model": MODEL, "data": "d" * 64, "decisions": rules} | changes
    return Calibration(**facts)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Gallery]]:
    """A function that opens galleries, by default at one path; all are closed after the test."""
    galleries: list[Gallery] = []

    def open_gallery(path: str | Path = "", **options: Any) -> Gallery:
        facts = {"model": MODEL, "backbone": BACKBONE, "dim": DIM, "radius": RADIUS} | options
        galleries.append(Gallery.open(path or tmp_path / "people", **facts))
        return galleries[-1]

    yield open_gallery
    for gallery in galleries:
        gallery.close()

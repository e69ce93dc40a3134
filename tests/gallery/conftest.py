"""People of the tests: directions and kappas without faces behind them."""

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


def near(mu: np.ndarray, seed: int, apart: float = 0.1) -> np.ndarray:
    """Other pictures of the same people."""
    found = mu + apart * unit(np.random.default_rng(seed), len(mu))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def calibration(**more: Any) -> Calibration:
    """Rules at FMR 1e-2, 1e-4 and 1e-6; with these people scores of strangers are far below 0."""
    rules = tuple(
        DecisionRule("mls", RADIUS, "kappa", accept, -20.0, 50.0, "fmr", alpha, 0.05)
        for alpha, accept in ((1e-2, 0.0), (1e-4, 10.0), (1e-6, 15.0))
    )
    facts = {"model": MODEL, "data": "d" * 64, "decisions": rules} | more
    return Calibration(**facts)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Gallery]]:
    """Opens galleries under one path; closes them."""
    made: list[Gallery] = []

    def open_gallery(where: str | Path = "", **options: Any) -> Gallery:
        facts = {"model": MODEL, "backbone": BACKBONE, "dim": DIM, "radius": RADIUS} | options
        made.append(Gallery.open(where or tmp_path / "people", **facts))
        return made[-1]

    yield open_gallery
    for one in made:
        one.close()

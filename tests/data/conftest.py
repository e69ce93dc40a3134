"""Tiny synthetic data sets."""

from pathlib import Path

import cv2
import numpy as np
import pytest


def picture(seed: int, suffix: str = ".jpg", height: int = 16, width: int = 16) -> bytes:
    """An encoded smooth random image."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(suffix, cv2.GaussianBlur(noise, (0, 0), 2))[1].tobytes()


@pytest.fixture
def pictures() -> list[bytes]:
    return [picture(seed) for seed in range(6)]


@pytest.fixture
def folder(tmp_path: Path, pictures: list[bytes]) -> Path:
    """Three people: ann (3 images, one in a sub-folder), bob (2), cleo (1)."""
    root = tmp_path / "faces"
    names = ("ann/1.jpg", "ann/2.jpg", "ann/deep/3.jpg", "bob/1.jpg", "bob/2.jpg", "cleo/1.jpg")
    for name, data in zip(names, pictures):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root

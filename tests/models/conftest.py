"""Recognisers for the model tests."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from tests.models import graphs
from tests.tiny import TINY, tiny_file as save_tiny

from spherecf.models import FrozenBackbone
from spherecf.models.preprocessing import PREPROCESSING_KEY


def save_described(path: Path) -> Path:
    """Save the tiny recogniser with its preprocessing in the metadata, as the command line requires."""
    model = graphs.iresnet()
    onnx.helper.set_model_props(model, {PREPROCESSING_KEY: json.dumps(TINY.to_dict())})
    onnx.save(model, path)
    return path


def noise(count: int, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    return save_tiny(tmp_path)


@pytest.fixture
def tiny(tiny_file: Path) -> FrozenBackbone:
    return FrozenBackbone.from_onnx(tiny_file, preprocessing=TINY)


@pytest.fixture(scope="session")
def sface() -> FrozenBackbone:
    return FrozenBackbone.default()


@pytest.fixture(scope="session")
def lfw_pairs(shared: Path) -> tuple[np.ndarray, np.ndarray]:
    """Twenty LFW pairs, ten mated and ten non-mated: images (40, 112, 112, 3), labels (20,)."""
    images, mated = pickle.loads((shared / "data" / "lfw.bin").read_bytes(), encoding="bytes")
    pair_rows = [*range(10), *range(300, 310)]
    decoded = [
        cv2.imdecode(np.frombuffer(images[2 * p + k], np.uint8), 1)[..., ::-1]
        for p in pair_rows
        for k in (0, 1)
    ]
    return np.stack(decoded), np.array([bool(mated[p]) for p in pair_rows])

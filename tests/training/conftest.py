"""A tiny recogniser, images of a few people, and feature caches built from numbers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.data.conftest import picture
from tests.models import graphs
from tests.models.conftest import TINY

from spherecf.common.rowstore import RowStore
from spherecf.data import ImageSource, View
from spherecf.models import FrozenBackbone
from spherecf.training import FeatureCache


class NamedRows(ImageSource):
    """Labels and keys without images: all that a finished cache needs of its source."""

    def __init__(self, labels: np.ndarray) -> None:
        super().__init__("rows", labels.astype(np.int64), [str(i) for i in range(int(labels.max()) + 1)])

    @property
    def keys(self) -> list[str]:
        return [f"{label}/{row}.jpg" for row, label in enumerate(self.labels)]

    def read(self, index: int) -> bytes:
        return b""

    def sizes(self) -> np.ndarray:
        return np.zeros(len(self), np.int64)


def make_cache(
    folder: Path,
    labels: np.ndarray,
    mu: np.ndarray,
    summary: np.ndarray,
    valid: np.ndarray | None = None,
    views: int = 1,
) -> FeatureCache:
    columns = {
        "valid": ((), "bool"),
        "severity": ((), "float32"),
        "sharpness": ((), "float32"),
        "summary": (summary.shape[1:], "float16"),
        "mu": (mu.shape[1:], "float32"),
        "norm": ((), "float32"),
    }
    store = RowStore(folder, len(mu), columns, {})
    store.notes["skipped"] = {}
    zeros = np.zeros(len(mu), np.float32)
    valid_rows = np.ones(len(mu), bool) if valid is None else valid
    store.append(
        {
            "valid": valid_rows,
            "severity": zeros,
            "sharpness": zeros,
            "summary": summary,
            "mu": mu,
            "norm": zeros,
        }
    )
    return FeatureCache(store, NamedRows(labels), [View()] * views)


@pytest.fixture
def recogniser_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    onnx.save(graphs.iresnet(), path)
    return path


@pytest.fixture
def recogniser(recogniser_file: Path) -> FrozenBackbone:
    return FrozenBackbone.from_onnx(recogniser_file, preprocessing=TINY)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Eight people with four images each, one of `p0` truncated; `lone` has a single image."""
    root = tmp_path / "people"
    for person in range(8):
        for number in range(4):
            path = root / f"p{person}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = picture(100 * person + number)
            path.write_bytes(data[: len(data) // 2] if (person, number) == (0, 3) else data)
    (root / "lone").mkdir()
    (root / "lone" / "1.jpg").write_bytes(picture(999))
    return root

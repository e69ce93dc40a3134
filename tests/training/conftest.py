"""A tiny recogniser, images of a few people, feature caches built from numbers, and disturbed trainings."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.conftest import picture
from tests.tiny import TINY, tiny_file

from spherecf.common.rowstore import RowStore
from spherecf.data import ImageError, ImageSource, SyntheticImages, View
from spherecf.extract import FACTS
from spherecf.models import FrozenBackbone
from spherecf.training import FeatureCache
from spherecf.training.backbone import _BackboneTask


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


class BrokenImages(SyntheticImages):
    """Synthetic images of which every tenth cannot be read."""

    def image(self, index: int, size: tuple[int, int] | None = None) -> Any:
        if index % 10 == 3:
            raise ImageError(self.where(index), "truncated image.")
        return super().image(index, size)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, interrupted_step: int) -> None:
    """Send Ctrl-C at the beginning of a step of stage 1."""
    begin = _BackboneTask.begin

    def interrupted(task: _BackboneTask, rows: Any, step: int) -> None:
        if step == interrupted_step:
            signal.raise_signal(signal.SIGINT)
        begin(task, rows, step)

    monkeypatch.setattr(_BackboneTask, "begin", interrupted)


def inject_nan(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the output of the network, and thus its batch statistics, NaN in these calls of the loss."""
    loss, calls = _BackboneTask.loss, []

    def loss_with_nan(task: _BackboneTask, forward: Any, part: Any) -> Any:
        calls.append(part)
        factor = torch.nan if len(calls) - 1 in steps else 1.0
        return loss(task, lambda x: forward(x * factor), part)

    monkeypatch.setattr(_BackboneTask, "loss", loss_with_nan)


def check_losses(actual: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> None:
    """Require that two histories have the same training losses, apart from rounding."""
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours["train_loss"], theirs["train_loss"], rtol=2e-3)


def make_cache(
    folder: Path,
    labels: np.ndarray,
    mu: np.ndarray,
    summary: np.ndarray,
    valid: np.ndarray | None = None,
    views: int = 1,
) -> FeatureCache:
    columns = {
        **FACTS, "summary": (summary.shape[1:], "float16"), "mu": (mu.shape[1:], "float32"),
        "norm": ((), "float32"),
    }  # fmt: skip
    store = RowStore(folder, len(mu), columns, {})
    store.notes["skipped"] = {}
    zeros = dict.fromkeys(("severity", "sharpness", "norm"), np.zeros(len(mu), np.float32))
    store.append(
        {"valid": np.ones(len(mu), bool) if valid is None else valid, "summary": summary, "mu": mu, **zeros}
    )
    return FeatureCache(store, NamedRows(labels), [View()] * views)


@pytest.fixture
def recogniser_file(tmp_path: Path) -> Path:
    return tiny_file(tmp_path)


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

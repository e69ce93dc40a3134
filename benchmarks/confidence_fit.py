"""How long does it take to fit a head? The fit on cached features of LFW's size, 9,164 images in four views.

    python benchmarks/confidence_fit.py

The features are random numbers with the shape of SFace's last feature map (1024 channels); the time does not
depend on their values.
"""

import tempfile
import time

import numpy as np
import torch

from spherecf.common.rowstore import RowStore
from spherecf.data import ImageSource, training_views
from spherecf.models import make_head
from spherecf.training import CachedFeatures, ConfidenceConfig, FeatureCache, fit_head, prototype_targets

IMAGES, VIEWS, PEOPLE, DIM, CHANNELS = 9164, 4, 1680, 128, 1024


class Rows(ImageSource):
    """Labels without images."""

    def __init__(self) -> None:
        labels = np.arange(IMAGES) % PEOPLE
        super().__init__("rows", labels.astype(np.int64), [str(label) for label in range(PEOPLE)])

    @property
    def keys(self) -> list[str]:
        return [str(row) for row in range(len(self))]

    def read(self, index: int) -> bytes:
        return b""

    def sizes(self) -> np.ndarray:
        return np.zeros(len(self), np.int64)


def make_cache(folder: str, size: int) -> FeatureCache:
    rng = np.random.default_rng(0)
    source, rows = Rows(), IMAGES * VIEWS
    person = rng.normal(size=(PEOPLE, DIM))
    mu = person[np.repeat(source.labels, VIEWS)] + 0.7 * rng.normal(size=(rows, DIM))
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    zeros = np.zeros(rows, np.float32)
    values = {
        "summary": rng.standard_normal((rows, size), np.float32).astype(np.float16),
        "mu": mu.astype(np.float32),
        "valid": np.ones(rows, bool),
        "norm": zeros,
        "severity": zeros,
        "sharpness": zeros,
    }
    columns = {name: (value.shape[1:], value.dtype.name) for name, value in values.items()}
    store = RowStore(folder, rows, columns, {})
    store.notes["skipped"] = {}
    store.append(values)
    return FeatureCache(store, source, training_views(VIEWS - 1))


def main() -> None:
    config = ConfidenceConfig()
    with tempfile.TemporaryDirectory() as folder:
        head = make_head("light", channels=CHANNELS, height=7, width=7)
        cache = make_cache(folder, head.summary_shape[0])
        start = time.perf_counter()
        result = fit_head(head, CachedFeatures(cache, prototype_targets(cache)), config)
        seconds = time.perf_counter() - start
    size = cache.store.arrays["summary"].nbytes / 1e6
    print(f"{IMAGES * VIEWS:,} rows, {size:.0f} MB of features, {torch.get_num_threads()} threads")
    print(f"{head.parameter_count:,} parameters, {len(result.history)} epochs: {seconds:.1f} s in all")


if __name__ == "__main__":
    main()

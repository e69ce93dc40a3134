import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import tiny_model

from spherecf.errors import ModelError
from spherecf.export import BATCHES, TOLERANCE, Parity, export_onnx, measure, require, smooth_images


def test_smooth_images_are_different_and_smooth() -> None:
    images = smooth_images(10, (112, 96))
    assert images.shape == (10, 112, 96, 3) and images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 10
    steps = np.abs(np.diff(images.astype(float), axis=1)).mean((1, 2, 3))
    assert (steps < images.std((1, 2, 3))).all()


@pytest.mark.parametrize("kind", ["mu", "log_kappa", "percentile"])
@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_each_measure_is_checked_and_nan_fails(kind: str, value: float) -> None:
    require(TOLERANCE, TOLERANCE, "tiny")
    with pytest.raises(ModelError, match="tiny: .*" + re.escape(f"{kind} {value:.1e}")):
        require(replace(TOLERANCE, **{kind: value}), TOLERANCE, "tiny")


def test_a_different_head_is_detected(tmp_path: Path) -> None:
    """With the same recogniser and another head, only log kappa differs."""
    model, other_model = tiny_model(tmp_path, 0), tiny_model(tmp_path, 1)
    content = export_onnx(model, tmp_path / "out.onnx").path.read_bytes()
    identical, different = measure(model, content), measure(other_model, content)
    assert identical.log_kappa < 1e-5 < 1e-3 < different.log_kappa and different.mu < 1e-5
    assert identical.to_dict()["batches"] == list(BATCHES)


def test_a_file_that_onnxruntime_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="onnxruntime cannot run the exported file"):
        measure(tiny_model(tmp_path), b"no model")


def test_measures_default_to_zero() -> None:
    assert (Parity(0.1).log_kappa, Parity(0.1).percentile) == (0.0, 0.0)

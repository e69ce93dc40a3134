import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import tiny_model

from spherecf.errors import ModelError
from spherecf.export import BATCHES, TOLERANCE, Parity, export_onnx, measure, require, smooth_images


def test_pictures_are_all_different_and_smooth() -> None:
    pictures = smooth_images(10, (112, 96))
    assert pictures.shape == (10, 112, 96, 3) and pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 10
    steps = np.abs(np.diff(pictures.astype(float), axis=1)).mean((1, 2, 3))
    assert (steps < pictures.std((1, 2, 3))).all()


@pytest.mark.parametrize("kind", ["mu", "log_kappa", "percentile"])
@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_each_difference_counts_and_nan_is_one(kind: str, value: float) -> None:
    require(TOLERANCE, TOLERANCE, "tiny")
    with pytest.raises(ModelError, match="tiny: .*" + re.escape(f"{kind} {value:.1e}")):
        require(replace(TOLERANCE, **{kind: value}), TOLERANCE, "tiny")


def test_another_model_is_found_out(tmp_path: Path) -> None:
    """Same recogniser, another head: only log kappa differs."""
    one, other = tiny_model(tmp_path, 0), tiny_model(tmp_path, 1)
    content = export_onnx(one, tmp_path / "out.onnx").path.read_bytes()
    same, different = measure(one, content), measure(other, content)
    assert same.log_kappa < 1e-5 < 1e-3 < different.log_kappa and different.mu < 1e-5
    assert same.to_dict()["batches"] == list(BATCHES)


def test_a_file_onnxruntime_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="onnxruntime cannot run the exported file"):
        measure(tiny_model(tmp_path), b"no model")


def test_default_is_no_difference() -> None:
    assert (Parity(0.1).log_kappa, Parity(0.1).percentile) == (0.0, 0.0)

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from spherecf.calibration import KappaScale
from spherecf.export import Direction, Percentile, Pixels
from spherecf.models import PRESETS


def scale(log_kappa: list[float], percent: list[float]) -> KappaScale:
    return KappaScale(128, "made up", 9, tuple(log_kappa), tuple(percent))


def points(log_kappa: list[float]) -> np.ndarray:
    """Test points at the knots, between them, and outside the scale."""
    x = np.float32(log_kappa)
    return np.float32([-3.0, *x, *(x[:-1] + np.diff(x) / 3), x[0] - 0.1, x[-1] + 0.1, 20.0])


@given(
    st.lists(st.integers(0, 4000), min_size=1, max_size=40, unique=True),
    st.lists(st.floats(0, 100), min_size=40, max_size=40),
)
def test_exported_percentiles_interpolate_between_knots(steps: list[int], percents: list[float]) -> None:
    log_kappa = sorted(step / 500 for step in steps)
    kappa_scale = scale(log_kappa, sorted(percents)[: len(log_kappa)])
    x = points(log_kappa)
    inside = (x >= np.float32(log_kappa[0])) & (x <= np.float32(log_kappa[-1]))
    expected = np.where(
        inside,
        np.interp(x, np.float32(log_kappa), kappa_scale.percent),
        np.where(x < log_kappa[0], 0.0, 100.0),
    )
    assert Percentile(kappa_scale)(torch.from_numpy(x)).numpy() == pytest.approx(expected, abs=0.02)


def test_exported_percentiles_equal_those_of_the_scale() -> None:
    random = np.random.default_rng(0)
    kappa = np.exp(random.normal(6.0, 0.5, 5000))
    kappa_scale = KappaScale.fit(kappa, dim=128, population="normal")
    log_kappa = np.float32(np.log(np.concatenate([kappa, [1.0, 1e5]])))
    percentiles = Percentile(kappa_scale)(torch.from_numpy(log_kappa)).numpy()
    assert percentiles == pytest.approx(
        kappa_scale.percentile(np.exp(log_kappa.astype(np.float64))), abs=0.02
    )
    assert (percentiles[-2], percentiles[-1]) == (0.0, 100.0)


def test_knots_that_coincide_in_float32_are_handled() -> None:
    close = scale([5.0, 5.0 + 1e-9, 6.0], [10.0, 30.0, 90.0])
    percentiles = Percentile(close)(torch.tensor([4.9, 5.0, 5.5, 6.0, 6.1]))
    assert percentiles.tolist() == pytest.approx([0.0, 30.0, 60.0, 90.0, 100.0], abs=1e-4)


def test_nan_gives_nan() -> None:
    assert math.isnan(Percentile(scale([1.0, 2.0], [0.0, 100.0]))(torch.tensor([float("nan")])).item())


def test_directions_are_normalised_with_any_trailing_dimensions() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    expected = torch.tensor([[0.6, 0.8], [0.0, -1.0]])
    assert torch.allclose(Direction()(rows), expected)
    assert torch.allclose(Direction()(rows[:, :, None, None]), expected)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_exported_pixels_equal_the_preprocessing(preset: str) -> None:
    faces = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    assert torch.equal(Pixels(PRESETS[preset])(faces), PRESETS[preset](faces))

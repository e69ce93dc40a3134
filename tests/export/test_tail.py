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
    """Knots, what lies between them, and far outside."""
    x = np.float32(log_kappa)
    return np.float32([-3.0, *x, *(x[:-1] + np.diff(x) / 3), x[0] - 0.1, x[-1] + 0.1, 20.0])


@given(
    st.lists(st.integers(0, 4000), min_size=1, max_size=40, unique=True),
    st.lists(st.floats(0, 100), min_size=40, max_size=40),
)
def test_the_scale_as_operations(steps: list[int], percents: list[float]) -> None:
    log_kappa = sorted(step / 500 for step in steps)
    one = scale(log_kappa, sorted(percents)[: len(log_kappa)])
    x = points(log_kappa)
    inside = (x >= np.float32(log_kappa[0])) & (x <= np.float32(log_kappa[-1]))
    expected = np.where(
        inside, np.interp(x, np.float32(log_kappa), one.percent), np.where(x < log_kappa[0], 0.0, 100.0)
    )
    assert Percentile(one)(torch.from_numpy(x)).numpy() == pytest.approx(expected, abs=0.02)


def test_it_is_the_scale_s_own_percentile() -> None:
    random = np.random.default_rng(0)
    kappa = np.exp(random.normal(6.0, 0.5, 5000))
    one = KappaScale.fit(kappa, dim=128, population="normal")
    asked = np.float32(np.log(np.concatenate([kappa, [1.0, 1e5]])))
    got = Percentile(one)(torch.from_numpy(asked)).numpy()
    assert got == pytest.approx(one.percentile(np.exp(asked.astype(np.float64))), abs=0.02)
    assert (got[-2], got[-1]) == (0.0, 100.0)


def test_knots_that_float32_cannot_tell_apart() -> None:
    close = scale([5.0, 5.0 + 1e-9, 6.0], [10.0, 30.0, 90.0])
    got = Percentile(close)(torch.tensor([4.9, 5.0, 5.5, 6.0, 6.1]))
    assert got.tolist() == pytest.approx([0.0, 30.0, 60.0, 90.0, 100.0], abs=1e-4)


def test_a_failure_stays_one() -> None:
    assert math.isnan(Percentile(scale([1.0, 2.0], [0.0, 100.0]))(torch.tensor([float("nan")])).item())


def test_direction() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    expected = torch.tensor([[0.6, 0.8], [0.0, -1.0]])
    assert torch.allclose(Direction()(rows), expected)
    assert torch.allclose(Direction()(rows[:, :, None, None]), expected)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_pixels_are_the_preprocessing(preset: str) -> None:
    faces = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    assert torch.equal(Pixels(PRESETS[preset])(faces), PRESETS[preset](faces))

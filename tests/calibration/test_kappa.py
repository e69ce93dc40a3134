"""The scale of kappa: the empirical distribution function, its inverse, and the ISO integer."""

import inspect
import json

import numpy as np
import pytest
import torch

from spherecf.calibration import KappaScale
from spherecf.errors import InputError


def scale(kappa: np.ndarray) -> KappaScale:
    return KappaScale.fit(kappa, dim=128, population="a test")


@pytest.mark.parametrize("n", [1, 7, 150, 30_000])
def test_percentiles_are_those_of_the_population(n: int) -> None:
    kappa = np.exp(np.random.default_rng(0).normal(5, 1, n))
    asked = np.exp(np.linspace(1, 9, 200))
    below = (kappa[None, :] < asked[:, None]).mean(1) * 100
    assert np.abs(scale(kappa).percentile(asked) - below).max() <= max(0.5, 100 / n)


def test_equal_kappas_count_half() -> None:
    reference = scale(np.array([2.0, 2.0, 2.0, 8.0]))
    assert reference.percentile([1.0, 2.0, 4.0, 8.0, 9.0]).tolist() == pytest.approx(
        [0, 37.5, 62.5, 87.5, 100]
    )
    assert scale(np.full(5, 3.0)).percentile([2.9, 3.0, 3.1]).tolist() == [0, 50, 100]


def test_monotone_and_inverted() -> None:
    reference = scale(np.random.default_rng(1).gamma(2, 100, 5000))
    percent = reference.percentile(np.linspace(0, 2000, 5000))
    assert (np.diff(percent) >= 0).all() and percent[0] == 0 and percent[-1] == 100
    inner = np.linspace(1, 99, 50)
    assert reference.percentile(reference.kappa_at(inner)) == pytest.approx(inner)


def test_iso_is_an_integer_and_minus_1_for_a_failure() -> None:
    reference = scale(np.arange(1.0, 1001.0))
    quality = reference.iso([0.0, 1.0, 500.5, 1e6, float("nan")])
    assert quality.tolist() == [0, 0, 50, 100, -1] and quality.dtype == np.int64


def test_through_json() -> None:
    reference = scale(np.random.default_rng(2).gamma(2, 100, 999))
    assert KappaScale.from_dict(json.loads(json.dumps(reference.to_dict()))) == reference
    assert len(reference.log_kappa) <= 201


@pytest.mark.parametrize("kappa", [[], [1.0, -1.0], [np.inf], [np.nan, 2.0], [0.0]])
def test_bad_populations_are_refused(kappa: list[float]) -> None:
    with pytest.raises(InputError, match="positive finite"):
        scale(np.array(kappa))


def test_bad_kappas_are_refused() -> None:
    reference = scale(np.array([1.0, 2.0]))
    for bad in (-1.0, np.inf):
        with pytest.raises(InputError, match=">= 0 and finite"):
            reference.percentile([3.0, bad])
    with pytest.raises(InputError, match="ascending"):
        KappaScale(128, "x", 2, (1.0, 1.0), (10.0, 20.0))
    limit = float(np.log(np.finfo(float).max))
    for knots in ((1.0, limit), (-limit, 1.0)):  # kappa itself would be infinite, or its inverse
        with pytest.raises(InputError, match=f"finite log kappa, got {knots[0]:g} to {knots[1]:g}"):
            KappaScale(128, "x", 2, knots, (10.0, 20.0))
    falling, beyond, below = (9.0, 8.0), (0.0, 101.0), (-1.0, 9.0)
    for dim, images, percent in (
        (1, 2, (0.0, 9.0)), (2, 0, (0.0, 9.0)), (2, 2, below), (2, 2, beyond), (2, 2, falling),
    ):  # fmt: skip
        with pytest.raises(InputError, match="KappaScale"):
            KappaScale(dim, "x", images, (1.0, 2.0), percent)
    assert KappaScale(2, "x", 1, (1.0, 2.0), (0.0, 100.0)).percentile(np.exp(1.5)) == pytest.approx(50)
    assert KappaScale(2, "x", 1, (1.0, 2.0), (50.0, 50.0)).percentile(np.exp(1.5)) == 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_of_any_type_and_with_gradients_are_accepted(dtype: torch.dtype) -> None:
    kappa = torch.tensor([2.0, 4.0, 8.0], dtype=dtype, requires_grad=True)
    reference = scale(np.array([2.0, 4.0, 8.0]))
    assert reference == KappaScale.fit(kappa, dim=128, population="a test")
    assert reference.percentile(kappa).tolist() == reference.percentile([2.0, 4.0, 8.0]).tolist()


@pytest.mark.parametrize("kappa", ["a", ["a"], [[1.0], [1.0, 2.0]], np.ones(2, complex)])
def test_other_values_than_real_numbers_are_refused(kappa: object) -> None:
    for call in (scale(np.ones(1)).percentile, scale(np.ones(1)).kappa_at, scale):
        with pytest.raises(InputError, match="expected real numbers"):
            inspect.unwrap(call)(kappa)

"""The coefficients of the uniform expansion."""

from fractions import Fraction
from math import lgamma, log, pi

import pytest
import torch

from spherecf.vmf.kernels import _debye_terms, make_plan


def test_first_terms_are_those_of_the_literature():
    """DLMF 10.41.10 in log form: D_1 = u_1, D_2 = u_2 - u_1^2 / 2."""
    first, second = _debye_terms(2)
    assert first == {1: Fraction(1, 8), 3: Fraction(-5, 24)}
    assert second == {2: Fraction(1, 16), 4: Fraction(-3, 8), 6: Fraction(5, 16)}


def test_at_one_the_terms_are_stirlings_series():
    """At x = 0, t = 1: minus the coefficients of log Gamma, so every even one vanishes."""
    values = [sum(term.values()) for term in _debye_terms(6)]
    assert values == [Fraction(-1, 12), 0, Fraction(1, 360), 0, Fraction(-1, 1260), 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [0.0, 0.5, 31.0, 255.0, 4095.0])
def test_plan(order, dtype):
    plan = make_plan(order, dtype)
    assert plan.mu == order + plan.steps and (plan.steps == 0 or plan.mu < 25)
    assert plan.log_series[0] == 0
    # log Gamma from the whole expansion at x = 0 (one more way to see that enough terms are kept).
    mu = plan.mu
    stirling = (mu + 0.5) * log(mu) - mu + 0.5 * log(2 * pi) + sum(plan.log_series) + 0.5 * log(2)
    limit = 1e-7 * mu if dtype == torch.float32 else 1e-14
    assert stirling == pytest.approx(lgamma(mu + 1), rel=1e-15, abs=limit)

"""Plain data: numbers that do not exist, and steps thinned exactly."""

import numpy as np

from spherecf.evaluation.results import _thin_steps, plain


def test_numbers_that_do_not_exist() -> None:
    assert plain({"a": [float("nan"), float("inf"), -float("inf"), 1.5], "b": (None, "x")}) == {
        "a": [None, "inf", "-inf", 1.5],
        "b": [None, "x"],
    }


def test_thinned_steps_are_exact_where_they_are_read() -> None:
    fractions = (np.arange(1000) / 1000).tolist()
    fnmr = np.linspace(0.1, 0, 1000).tolist()
    thin = _thin_steps({"discard_fraction": fractions, "fnmr": fnmr})
    assert len(thin["fnmr"]) == 200 and thin["discard_fraction"][1] == 0.005
    for at, value in zip(thin["discard_fraction"], thin["fnmr"]):
        assert value == fnmr[max(i for i, f in enumerate(fractions) if f <= at)]
    assert _thin_steps({"discard_fraction": [0.0, 0.5], "fnmr": [0.1, 0.0]}) == {}

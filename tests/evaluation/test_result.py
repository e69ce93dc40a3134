"""Reports as plain data: non-finite numbers, and exact thinning of step curves."""

import numpy as np

from spherecf.evaluation.results import _thin_steps, plain


def test_non_finite_numbers_become_null_or_text() -> None:
    assert plain({"a": [float("nan"), float("inf"), -float("inf"), 1.5], "b": (None, "x")}) == {
        "a": [None, "inf", "-inf", 1.5],
        "b": [None, "x"],
    }


def test_thinned_steps_are_exact_at_their_fractions() -> None:
    fractions = (np.arange(1000) / 1000).tolist()
    fnmr = np.linspace(0.1, 0, 1000).tolist()
    thin = _thin_steps({"discard_fraction": fractions, "fnmr": fnmr})
    assert len(thin["fnmr"]) == 200 and thin["discard_fraction"][1] == 0.005
    for fraction, value in zip(thin["discard_fraction"], thin["fnmr"]):
        assert value == fnmr[max(i for i, f in enumerate(fractions) if f <= fraction)]
    assert _thin_steps({"discard_fraction": [0.0, 0.5], "fnmr": [0.1, 0.0]}) == {}

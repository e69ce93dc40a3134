"""The logistic calibrator against scikit-learn, and refused input."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from spherecf.calibration import LogisticCalibrator, llr_limits
from spherecf.errors import InputError


def make(n: int = 500, shift: float = 1.5, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mated = rng.random(n) < share
    return rng.normal(mated * shift, 1) * 40 - 400, mated  # the size of mutual likelihood scores


@pytest.mark.parametrize("prior", [0.5, 0.01])
def test_equals_sklearn(prior: float) -> None:
    scores, mated = make()
    line = LogisticCalibrator.fit(scores, mated, score="mls", radius=64.0, prior=prior)
    weight = np.where(mated, prior / mated.sum(), (1 - prior) / (~mated).sum())
    slow = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    x = (scores[:, None] + 400) / 40
    slow.fit(x, mated, sample_weight=weight * mated.size)
    expected = slow.decision_function(x) - np.log(prior / (1 - prior))
    assert line.slope * scores + line.offset == pytest.approx(expected, abs=2e-4)
    assert not line.separated


@pytest.mark.parametrize("prior", [0.5, 0.01])
def test_the_loss_is_smallest_to_rounding(prior: float) -> None:
    rng = np.random.default_rng(1)
    mated = rng.random(300) < 0.3
    scores = rng.normal(mated * 1.5, 1)
    line = LogisticCalibrator.fit(scores, mated, score="s", prior=prior)
    weight = np.where(mated, prior / mated.sum(), (1 - prior) / (~mated).sum())
    odds = line.slope * scores + line.offset + np.log(prior / (1 - prior))
    off = weight * (1 / (1 + np.exp(-odds)) - mated)
    assert (off.sum(), off @ scores) == (pytest.approx(0, abs=1e-14), pytest.approx(0, abs=1e-14))


def test_recovers_the_true_ratio() -> None:
    scores, mated = make(200_000, share=0.5)
    line = LogisticCalibrator.fit(scores, mated, score="s")
    x = (scores + 400) / 40
    assert np.abs(line(scores) - (1.5 * x - 1.5**2 / 2)).max() < 0.1


@pytest.mark.parametrize("scores, mated", [([1.0, 2.0, 3.0], [0, 0, 1]), ([1.0, 2.0, 2.0], [0, 0, 1])])
def test_separated_data_are_regularised_and_flagged(scores: list[float], mated: list[int]) -> None:
    line = LogisticCalibrator.fit(scores, mated, score="s")
    assert line.separated and 0 < line.slope < 100
    assert not LogisticCalibrator.fit([*scores, 1.5, 9.0], [*mated, 1, 1], score="s").separated


def test_newton_steps_that_are_too_long_are_shortened() -> None:
    scores, mated = np.array([-10926762481.0, -494.0, -3.0, 2.0, -1.0]), np.array([0, 0, 1, 0, 0])
    line = LogisticCalibrator.fit(scores, mated, score="s")
    odds = np.maximum(line.slope * scores + line.offset, -700)
    off = np.where(mated, 0.5, 0.125) * (1 / (1 + np.exp(-odds)) - mated)
    assert (off.sum(), off @ scores) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-6))


def test_claims_no_more_than_the_data() -> None:
    scores, mated = make()
    line = LogisticCalibrator.fit(scores, mated, score="mls")
    low, high = llr_limits(int(mated.sum()), int((~mated).sum()))
    assert line([-1e9, 1e9]).tolist() == [low, high] and np.isfinite([low, high]).all()
    assert (np.diff(line(np.linspace(-1000, 1000, 99))) >= 0).all()


def test_through_json() -> None:
    line = LogisticCalibrator.fit(*make(), score="mls", radius=64.0)
    assert LogisticCalibrator.from_dict(json.loads(json.dumps(line.to_dict()))) == line


def test_bad_input_is_refused() -> None:
    scores, mated = make()
    for bad, match in (
        ({"scores": -scores, "mated": mated}, "swapped, or the scores distances"),
        ({"scores": np.ones(4), "mated": [0, 0, 1, 1]}, "all 4 scores are equal"),
        ({"scores": [0.1] * 3, "mated": [0, 1, 0]}, "all 3 scores are equal"),  # their deviation is 1e-17
        ({"scores": [1.9, 0.2, 1357514411.5, 0.0], "mated": [0, 1, 0, 0]}, "did not converge; check"),
        ({"scores": scores, "mated": np.ones(500, bool)}, "500 mated and 0 non-mated"),
        ({"scores": [1.0, np.nan, np.nan], "mated": [0, 1, 1]}, "2 of 3 are NaN, first pair 1"),
        ({"scores": [1.0, 2.0], "mated": [0, 2]}, "booleans"),
        ({"scores": [1.0, 2.0, 3.0, 4.0], "mated": [5, 6, 7, 8]}, r"values like \[5, 6, 7\]$"),
        ({"scores": [1.0, 2.0, 2.0, 3.0], "mated": [1, 1, 0, 0]}, "swapped"),
        ({"scores": scores, "mated": mated, "prior": 0.0}, "prior"),
        ({"scores": [1.0, np.inf, np.inf], "mated": [0, 1, 1]}, "2 of 3 are infinite, first pair 1"),
        ({"scores": [1.0, 2.0], "mated": [0, 1, 1]}, r"two \(n,\) arrays"),
        ({"scores": scores, "mated": mated, "prior": 1.0}, "prior"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            LogisticCalibrator.fit(**bad, score="s")
    with pytest.raises(InputError, match="NaN"):
        LogisticCalibrator.fit(scores, mated, score="s")([np.nan])
    with pytest.raises(InputError, match="both kinds"):
        llr_limits(0, 4)
    for slope, offset in ((0.0, 1.0), (np.inf, 1.0), (1.0, np.inf)):
        with pytest.raises(InputError, match="rises with the score"):
            LogisticCalibrator("s", None, slope, offset, 1, 1)
    for mated_pairs, non_mated in ((0, 1), (1, 0)):
        with pytest.raises(InputError, match="mated >= 1"):
            LogisticCalibrator("s", None, 1.0, 0.0, mated_pairs, non_mated)
    with pytest.raises(InputError, match="both kinds"):
        llr_limits(4, 0)
    assert llr_limits(1, 1) == pytest.approx((-np.log(2), np.log(2)))

"""Error-versus-discard and rejection curves against slow counting."""

import numpy as np
import pytest
from tests.reference import edc_slow

from spherecf.errors import InputError
from spherecf.evaluation import edc, pair_quality, rejection_curve, tmr_at_fmr


def make(n: int = 400, levels: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mated, quality = rng.random(n) < 0.5, rng.random(n)
    if levels:
        quality = np.floor(quality * levels)
    return rng.normal(mated * (1 + quality / quality.max()), 0.7), mated, quality


@pytest.mark.parametrize("levels", [None, 6, 1])
@pytest.mark.parametrize("start", [{"start_fnmr": 0.1}, {"fmr": 0.02}])
def test_equals_the_slow_reference(levels: int | None, start: dict[str, float]) -> None:
    scores, mated, quality = make(levels=levels if levels != 1 else None)
    if levels == 1:
        quality = np.ones_like(quality)
    result = edc(scores, mated, quality, **start)
    slow = edc_slow.fnmr_after_discarding(scores[mated], quality[mated], result.threshold)
    assert result.discard_fraction == pytest.approx(sorted(slow))
    assert result.fnmr == pytest.approx([slow[f] for f in sorted(slow)])
    area = edc_slow.partial_area(slow, 0.2, cells=2000)
    assert result.pauc["0.2"] == pytest.approx(area, rel=2e-3)
    assert result.pauc_normalised["0.2"] == pytest.approx(area / 0.2 / result.start, rel=2e-3)


def test_curves_start_at_the_requested_error() -> None:
    scores, mated, quality = make()
    result = edc(scores, mated, quality, start_fnmr=0.1)
    # no larger threshold qualifies
    assert result.start <= 0.1 and ((scores[mated] <= result.threshold).mean()) > 0.1
    at_fmr = edc(scores, mated, quality, fmr=0.02)
    point = tmr_at_fmr(scores, mated, 0.02)[0]
    assert at_fmr.threshold == point.threshold and at_fmr.start == pytest.approx(1 - point.tmr)


def test_uninformative_and_perfect_qualities_span_the_scale() -> None:
    scores, mated, _ = make(4000)
    flat = edc(scores, mated, np.ones(4000), start_fnmr=0.1)
    assert flat.pauc_normalised == pytest.approx({"0.2": 1.0, "0.3": 1.0}) and flat.fnmr == pytest.approx(
        [0.1], abs=1e-3
    )
    oracle = edc(scores, mated, scores, start_fnmr=0.1)  # errors are discarded first
    assert oracle.fnmr[-1] == 0 and oracle.pauc_normalised["0.2"] < 0.3


def test_unresolved_starts_state_the_reason() -> None:
    scores, mated, quality = make()
    beyond = edc(scores, mated, quality, fmr=1e-4)
    assert beyond.start is None and "needs at least 10000" in beyond.unresolved
    clean = edc(scores, mated, quality, start_fnmr=0.0)
    assert clean.start == 0 and clean.pauc_normalised == {} and "no error" in clean.unresolved


def test_rejection_by_pairs_equals_counting() -> None:
    scores, mated, quality = make()
    curve = rejection_curve(scores, mated, quality, 0.05, fractions=[0.0, 0.25, 0.9])
    worst_first = np.argsort(quality)
    for fraction, tmr, pairs in zip(curve.fractions, curve.tmr, curve.pairs):
        remaining = worst_first[int(np.ceil(fraction * 400)) :]
        assert pairs == remaining.size
        assert tmr == tmr_at_fmr(scores[remaining], mated[remaining], 0.05)[0].tmr
    assert curve.tmr[1] > curve.tmr[0]


def test_rejecting_an_image_drops_all_its_pairs() -> None:
    quality = np.array([0.1, 0.5, 0.9, 0.7])
    left, right = np.array([0, 1, 2, 3, 1, 2]), np.array([1, 2, 3, 1, 3, 1])
    mated = np.array([True, True, False, False, True, False])
    curve = rejection_curve(
        np.arange(6.0), mated, quality, 0.5, images=(left, right), fractions=[0.0, 0.25, 0.5]
    )
    assert curve.pairs == [6, 5, 1] and curve.tmr[2] is None


def test_pair_quality_is_the_minimum_of_both_images() -> None:
    assert pair_quality([1, 5], [3, 2]).tolist() == [1, 2]


def test_bad_input_is_refused() -> None:
    scores, mated, quality = make(20)
    with pytest.raises(InputError, match="exactly one of start_fnmr and fmr"):
        edc(scores, mated, quality)
    with pytest.raises(InputError, match="quality: 20 of 20 are NaN"):
        edc(scores, mated, quality * np.nan, start_fnmr=0.1)
    with pytest.raises(InputError, match=r"one per pair .*got \(19,\)"):
        rejection_curve(scores, mated, quality[1:], 0.1)
    with pytest.raises(InputError, match="start_fnmr"):
        edc(scores, mated, quality, start_fnmr=1.0)
    with pytest.raises(InputError, match="pAUC limit"):
        edc(scores, mated, quality, start_fnmr=0.1, limits=[0.0])

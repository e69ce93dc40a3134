"""PRR against loops, with ties, at the ends of its scale; FPIR thresholds."""

import numpy as np
import pytest
from tests.reference.openset_slow import f1_after, fpir_threshold as slow_threshold, outcomes, prr as slow_prr

from spherecf.errors import InputError
from spherecf.evaluation import (
    Decisions,
    decide,
    f1_after_rejection,
    fpir_threshold,
    prediction_rejection_ratio,
)
from spherecf.evaluation.open_set import RejectionOrder, prr_of, prr_shares


def make_decisions(n: int, seed: int = 0) -> tuple[Decisions, list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    mated, is_right = rng.random(n) < 0.6, rng.random(n) < 0.8
    similarity = rng.normal(mated + 0.5 * is_right).round(1)
    kinds = outcomes(similarity, is_right, mated, 1.0)
    return decide(similarity, is_right, mated, 1.0), kinds, similarity


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [6, 1, 0])
@pytest.mark.parametrize("limit", [0.5, 0.33, 0.95])
def test_prr_and_f1_equal_a_slow_loop(seed: int, decimals: int, limit: float) -> None:
    decisions, kinds, similarity = make_decisions(70, seed)
    confidence = (np.abs(similarity - 1) + np.random.default_rng(seed).normal(size=70)).round(decimals)
    shares = [0.0, 0.1, 0.31, 0.5, 0.9]
    expected = [f1_after(confidence.tolist(), kinds, share * 70) for share in shares]
    assert f1_after_rejection(confidence, decisions, shares) == pytest.approx(expected)
    assert prediction_rejection_ratio(confidence, decisions, limit=limit) == pytest.approx(
        slow_prr(confidence.tolist(), kinds, limit), abs=1e-10
    )


def test_outcomes_follow_the_definition() -> None:
    decisions, kinds, _ = make_decisions(200)
    assert decisions.identified.tolist() == [kind == "tp" for kind in kinds]
    assert decisions.wrong.tolist() == [kind == "wrong" for kind in kinds]
    assert (decisions.misidentified & ~decisions.wrong).sum() == 0 < decisions.misidentified.sum()


def test_perfect_random_and_inverted_confidences_span_the_scale() -> None:
    decisions, _, _ = make_decisions(4000)
    rng = np.random.default_rng(0)
    is_right = (~decisions.wrong).astype(float)
    assert prediction_rejection_ratio(is_right, decisions) == pytest.approx(1)
    assert prediction_rejection_ratio(is_right * 9 + rng.random(4000), decisions) == pytest.approx(
        1, abs=0.02
    )
    assert prediction_rejection_ratio(np.zeros(4000), decisions) == pytest.approx(0, abs=1e-12)
    random_ratios = [prediction_rejection_ratio(rng.random(4000), decisions) for _ in range(40)]
    assert abs(np.mean(random_ratios)) < 0.02 and np.std(random_ratios) < 0.1
    assert prediction_rejection_ratio(-is_right, decisions) < -0.5


def test_only_the_order_matters_and_infinities_tie() -> None:
    decisions, kinds, similarity = make_decisions(150)
    value = prediction_rejection_ratio(similarity, decisions)
    assert prediction_rejection_ratio(np.exp(3 * similarity), decisions) == value
    confidence = np.where(similarity > 1.5, np.inf, similarity)
    assert prediction_rejection_ratio(confidence, decisions) == pytest.approx(
        slow_prr(confidence.tolist(), kinds, 0.5)
    )


def test_integer_weights_equal_repeated_probes() -> None:
    decisions, _, _ = make_decisions(60)
    rng = np.random.default_rng(3)
    weights = rng.integers(0, 4, 60)
    rows = np.repeat(np.arange(60), weights)
    columns = (decisions.accepted, decisions.identified, decisions.wrong, decisions.misidentified)
    repeated = Decisions(1.0, *(column[rows] for column in columns))
    confidence = rng.normal(size=60)
    shares = prr_shares(600, 0.5)
    weighted = prr_of(RejectionOrder.of(confidence), decisions, shares, weights.astype(float))
    copied = prr_of(RejectionOrder.of(confidence[rows]), repeated, shares)
    assert weighted == pytest.approx(copied)


def test_without_errors_or_hits_there_is_no_ratio() -> None:
    all_right = decide([0.9, 0.1], [1, 0], [1, 0], 0.5)
    none_right = decide([0.9, 0.1], [0, 0], [1, 0], 0.5)
    assert (
        prediction_rejection_ratio([1, 2], all_right) is None
        and prediction_rejection_ratio([1, 2], none_right) is None
    )
    assert f1_after_rejection([1, 2], all_right, [0.0]) == [1.0] and f1_after_rejection(
        [1, 2], none_right, [0.0]
    ) == [0.0]
    assert f1_after_rejection([1, 2], all_right, [0.0, 0.5]) == [1.0, 0.0]  # only a true negative remains


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fpir", [0.05, 0.1, 0.2, 0.5, 0.99])
def test_thresholds_accept_at_most_the_target(seed: int, fpir: float) -> None:
    rng = np.random.default_rng(seed)
    mated = rng.random(90) < 0.5
    similarity = rng.normal(mated).round(1)
    threshold, why = fpir_threshold(similarity, mated, fpir)
    assert why is None and threshold == slow_threshold(similarity.tolist(), mated.tolist(), fpir)
    assert (similarity[~mated] >= threshold).mean() <= fpir


def test_tied_non_mated_probes_give_an_infinite_threshold_or_a_reason() -> None:
    assert fpir_threshold([0.5] * 30, [0] * 20 + [1] * 10, 0.1) == (np.inf, None)
    assert (
        fpir_threshold([0.5] * 3, [0, 0, 1], 0.1)[1]
        == "FPIR 0.1 needs at least 10 non-mated probes, there are 2"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: prediction_rejection_ratio([1.0, np.nan, 2.0], d), "confidence: 1 of 3 are NaN"),
        (lambda d: prediction_rejection_ratio([1.0, 2.0], d), r"one per probe \(3,\), got \(2,\)"),
        (lambda d: prediction_rejection_ratio([], d), r"expected \(n,\) with n > 0"),
        (lambda d: prediction_rejection_ratio([1, 2, 3], d, limit=1.0), "0 < limit < 1"),
        (lambda d: f1_after_rejection([1, 2, 3], d, [1.0]), "0 <= share < 1"),
        (lambda d: decide([0.1, 0.2], [0, 1, 1], [0, 1], 0.1), r"three \(n,\) arrays, got \(2,\), \(3,\)"),
        (lambda d: fpir_threshold([0.1, np.nan], [0, 1], 0.1), "without NaN"),
        (lambda d: fpir_threshold([0.1, 0.2], [0, 1], 0.0), "0 < fpir < 1"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(decide([0.9, 0.8, 0.1], [1, 0, 0], [1, 1, 0], 0.5))

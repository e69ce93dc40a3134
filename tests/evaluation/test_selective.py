"""Error bounds of decisions: counted correctly, met in simulation, and violated by naive selection."""

import itertools

import numpy as np
import pytest
from scipy import stats

from spherecf.calibration import DecisionRule
from spherecf.errors import InputError
from spherecf.evaluation import ScoredPairs, check_rule, choose_decision, disjoint_pairs
from spherecf.evaluation.decisions import ERRORS, Counts, _Grid, _p_and_gain, _path, errors_of

ALPHA, DELTA = 0.1, 0.1
PEOPLE = 20_000
NAIVE = 100  # draws for the comparison
SMALL = {"tails": (0.0, 0.02, 0.1, 0.3), "floors": (0.2, 0.5, 0.8)}


def draw(n: int, rng: np.random.Generator, share: float = 0.5) -> ScoredPairs:
    """Pairs of varying confidence: the higher it is, the further mated scores lie above non-mated ones."""
    mated = rng.random(n) < share
    confidence = rng.uniform(0.1, 3, n)
    return ScoredPairs(rng.normal(size=n) + 2 * confidence * mated, confidence, mated)


@pytest.fixture(scope="module")
def population() -> ScoredPairs:
    """The full population: with draws with replacement, true rates are simple counts."""
    return draw(PEOPLE, np.random.default_rng(0))


def true_error(rule: DecisionRule, pairs: ScoredPairs) -> float:
    """The bounded error rate, counted directly."""
    is_confident, is_mated = pairs.confidences >= rule.min_confidence, pairs.mated
    match, non_match = (
        is_confident & (pairs.scores >= rule.accept),
        is_confident & (pairs.scores < rule.reject),
    )
    false_match, miss = int((match & ~is_mated).sum()), int((non_match & is_mated).sum())
    non_mated, mated = (
        int(((match | non_match) & ~is_mated).sum()),
        int(((match | non_match) & is_mated).sum()),
    )
    return {
        "both": max(false_match / max(non_mated, 1), miss / max(mated, 1)),
        "decision": (false_match + miss) / max(non_mated + mated, 1),
        "fmr": false_match / max(non_mated, 1),
        "false-match-share": false_match / max(int(match.sum()), 1),
    }[rule.error]


def test_grid_counts_equal_those_of_each_rule() -> None:
    rng = np.random.default_rng(1)
    tuning, testing = draw(300, rng), draw(200, rng)
    testing.scores[:50] = np.round(testing.scores[:50], 1)
    testing.scores[50:60] = tuning.scores[:10]  # exactly at the thresholds
    grid = _Grid.of(tuning, (0.0, 0.1, 0.4), (0.3, 0.7))
    floor, reject, accept = grid.candidates(two_thresholds=True)
    assert len(floor) == 3 * len(grid.thresholds) * (len(grid.thresholds) + 1) // 2
    counts = grid.count(testing, floor, reject, accept)
    for i in range(0, len(floor), 7):
        t, f = grid.thresholds, grid.floors
        rule = DecisionRule("s", None, "c", t[accept[i]], t[reject[i]], f[floor[i]], "both", 0.1, 0.1)
        verdicts = rule.decide(testing.scores, testing.confidences)
        for count, verdict, kind in (
            (counts.true_match, "match", True), (counts.false_match, "match", False),
            (counts.false_non_match, "non_match", True), (counts.true_non_match, "non_match", False),
        ):  # fmt: skip
            assert count[i] == ((verdicts == verdict) & (testing.mated == kind)).sum()


def test_errors_and_p_values_follow_their_definitions() -> None:
    counts = Counts(*(np.array([n]) for n in (40, 3, 5, 52)))
    errors = {error: [(int(e[0]), int(n[0])) for _, e, n in errors_of(counts, error)] for error in ERRORS}
    assert errors == {
        "both": [(3, 55), (5, 45)], "decision": [(8, 100)], "fmr": [(3, 55)], "false-match-share": [(3, 43)]
    }  # fmt: skip
    pairs = draw(120, np.random.default_rng(0))
    p = {error: float(_p_and_gain(counts, pairs, error, 0.2)[0][0]) for error in ERRORS}
    tail_probabilities = [stats.binom.cdf(k, n, 0.2) for k, n in ((3, 55), (5, 45), (8, 100), (3, 43))]
    assert p == pytest.approx(
        {
            "both": max(tail_probabilities[:2]),
            "decision": tail_probabilities[2],
            "fmr": tail_probabilities[0],
            "false-match-share": tail_probabilities[3],
        }
    )


def test_the_path_starts_at_the_safest_rule_and_gains() -> None:
    p, gain = np.array([0.5, 0.01, 0.2, 0.01, 0.3, 1.0]), np.array([0.9, 0.2, 0.1, 0.3, 0.4, 1.0])
    assert _path(p, gain).tolist() == [3, 4, 0]


def test_testing_stops_at_the_first_failure() -> None:
    """Rules further along the path are not chosen, however good they look on the test part."""
    rng = np.random.default_rng(3)
    tuning = draw(2000, rng)
    failing = ScoredPairs(tuning.scores, tuning.confidences, ~tuning.mated)
    rule = choose_decision(tuning, failing, alpha=ALPHA, delta=DELTA)
    assert not rule.decides and rule.counts == ()


@pytest.mark.parametrize("error, draws", [("both", 500), *((error, 150) for error in ERRORS[1:])])
def test_the_bound_fails_with_probability_delta_at_most(
    population: ScoredPairs, error: str, draws: int
) -> None:
    """Bounds fail no more often than delta allows; selecting on the tuning part alone fails more often."""
    failures, decided, naive = simulate(population, error, draws=draws, n=300, **SMALL)
    assert failures <= stats.binom.ppf(0.999, draws, DELTA)
    assert naive > stats.binom.ppf(0.999, NAIVE, DELTA)
    assert decided > draws / 2


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_the_bound_also_holds_with_all_candidates(population: ScoredPairs, error: str) -> None:
    failures, decided, _ = simulate(population, error, draws=250, n=1000, alpha=0.05, delta=0.05)
    assert failures <= stats.binom.ppf(0.999, 250, 0.05) and decided > 125


def simulate(
    population: ScoredPairs,
    error: str,
    draws: int,
    n: int,
    alpha: float = ALPHA,
    delta: float = DELTA,
    **grid: tuple[float, ...],
) -> tuple[int, int, int]:
    """Returns (failed bounds, rules that decide, failed bounds of the naively best rule)."""
    rng = np.random.default_rng(5)
    failures = decided = naive = 0
    for turn in range(draws):
        tuning, testing = (population.select(rng.integers(0, PEOPLE, n)) for _ in range(2))
        rule = choose_decision(tuning, testing, alpha=alpha, delta=delta, error=error, **grid)
        if rule.decides:
            decided += 1
            failures += true_error(rule, population) > alpha
        if grid and turn < NAIVE:
            naive += true_error(best_looking(tuning, error, alpha, grid), population) > alpha
    return failures, decided, naive


def best_looking(tuning: ScoredPairs, error: str, alpha: float, options: dict) -> DecisionRule:
    grid = _Grid.of(tuning, options["tails"], options["floors"])
    candidates = grid.candidates(two_thresholds=error in ("both", "decision"))
    counts = grid.count(tuning, *candidates)
    is_allowed = np.all([e <= alpha * n for _, e, n in errors_of(counts, error)], axis=0)
    gain = np.where(is_allowed, _p_and_gain(counts, tuning, error, alpha)[1], -1)
    floor, reject, accept = (candidate[int(gain.argmax())] for candidate in candidates)
    t = grid.thresholds
    return DecisionRule("s", None, "c", t[accept], t[reject], grid.floors[floor], error, alpha, 0.1)


@pytest.mark.slow
def test_pairs_that_share_people_require_disjoint_tests() -> None:
    """Some people resemble everyone: bounds from all pairs fail too often, from disjoint pairs they hold."""
    rng = np.random.default_rng(0)
    failures = {"pairs": 0, "disjoint": 0}
    for _ in range(400):
        parts = [draw_few_people(rng) for _ in range(2)]
        tuning = parts[0][0]
        testing, left, right = parts[1]
        rows = disjoint_pairs(left, right, testing.mated, seed=int(rng.integers(1 << 30)))
        for name, used in (("pairs", testing), ("disjoint", testing.select(rows))):
            rule = choose_decision(tuning, used, alpha=0.1, delta=DELTA, error="fmr", floors=())
            failures[name] += rule.decides and false_match_rate(rule.accept) > 0.1
    assert failures["disjoint"] <= stats.binom.ppf(0.999, 400, DELTA) < failures["pairs"]


N_PEOPLE, LAMB_SHARE, LIFT = 60, 0.1, 3.0  # "lambs" are people who resemble everyone


def draw_few_people(rng: np.random.Generator) -> tuple[ScoredPairs, np.ndarray, np.ndarray]:
    """2400 pairs of a few people, some of whom resemble everyone."""
    lift = LIFT * (rng.random(N_PEOPLE) < LAMB_SHARE)
    left = rng.integers(0, N_PEOPLE, 2400)
    mated = np.arange(2400) % 4 == 0
    right = np.where(mated, left, (left + rng.integers(1, N_PEOPLE, 2400)) % N_PEOPLE)
    scores = rng.normal(size=2400) + np.where(mated, 3.0, lift[left] + lift[right])
    return ScoredPairs(scores, np.ones(2400), mated), left, right


def false_match_rate(threshold: float | None) -> float:
    """The true rate over all possible people, from the model."""
    weights = [(1 - LAMB_SHARE) ** 2, 2 * LAMB_SHARE * (1 - LAMB_SHARE), LAMB_SHARE**2]
    return float(sum(w * stats.norm.sf(threshold - i * LIFT) for i, w in enumerate(weights)))


def test_informative_confidence_increases_coverage(population: ScoredPairs) -> None:
    tuning, testing = population.select(np.arange(4000)), population.select(np.arange(4000, 8000))
    coverage = {}
    for abstain in ("both", "score", "confidence"):
        rule = choose_decision(tuning, testing, alpha=0.05, delta=DELTA, abstain=abstain)
        coverage[abstain] = check_rule(rule, population).coverage
        assert abstain != "score" or rule.min_confidence == -np.inf
        assert abstain != "confidence" or rule.accept == rule.reject
    assert coverage["both"] > max(coverage["score"], coverage["confidence"]) > 0.3, coverage


def test_a_smaller_alpha_reduces_coverage(population: ScoredPairs) -> None:
    tuning, testing = population.select(np.arange(4000)), population.select(np.arange(4000, 8000))
    shares = [
        check_rule(choose_decision(tuning, testing, alpha=alpha), population).coverage
        for alpha in (1e-4, 0.01, 0.05, 0.2)
    ]
    assert shares[0] == 0 and all(a < b for a, b in itertools.pairwise(shares))


def test_bad_input_is_refused() -> None:
    pairs = draw(50, np.random.default_rng(0))
    with pytest.raises(InputError, match="alpha and delta"):
        choose_decision(pairs, pairs, alpha=0.0)
    for option in ({"error": "fnmr"}, {"abstain": "never"}):
        with pytest.raises(
            InputError, match=r"unknown error .* or abstain .*; errors are both, decision, fmr"
        ):
            choose_decision(pairs, pairs, alpha=0.1, **option)
    with pytest.raises(InputError, match="confidences: expected"):
        ScoredPairs(pairs.scores, pairs.confidences[:-1], pairs.mated)
    with pytest.raises(InputError, match="50 mated and 0 non-mated"):
        ScoredPairs(pairs.scores, pairs.confidences, np.ones(50, bool))

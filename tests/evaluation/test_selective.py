"""The promise of decisions: counted right, kept in simulation, and broken by the obvious way to choose."""

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
NAIVE = 100  # draws for comparison
SMALL = {"tails": (0.0, 0.02, 0.1, 0.3), "floors": (0.2, 0.5, 0.8)}


def draw(n: int, rng: np.random.Generator, share: float = 0.5) -> ScoredPairs:
    """Pairs of varying confidence: the surer, the further mated scores lie above non-mated ones."""
    mated = rng.random(n) < share
    sure = rng.uniform(0.1, 3, n)
    return ScoredPairs(rng.normal(size=n) + 2 * sure * mated, sure, mated)


@pytest.fixture(scope="module")
def population() -> ScoredPairs:
    """Everybody there is: draws with replacement are exchangeable, and true rates are counts."""
    return draw(PEOPLE, np.random.default_rng(0))


def true_error(rule: DecisionRule, pairs: ScoredPairs) -> float:
    """The rate that was promised, counted plainly."""
    sure, same = pairs.confidences >= rule.min_confidence, pairs.mated
    match, other = sure & (pairs.scores >= rule.accept), sure & (pairs.scores < rule.reject)
    false_match, miss = int((match & ~same).sum()), int((other & same).sum())
    non_mated, mated = int(((match | other) & ~same).sum()), int(((match | other) & same).sum())
    return {
        "both": max(false_match / max(non_mated, 1), miss / max(mated, 1)),
        "decision": (false_match + miss) / max(non_mated + mated, 1),
        "fmr": false_match / max(non_mated, 1),
        "false-match-share": false_match / max(int(match.sum()), 1),
    }[rule.error]


def test_counts_are_those_of_the_rule_itself() -> None:
    rng = np.random.default_rng(1)
    tuning, testing = draw(300, rng), draw(200, rng)
    testing.scores[:50] = np.round(testing.scores[:50], 1)
    testing.scores[50:60] = tuning.scores[:10]  # at the borders
    grid = _Grid.of(tuning, (0.0, 0.1, 0.4), (0.3, 0.7))
    floor, reject, accept = grid.candidates(two_thresholds=True)
    assert len(floor) == 3 * len(grid.thresholds) * (len(grid.thresholds) + 1) // 2
    counts = grid.count(testing, floor, reject, accept)
    for i in range(0, len(floor), 7):
        t, f = grid.thresholds, grid.floors
        rule = DecisionRule("s", None, "c", t[accept[i]], t[reject[i]], f[floor[i]], "both", 0.1, 0.1)
        said = rule.decide(testing.scores, testing.confidences)
        for found, what, kind in (
            (counts.true_match, "match", True), (counts.false_match, "match", False),
            (counts.false_non_match, "non_match", True), (counts.true_non_match, "non_match", False),
        ):  # fmt: skip
            assert found[i] == ((said == what) & (testing.mated == kind)).sum()


def test_what_each_error_is() -> None:
    counts = Counts(*(np.array([n]) for n in (40, 3, 5, 52)))
    found = {error: [(int(e[0]), int(n[0])) for _, e, n in errors_of(counts, error)] for error in ERRORS}
    assert found == {
        "both": [(3, 55), (5, 45)], "decision": [(8, 100)], "fmr": [(3, 55)], "false-match-share": [(3, 43)]
    }  # fmt: skip
    pairs = draw(120, np.random.default_rng(0))
    p = {error: float(_p_and_gain(counts, pairs, error, 0.2)[0][0]) for error in ERRORS}
    own = [stats.binom.cdf(k, n, 0.2) for k, n in ((3, 55), (5, 45), (8, 100), (3, 43))]
    assert p == pytest.approx(
        {"both": max(own[:2]), "decision": own[2], "fmr": own[0], "false-match-share": own[3]}
    )


def test_the_path_gains_from_the_safest_on() -> None:
    p, gain = np.array([0.5, 0.01, 0.2, 0.01, 0.3, 1.0]), np.array([0.9, 0.2, 0.1, 0.3, 0.4, 1.0])
    assert _path(p, gain).tolist() == [3, 4, 0]


def test_testing_stops_at_the_first_failure() -> None:
    """A rule further down the path is not taken, however good it looks where it is tested."""
    rng = np.random.default_rng(3)
    tuning = draw(2000, rng)
    bad = ScoredPairs(tuning.scores, tuning.confidences, ~tuning.mated)
    rule = choose_decision(tuning, bad, alpha=ALPHA, delta=DELTA)
    assert not rule.decides and rule.counts == ()


@pytest.mark.parametrize("error, draws", [("both", 500), *((error, 150) for error in ERRORS[1:])])
def test_the_promise_is_kept(population: ScoredPairs, error: str, draws: int) -> None:
    """No more broken promises than delta allows; choosing by the tuning part alone breaks more."""
    broken, decided, naive = simulate(population, error, draws=draws, n=300, **SMALL)
    assert broken <= stats.binom.ppf(0.999, draws, DELTA)
    assert naive > stats.binom.ppf(0.999, NAIVE, DELTA)
    assert decided > draws / 2


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_the_promise_is_kept_with_all_candidates(population: ScoredPairs, error: str) -> None:
    broken, decided, _ = simulate(population, error, draws=250, n=1000, alpha=0.05, delta=0.05)
    assert broken <= stats.binom.ppf(0.999, 250, 0.05) and decided > 125


def simulate(
    population: ScoredPairs,
    error: str,
    draws: int,
    n: int,
    alpha: float = ALPHA,
    delta: float = DELTA,
    **grid: tuple[float, ...],
) -> tuple[int, int, int]:
    """(promises broken, rules that decide, promises broken by the best rule that looks good enough)."""
    rng = np.random.default_rng(5)
    broken = decided = naive = 0
    for turn in range(draws):
        tuning, testing = (population.select(rng.integers(0, PEOPLE, n)) for _ in range(2))
        rule = choose_decision(tuning, testing, alpha=alpha, delta=delta, error=error, **grid)
        if rule.decides:
            decided += 1
            broken += true_error(rule, population) > alpha
        if grid and turn < NAIVE:
            naive += true_error(best_looking(tuning, error, alpha, grid), population) > alpha
    return broken, decided, naive


def best_looking(tuning: ScoredPairs, error: str, alpha: float, options: dict) -> DecisionRule:
    grid = _Grid.of(tuning, options["tails"], options["floors"])
    places = grid.candidates(two_thresholds=error in ("both", "decision"))
    counts = grid.count(tuning, *places)
    good = np.all([e <= alpha * n for _, e, n in errors_of(counts, error)], axis=0)
    gain = np.where(good, _p_and_gain(counts, tuning, error, alpha)[1], -1)
    floor, reject, accept = (place[int(gain.argmax())] for place in places)
    t = grid.thresholds
    return DecisionRule("s", None, "c", t[accept], t[reject], grid.floors[floor], error, alpha, 0.1)


@pytest.mark.slow
def test_pairs_that_share_people_need_the_disjoint_test() -> None:
    """A few people whom everybody resembles: all pairs together promise too much, disjoint ones do not."""
    rng = np.random.default_rng(0)
    broken = {"pairs": 0, "disjoint": 0}
    for _ in range(400):
        parts = [crowd(rng) for _ in range(2)]
        tuning = parts[0][0]
        testing, left, right = parts[1]
        rows = disjoint_pairs(left, right, testing.mated, seed=int(rng.integers(1 << 30)))
        for name, used in (("pairs", testing), ("disjoint", testing.select(rows))):
            rule = choose_decision(tuning, used, alpha=0.1, delta=DELTA, error="fmr", floors=())
            broken[name] += rule.decides and false_match_rate(rule.accept) > 0.1
    assert broken["disjoint"] <= stats.binom.ppf(0.999, 400, DELTA) < broken["pairs"]


CROWD, LAMBS, LIFT = 60, 0.1, 3.0


def crowd(rng: np.random.Generator) -> tuple[ScoredPairs, np.ndarray, np.ndarray]:
    """2400 pairs of a few people, some of whom resemble everybody."""
    lift = LIFT * (rng.random(CROWD) < LAMBS)
    left = rng.integers(0, CROWD, 2400)
    mated = np.arange(2400) % 4 == 0
    right = np.where(mated, left, (left + rng.integers(1, CROWD, 2400)) % CROWD)
    scores = rng.normal(size=2400) + np.where(mated, 3.0, lift[left] + lift[right])
    return ScoredPairs(scores, np.ones(2400), mated), left, right


def false_match_rate(threshold: float | None) -> float:
    """Over all people there are, from the model."""
    weights = [(1 - LAMBS) ** 2, 2 * LAMBS * (1 - LAMBS), LAMBS**2]
    return float(sum(w * stats.norm.sf(threshold - i * LIFT) for i, w in enumerate(weights)))


def test_confidence_helps_where_it_knows(population: ScoredPairs) -> None:
    tuning, testing = population.select(np.arange(4000)), population.select(np.arange(4000, 8000))
    coverage = {}
    for abstain in ("both", "score", "confidence"):
        rule = choose_decision(tuning, testing, alpha=0.05, delta=DELTA, abstain=abstain)
        coverage[abstain] = check_rule(rule, population).coverage
        assert abstain != "score" or rule.min_confidence == -np.inf
        assert abstain != "confidence" or rule.accept == rule.reject
    assert coverage["both"] > max(coverage["score"], coverage["confidence"]) > 0.3, coverage


def test_a_smaller_alpha_decides_less(population: ScoredPairs) -> None:
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
    with pytest.raises(InputError, match="confidences: expected"):
        ScoredPairs(pairs.scores, pairs.confidences[:-1], pairs.mated)
    with pytest.raises(InputError, match="50 mated and 0 non-mated"):
        ScoredPairs(pairs.scores, pairs.confidences, np.ones(50, bool))

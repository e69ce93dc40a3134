"""Do decisions keep their promise? Rules made from fresh draws, errors counted over everybody.

    python benchmarks/decision_guarantee.py [--draws N] [--pairs N] [--alpha A] [--delta D]

A population of 20,000 pairs whose scores lie the further apart the larger their confidence. Each draw takes
pairs with replacement, once to tune and once to test, so that they are exchangeable with the population and
the true error of a rule is a count. A promise is broken if that error exceeds alpha; delta of the draws may.
Beside it: the same with tuning and testing on the same pairs, which promises nothing. Then a crowd in which
one person in ten resembles everybody and all pairs share people: tested on all pairs, and on disjoint ones.
"""

import argparse

import numpy as np

from spherecf.calibration import DecisionRule
from spherecf.evaluation import ScoredPairs, choose_decision, disjoint_pairs

ERRORS = ("both", "decision", "fmr", "false-match-share")
PEOPLE, LOOKALIKES, LIFT = 60, 0.1, 3.0


def population(pairs: int, rng: np.random.Generator) -> ScoredPairs:
    """Pairs of varying confidence, half mated."""
    mated, sure = rng.random(pairs) < 0.5, rng.uniform(0.1, 3, pairs)
    return ScoredPairs(rng.normal(size=pairs) + 2 * sure * mated, sure, mated)


def error_of(rule: DecisionRule, pairs: ScoredPairs) -> float:
    """True rate of what the rule bounds; 0 where it decides nothing."""
    if rule.accept is None or rule.reject is None:
        return 0.0
    sure, same = pairs.confidences >= rule.min_confidence, pairs.mated
    match, other = sure & (pairs.scores >= rule.accept), sure & (pairs.scores < rule.reject)
    false_match, miss = (match & ~same).sum(), (other & same).sum()
    non_mated, mated = ((match | other) & ~same).sum(), ((match | other) & same).sum()
    rates = {
        "both": max(false_match / max(non_mated, 1), miss / max(mated, 1)),
        "decision": (false_match + miss) / max(non_mated + mated, 1),
        "fmr": false_match / max(non_mated, 1),
        "false-match-share": false_match / max(match.sum(), 1),
    }
    return float(rates[rule.error])


def coverage(rule: DecisionRule, pairs: ScoredPairs) -> float:
    """Share of pairs decided."""
    if rule.accept is None or rule.reject is None:
        return 0.0
    outside = (pairs.scores >= rule.accept) | (pairs.scores < rule.reject)
    return float((outside & (pairs.confidences >= rule.min_confidence)).mean())


def crowd(rng: np.random.Generator) -> tuple[ScoredPairs, np.ndarray, np.ndarray]:
    """2400 pairs of 60 people, some of whom resemble everybody: (pairs, left person, right person)."""
    lift = LIFT * (rng.random(PEOPLE) < LOOKALIKES)
    left = rng.integers(0, PEOPLE, 2400)
    mated = np.arange(2400) % 4 == 0
    right = np.where(mated, left, (left + rng.integers(1, PEOPLE, 2400)) % PEOPLE)
    scores = rng.normal(size=2400) + np.where(mated, 3.0, lift[left] + lift[right])
    return ScoredPairs(scores, np.ones(2400), mated), left, right


def strangers(rng: np.random.Generator) -> ScoredPairs:
    """Pairs of people nobody else of whom is there: the population of the crowds."""
    lift = LIFT * (rng.random((2, 400_000)) < LOOKALIKES).sum(0)
    mated = np.arange(400_000) % 4 == 0
    scores = rng.normal(size=400_000) + np.where(mated, 3.0, lift)
    return ScoredPairs(scores, np.ones(400_000), mated)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=1000, help="to tune, and as many to test")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--delta", type=float, default=0.05)
    options = parser.parse_args()
    n, alpha, delta = options.draws, options.alpha, options.delta
    everybody = population(20_000, np.random.default_rng(0))
    print(
        f"{n} draws, alpha {alpha:g}, delta {delta:g}: promises broken at most about {delta * n:.0f} times\n"
    )
    print("| error | broken | broken if tuned and tested on the same pairs | undecided | mean coverage |")
    print("|---|---|---|---|---|")
    for error in ERRORS:
        rng = np.random.default_rng(1)
        broken = same = nothing = 0
        covered = []
        for _ in range(n):
            tuning, testing = (everybody.select(rng.integers(0, 20_000, options.pairs)) for _ in range(2))
            rule = choose_decision(tuning, testing, alpha=alpha, delta=delta, error=error)
            broken += error_of(rule, everybody) > alpha
            nothing += not rule.decides
            covered.append(coverage(rule, everybody))
            rule = choose_decision(tuning, tuning, alpha=alpha, delta=delta, error=error)
            same += error_of(rule, everybody) > alpha
        print(f"| {error} | {broken} | {same} | {nothing} | {np.mean(covered):.3f} |", flush=True)
    print(f"\n{PEOPLE} people, 2400 pairs, error fmr, alpha 0.1, delta {delta:g}\n")
    print("| tested on | broken |\n|---|---|")
    rng, outside = np.random.default_rng(2), strangers(np.random.default_rng(3))
    counts = {"all pairs": 0, "disjoint pairs": 0}
    for _ in range(n):
        (tuning, _, _), (testing, left, right) = crowd(rng), crowd(rng)
        rows = disjoint_pairs(left, right, testing.mated, seed=int(rng.integers(1 << 30)))
        for name, used in zip(counts, (testing, testing.select(rows))):
            rule = choose_decision(tuning, used, alpha=0.1, delta=delta, error="fmr", floors=())
            counts[name] += error_of(rule, outside) > 0.1
    for name, broken in counts.items():
        print(f"| {name} | {broken} |")


if __name__ == "__main__":
    main()

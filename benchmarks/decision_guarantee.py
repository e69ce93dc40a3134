"""Do decision rules keep their bound? Rules are fitted on random samples, errors counted over the population.

    python benchmarks/decision_guarantee.py [--draws N] [--pairs N] [--alpha A] [--delta D]

The population has 20,000 pairs whose scores are further apart the larger their confidence. Each draw samples
pairs with replacement, once for tuning and once for testing, so the pairs are exchangeable with the
population and the true error of a rule can be counted. The bound is broken if that error exceeds alpha, which
may happen in a share delta of the draws. For comparison, tuning and testing on the same pairs gives no
guarantee.

In a second simulation one person in ten resembles everyone, and pairs share people. Rules are tested on all
pairs and on disjoint ones.
"""

import argparse

import numpy as np

from spherecf.calibration import DecisionRule
from spherecf.evaluation import ScoredPairs, choose_decision, disjoint_pairs

ERRORS = ("both", "decision", "fmr", "false-match-share")
PEOPLE, LOOKALIKES, LIFT = 60, 0.1, 3.0


def population(pairs: int, rng: np.random.Generator) -> ScoredPairs:
    """Pairs of varying confidence, half mated."""
    mated, confidence = rng.random(pairs) < 0.5, rng.uniform(0.1, 3, pairs)
    return ScoredPairs(rng.normal(size=pairs) + 2 * confidence * mated, confidence, mated)


def error_of(rule: DecisionRule, pairs: ScoredPairs) -> float:
    """True value of the error that the rule bounds; 0 if it decides nothing."""
    if rule.accept is None or rule.reject is None:
        return 0.0
    confident, mated = pairs.confidences >= rule.min_confidence, pairs.mated
    match, non_match = confident & (pairs.scores >= rule.accept), confident & (pairs.scores < rule.reject)
    false_matches, false_non_matches = (match & ~mated).sum(), (non_match & mated).sum()
    decided = match | non_match
    decided_non_mated, decided_mated = (decided & ~mated).sum(), (decided & mated).sum()
    rates = {
        "both": max(false_matches / max(decided_non_mated, 1), false_non_matches / max(decided_mated, 1)),
        "decision": (false_matches + false_non_matches) / max(decided_non_mated + decided_mated, 1),
        "fmr": false_matches / max(decided_non_mated, 1),
        "false-match-share": false_matches / max(match.sum(), 1),
    }
    return float(rates[rule.error])


def coverage(rule: DecisionRule, pairs: ScoredPairs) -> float:
    """Share of pairs decided."""
    if rule.accept is None or rule.reject is None:
        return 0.0
    outside = (pairs.scores >= rule.accept) | (pairs.scores < rule.reject)
    return float((outside & (pairs.confidences >= rule.min_confidence)).mean())


def crowd(rng: np.random.Generator) -> tuple[ScoredPairs, np.ndarray, np.ndarray]:
    """2400 pairs of 60 people, some of whom resemble everyone: (pairs, left person, right person)."""
    lift = LIFT * (rng.random(PEOPLE) < LOOKALIKES)
    left = rng.integers(0, PEOPLE, 2400)
    mated = np.arange(2400) % 4 == 0
    right = np.where(mated, left, (left + rng.integers(1, PEOPLE, 2400)) % PEOPLE)
    scores = rng.normal(size=2400) + np.where(mated, 3.0, lift[left] + lift[right])
    return ScoredPairs(scores, np.ones(2400), mated), left, right


def independent_pairs(rng: np.random.Generator) -> ScoredPairs:
    """Pairs without shared people from the population of `crowd`."""
    lift = LIFT * (rng.random((2, 400_000)) < LOOKALIKES).sum(0)
    mated = np.arange(400_000) % 4 == 0
    scores = rng.normal(size=400_000) + np.where(mated, 3.0, lift)
    return ScoredPairs(scores, np.ones(400_000), mated)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=1000, help="number of pairs for tuning, and for testing")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--delta", type=float, default=0.05)
    options = parser.parse_args()
    n, alpha, delta = options.draws, options.alpha, options.delta
    everybody = population(20_000, np.random.default_rng(0))
    print(
        f"{n} draws, alpha {alpha:g}, delta {delta:g}: at most about {delta * n:.0f} broken bounds expected\n"
    )
    print("| error | broken | broken if tuned and tested on the same pairs | no rule | mean coverage |")
    print("|---|---|---|---|---|")
    for error in ERRORS:
        rng = np.random.default_rng(1)
        broken = broken_on_same = no_rule = 0
        coverages = []
        for _ in range(n):
            tuning, testing = (everybody.select(rng.integers(0, 20_000, options.pairs)) for _ in range(2))
            rule = choose_decision(tuning, testing, alpha=alpha, delta=delta, error=error)
            broken += error_of(rule, everybody) > alpha
            no_rule += not rule.decides
            coverages.append(coverage(rule, everybody))
            rule = choose_decision(tuning, tuning, alpha=alpha, delta=delta, error=error)
            broken_on_same += error_of(rule, everybody) > alpha
        counts = f"{broken} | {broken_on_same} | {no_rule}"
        print(f"| {error} | {counts} | {np.mean(coverages):.3f} |", flush=True)
    print(f"\n{PEOPLE} people, 2400 pairs, error fmr, alpha 0.1, delta {delta:g}\n")
    print("| tested on | broken |\n|---|---|")
    rng, outside = np.random.default_rng(2), independent_pairs(np.random.default_rng(3))
    broken_on = {"all pairs": 0, "disjoint pairs": 0}
    for _ in range(n):
        (tuning, _, _), (testing, left, right) = crowd(rng), crowd(rng)
        rows = disjoint_pairs(left, right, testing.mated, seed=int(rng.integers(1 << 30)))
        for name, used in zip(broken_on, (testing, testing.select(rows))):
            rule = choose_decision(tuning, used, alpha=0.1, delta=delta, error="fmr", floors=())
            broken_on[name] += error_of(rule, outside) > 0.1
    for name, broken in broken_on.items():
        print(f"| {name} | {broken} |")


if __name__ == "__main__":
    main()

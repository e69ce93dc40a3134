"""Bootstrap over people as one would explain it: draw people, copy the list, measure it. Slow."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from tests.reference import tenfold_slow


def draw_people(people: Sequence[str], draws: int, seed: int) -> list[Counter[str]]:
    """How often each person is drawn, per draw; the same random numbers as the fast one."""
    names = sorted(set(people))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), [1 / len(names)] * len(names), draws)
    return [Counter(dict(zip(names, row.tolist()))) for row in counts]


def copies(left: Sequence[str], right: Sequence[str], drawn: Counter[str]) -> list[int]:
    """Positions of the pairs in the drawn list: one copy per combination of drawn people."""
    found = []
    for pair, (a, b) in enumerate(zip(left, right)):
        found += [pair] * (drawn[a] if a == b else drawn[a] * drawn[b])
    return found


def accuracy(
    scores: Sequence[float], mated: Sequence[bool], folds: Sequence[int], pairs: Sequence[int]
) -> float:
    """Ten-fold accuracy of the drawn list."""
    columns = [[column[i] for i in pairs] for column in (scores, mated, folds)]
    accuracies, _ = tenfold_slow.tenfold(*columns)
    return sum(accuracies) / len(accuracies)


def tmr(scores: Sequence[float], mated: Sequence[bool], target: float, pairs: Sequence[int]) -> float:
    """Largest TMR with FMR <= target of the drawn list, every threshold tried."""
    genuine = [scores[i] for i in pairs if mated[i]]
    impostor = [scores[i] for i in pairs if not mated[i]]
    best = 0.0
    for threshold in set(scores):
        if sum(s >= threshold for s in impostor) <= target * len(impostor) + 1e-9:
            best = max(best, sum(s >= threshold for s in genuine) / len(genuine))
    return best

"""Error versus discard as one would explain it: throw the worst pairs away, count again. Slow and obvious."""

from collections.abc import Sequence


def fnmr_after_discarding(
    scores: Sequence[float], quality: Sequence[float], threshold: float
) -> dict[float, float]:
    """discarded fraction -> FNMR of what remains; mated pairs only, equal qualities leave together."""
    points = {}
    for worst in sorted(set(quality)):
        remain = [s for s, q in zip(scores, quality) if q >= worst]
        discarded = 1 - len(remain) / len(scores)
        points[discarded] = sum(s < threshold for s in remain) / len(remain)
    return points


def partial_area(points: dict[float, float], limit: float, cells: int = 20000) -> float:
    """Area under the step function from 0 to limit, by small cells."""
    total = 0.0
    for i in range(cells):
        x = (i + 0.5) / cells * limit
        total += points[max(f for f in points if f <= x)] * limit / cells
    return total

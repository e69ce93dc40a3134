"""Which threshold for which rate of false matches, and how well that is known."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from spherecf.calibration._binomial import clopper_pearson
from spherecf.calibration._labelled import labelled
from spherecf.errors import InputError

Ends = tuple[float, float]


@dataclass(frozen=True)
class ThresholdEntry:
    """The smallest threshold seen whose FMR does not exceed ``target``; accept iff score >= threshold."""

    target: float
    threshold: float | None
    false_matches: int | None
    non_mated: int
    true_matches: int | None
    mated: int
    fmr: float | None
    tmr: float | None
    fmr_exact: Ends | None
    """Clopper-Pearson interval at 95 %, as if pairs were independent."""
    tmr_exact: Ends | None
    fmr_subjects: Ends | None = None
    """Interval over subjects, from outside (`spherecf.evaluation.bootstrap_subjects`); None if not made."""
    tmr_subjects: Ends | None = None
    unresolved: str | None = None
    """Why there is no threshold: the target asks for less than one false match among the non-mated pairs."""


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds of one score for several FMR targets, with the counts behind them.

    Args:
        score: which score they are for.
        radius: r of the mutual likelihood score; None where the score has none.
        entries: by descending target.

    Example:
        >>> table = ThresholdTable.fit([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0], [0.5, 0.1], score="cosine")
        >>> table.at(0.5).threshold, table.at(0.5).false_matches, table.at(0.1).unresolved
        (0.8, 1, 'FMR 0.1 needs at least 10 non-mated pairs, there are 2')
    """

    score: str
    radius: float | None
    entries: tuple[ThresholdEntry, ...]

    @classmethod
    def fit(
        cls,
        scores: ArrayLike,
        mated: ArrayLike,
        targets: Sequence[float],
        *,
        score: str,
        radius: float | None = None,
    ) -> "ThresholdTable":
        """Exact thresholds, ties together, as `spherecf.evaluation.tmr_at_fmr` counts them.

        Raises:
            InputError: a target outside 0 .. 1, none at all, NaN, or one kind of pair only.
        """
        same, other = (np.sort(side) for side in labelled(scores, mated))
        if not targets or not all(0 < target <= 1 for target in targets):
            raise InputError(f"FMR targets: expected at least one within 0 .. 1, got {list(targets)}")
        seen = np.sort(np.concatenate([same, other]))
        entries = []
        for target in sorted(set(map(float, targets)), reverse=True):
            allowed = int(target * other.size * (1 + 1e-12))  # the rounding of target * n, less than a pair
            if allowed < 1:
                why = f"FMR {target:g} needs at least {int(np.ceil(1 / target))} non-mated pairs, there are"
                entries.append(
                    ThresholdEntry(
                        target, None, None, other.size, None, same.size, None, None, None, None,
                        unresolved=f"{why} {other.size}",
                    )
                )  # fmt: skip
                continue
            above = -np.inf if allowed >= other.size else other[-allowed - 1]  # it must stay out
            place = int(np.searchsorted(seen, above, side="right"))
            threshold = float(seen[place]) if place < seen.size else float("inf")
            entries.append(_entry(target, threshold, same, other))
        return cls(score, radius, tuple(entries))

    def at(self, target: float) -> ThresholdEntry:
        """The entry of an FMR target.

        Raises:
            InputError: no such target in the table.
        """
        for entry in self.entries:
            if np.isclose(entry.target, target, rtol=1e-9, atol=0):
                return entry
        known = ", ".join(f"{entry.target:g}" for entry in self.entries)
        raise InputError(f"{self.score}: no threshold for FMR {target:g}; the table has {known}")

    def with_subject_intervals(
        self, fmr: Mapping[float, Ends], tmr: Mapping[float, Ends]
    ) -> "ThresholdTable":
        """The same table with intervals over subjects, by target."""
        entries = (
            replace(entry, fmr_subjects=fmr.get(entry.target), tmr_subjects=tmr.get(entry.target))
            for entry in self.entries
        )
        return replace(self, entries=tuple(entries))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an infinite threshold, which accepts nothing, is "inf"."""
        entries = [asdict(entry) for entry in self.entries]
        for entry in entries:
            entry["threshold"] = "inf" if entry["threshold"] == float("inf") else entry["threshold"]
        return {"score": self.score, "radius": self.radius, "entries": entries}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "ThresholdTable":
        """The inverse of `to_dict`."""
        entries = []
        for entry in facts["entries"]:
            values: dict[str, Any] = {
                name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in entry.items()
            }
            threshold = None if entry["threshold"] is None else float(entry["threshold"])
            entries.append(ThresholdEntry(**values | {"threshold": threshold}))
        return cls(facts["score"], facts["radius"], tuple(entries))


def _entry(target: float, threshold: float, same: Any, other: Any) -> ThresholdEntry:
    true = int(same.size - np.searchsorted(same, threshold))
    false = int(other.size - np.searchsorted(other, threshold))
    exact = [
        tuple(float(end) for end in clopper_pearson(hits, of))
        for hits, of in ((false, other.size), (true, same.size))
    ]
    return ThresholdEntry(
        target, threshold, false, other.size, true, same.size, false / other.size, true / same.size,
        (exact[0][0], exact[0][1]), (exact[1][0], exact[1][1]),
    )  # fmt: skip

"""Score to log-likelihood ratio by the best rising function."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf._parsing import checked
from spherecf.calibration._labelled import Numbers, check_counts, check_radius, finite, labelled
from spherecf.calibration._pav import pool_adjacent_violators
from spherecf.errors import InputError


@dataclass(frozen=True)
class IsotonicCalibrator:
    """log LR as a rising function of the score that assumes nothing else; constant beyond the scores seen.

    Within a block of pooled scores it is constant, between blocks linear, so equal scores are equal and a
    larger score never loses.

    Args:
        score: which score it is for: "cosine", "mls", ...
        radius: r of the mutual likelihood score; None where the score has none.
        knots: scores, ascending: first and last one of each block.
        llr: natural-log likelihood ratio at the knots, ascending and finite.
        mated: pairs it was fitted on.
        non_mated: likewise.

    Raises:
        InputError: knots that do not ascend, or no pairs of one kind.

    Example:
        >>> steps = IsotonicCalibrator.fit([0.1, 0.2, 0.5, 0.4, 0.7], [0, 0, 0, 1, 1], score="cosine")
        >>> steps([0.0, 0.45, 9.0]).round(3).tolist()
        [-0.875, 0.223, 0.916]
    """

    kind: ClassVar[str] = "isotonic"

    score: str
    radius: float | None
    knots: tuple[float, ...]
    llr: tuple[float, ...]
    mated: int
    non_mated: int

    def __post_init__(self) -> None:
        x, y = np.asarray(self.knots), np.asarray(self.llr)
        rising = x.ndim == 1 and x.shape == y.shape and x.size and (np.diff(x) > 0).all()
        if not (rising and (np.diff(y) >= 0).all() and np.isfinite([*x, *y]).all()):
            raise InputError(f"{self.score}: expected ascending knots and finite log-likelihood ratios")
        check_radius(self.score, self.radius)
        check_counts(self.score, 1, mated=self.mated, non_mated=self.non_mated)

    @classmethod
    def fit(
        cls, scores: ArrayLike, mated: ArrayLike, *, score: str, radius: float | None = None
    ) -> "IsotonicCalibrator":
        """Pool adjacent violators (Zadrozny and Elkan, KDD 2002), tied scores together.

        One mated and one non-mated pair are added beyond either end (rule of succession, as in Brümmer's
        BOSARIS toolkit), so no ratio is infinite and each end claims what its pairs support: `llr_limits`.
        The ratio of a block is its share of the mated pairs over its share of the non-mated ones.

        Raises:
            InputError: NaN, or one kind of pair only.
        """
        same, other = labelled(scores, mated)
        values, place = np.unique(np.concatenate([same, other]), return_inverse=True)
        totals = np.bincount(place)
        hits = np.bincount(place[: same.size], minlength=values.size)
        starts, rates = pool_adjacent_violators(np.r_[1, hits, 1], np.r_[2, totals, 2])
        llr = np.log(rates / (1 - rates)) + np.log((other.size + 2) / (same.size + 2))
        first = np.maximum(starts - 1, 0)  # the added pairs stood before all scores, and behind
        last = np.minimum(np.append(starts[1:], values.size + 2) - 2, values.size - 1)
        real = first <= last  # not the added pairs alone
        ends = np.stack([values[first[real]], values[last[real]]], axis=1)
        knots, kept = np.unique(ends, return_index=True)
        llr = np.repeat(llr[real], 2)[kept]
        return cls(score, radius, tuple(knots.tolist()), tuple(llr.tolist()), same.size, other.size)

    def __call__(self, scores: Numbers) -> NDArray[Any]:
        """Natural-log likelihood ratio of each score, same shape.

        Raises:
            InputError: NaN.
        """
        return np.asarray(np.interp(finite(scores), self.knots, self.llr))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, **asdict(self), "knots": list(self.knots), "llr": list(self.llr)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "IsotonicCalibrator":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "isotonic")

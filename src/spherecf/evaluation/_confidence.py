"""The images of a pair list and their confidences: EDC, rejection curves and kappa histograms from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.evaluation._discard import edc, pair_quality, rejection_curve
from spherecf.evaluation._result import Discarding, KappaHistogram, Rejection

Array = NDArray[Any]

EDC_STARTS = (("fnmr", 0.05), ("fmr", 1e-3), ("fmr", 1e-4))
_BINS = 30
_MANY = 6  # more distinct severities than this are shown as quartiles of the degraded ones


@dataclass(frozen=True, eq=False)
class Images:
    """All distinct images of a pair list; a key in two files is two images."""

    left: Array
    """(pairs,) index of each pair's left image."""
    right: Array
    kappa: Array
    confidences: dict[str, Array]
    severity: Array | None
    absent: list[str]

    @classmethod
    def of(
        cls,
        left: Embeddings,
        right: Embeddings,
        rows_left: Array,
        rows_right: Array,
        names: Sequence[str],
        seed: int,
    ) -> "Images":
        """Collect them from the rows of one or two files."""
        offset = 0 if left is right else len(left)
        rows, index = np.unique(np.concatenate([rows_left, rows_right + offset]), return_inverse=True)

        def column(of: Mapping[str, Array], other: Mapping[str, Array], name: str) -> Array:
            both = of[name] if left is right else np.concatenate([of[name], other[name]])
            return np.asarray(both[rows], np.float64)

        kappa = column({"kappa": left.kappa}, {"kappa": right.kappa}, "kappa")
        confidences: dict[str, Array] = {}
        absent = []
        for name in names:
            if name == "kappa":
                confidences[name] = kappa
            elif name == "random":
                confidences[name] = np.random.default_rng(seed).random(rows.size)
            elif name in left.extras and name in right.extras:
                confidences[name] = column(left.extras, right.extras, name)
            else:
                absent.append(name)
        severity = None
        if "severity" in left.extras or "severity" in right.extras:  # a file without it is undegraded
            graded = [{"severity": np.zeros(len(side)), **side.extras} for side in (left, right)]
            severity = column(graded[0], graded[1], "severity")
        return cls(index[: rows_left.size], index[rows_left.size :], kappa, confidences, severity, absent)


def discard_everything(
    scores: Mapping[str, Array], mated: Array, images: Images, starts: Sequence[tuple[str, float]]
) -> list[Discarding]:
    """EDC of every score, confidence and starting point."""
    found = []
    for score, values in scores.items():
        for confidence, quality in images.confidences.items():
            of_pairs = pair_quality(quality[images.left], quality[images.right])
            for kind, at in starts:
                start: Any = {"start_fnmr": at} if kind == "fnmr" else {"fmr": at}
                found.append(
                    Discarding(score, confidence, f"{kind}<={at:g}", edc(values, mated, of_pairs, **start))
                )
    return found


def reject_everything(
    scores: Mapping[str, Array], mated: Array, images: Images, targets: Sequence[float]
) -> list[Rejection]:
    """Rejection curve, by images, of every score, confidence and target."""
    return [
        Rejection(
            score,
            confidence,
            rejection_curve(values, mated, quality, target, images=(images.left, images.right)),
        )
        for score, values in scores.items()
        for confidence, quality in images.confidences.items()
        for target in targets
    ]


def kappa_histograms(images: Images) -> list[KappaHistogram]:
    """log10 kappa by severity: one histogram for undegraded images, then one per level or quartile."""
    log_kappa = np.log10(images.kappa)
    low, high = float(log_kappa.min()), float(log_kappa.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    found = []
    for label, chosen in _levels(images):
        values = log_kappa[chosen]
        if values.size:
            quartiles = 10 ** np.quantile(values, [0.25, 0.5, 0.75])
            counts = np.histogram(values, edges)[0]
            found.append(
                KappaHistogram(label, int(values.size), edges.tolist(), counts.tolist(), quartiles.tolist())
            )
    return found


def _levels(images: Images) -> list[tuple[str, Array]]:
    severity = images.severity
    if severity is None:
        return [("all images", np.ones(images.kappa.size, bool))]
    distinct = np.unique(severity)
    if distinct.size <= _MANY:
        return [("clean" if level == 0 else f"severity {level:g}", severity == level) for level in distinct]
    degraded = severity > 0
    edges = np.quantile(severity[degraded], [0, 0.25, 0.5, 0.75, 1])
    levels = [("clean", ~degraded)]
    for i in range(4):
        upper = severity <= edges[i + 1] if i == 3 else severity < edges[i + 1]
        label = f"severity {edges[i]:.2f} to {edges[i + 1]:.2f}"
        levels.append((label, degraded & (severity >= edges[i]) & upper))
    return levels

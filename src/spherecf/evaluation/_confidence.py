"""The images of a pair list and their confidences: EDC, rejection curves and kappa histograms from them.

Beside the columns of the embeddings file these names are known: "kappa"; "mean_resultant", A_d(kappa), which
increases with kappa and so gives exactly the curves of kappa; "precision", the mean log precision of
probabilistic embeddings (PFE, Shi and Jain, ICCV 2019); "random"; and "oracle", which sees the errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.evaluation._discard import edc, pair_quality, rejection_curve
from spherecf.evaluation._rates import tmr_at_fmr
from spherecf.evaluation._result import Discarding, KappaHistogram, Rejection
from spherecf.vmf import mean_resultant_length

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
    oracle: bool = False
    """Asked for; it is made from the scores."""

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
            if name == "oracle":
                continue
            if name == "kappa":
                confidences[name] = kappa
            elif name == "mean_resultant":
                confidences[name] = mean_resultant_length(torch.from_numpy(kappa), left.dim).numpy()
            elif name == "precision" and left.log_precision is not None and right.log_precision is not None:
                of, other = ({name: values.mean(1)} for values in (left.log_precision, right.log_precision))
                confidences[name] = column(of, other, name)
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
        return cls(
            index[: rows_left.size], index[rows_left.size :], kappa, confidences, severity, absent,
            "oracle" in names,
        )  # fmt: skip


def discard_everything(
    scores: Mapping[str, Array], mated: Array, images: Images, starts: Sequence[tuple[str, float]]
) -> list[Discarding]:
    """EDC of every score, confidence and starting point; the oracle discards failing pairs first."""
    found = []
    for score, values in scores.items():
        of_pairs = {
            confidence: pair_quality(quality[images.left], quality[images.right])
            for confidence, quality in images.confidences.items()
        }
        if images.oracle:
            of_pairs["oracle"] = values
        for confidence, quality in of_pairs.items():
            for kind, at in starts:
                start: Any = {"start_fnmr": at} if kind == "fnmr" else {"fmr": at}
                found.append(
                    Discarding(score, confidence, f"{kind}<={at:g}", edc(values, mated, quality, **start))
                )
    return found


def reject_everything(
    scores: Mapping[str, Array], mated: Array, images: Images, targets: Sequence[float]
) -> list[Rejection]:
    """Rejection curve, by images, of every score, confidence and target."""
    found = []
    for score, values in scores.items():
        for confidence in [*images.confidences, *(["oracle"] if images.oracle else [])]:
            for target in targets:
                quality = images.confidences.get(confidence)
                if quality is None:
                    quality = _oracle_of_images(values, mated, images, target)
                curve = rejection_curve(values, mated, quality, target, images=(images.left, images.right))
                found.append(Rejection(score, confidence, curve))
    return found


def _oracle_of_images(scores: Array, mated: Array, images: Images, target: float) -> Array:
    """Rank of each image: most wrong per pair first, then by the worst margin of its pairs.

    Wrong is by the threshold of all pairs, as much as the score misses it. It sees the errors, but to find
    the best images to reject is a harder problem, which it does not solve.
    """
    threshold = tmr_at_fmr(scores, mated, target)[0].threshold or 0.0  # unresolved: no curve in any case
    margin = np.tile(np.where(mated, scores - threshold, threshold - scores), 2)
    image = np.concatenate([images.left, images.right])
    missed = np.bincount(image, np.maximum(-margin, 0)) / np.bincount(image)
    worst = np.full(images.kappa.size, np.inf)
    np.minimum.at(worst, image, margin)
    rank = np.empty(images.kappa.size)
    rank[np.lexsort((worst, -missed))] = np.arange(rank.size)
    return rank


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

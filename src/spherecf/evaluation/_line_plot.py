"""Any lines and histograms on two axes: what protocols other than pair lists draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.errors import InputError
from spherecf.evaluation._canvas import det_axes, deviate, drawing, line_style
from spherecf.evaluation._parts import Plot

Numbers = Sequence[float | int] | NDArray[Any]
Ends = tuple[float | int, float | int]


@dataclass(frozen=True, eq=False)
class Series:
    """One line: its name in the legend, its points, and whether it is a staircase ("post") or dashed.

    Some names have a look of their own in every plot: the confidences "kappa", "norm", "detector_score" and
    "sharpness", the grey "cosine" and "random", and the dotted "oracle" and "perfect" (a diagonal, say).

    Raises:
        InputError: x and y differ in length, or there is no point.
    """

    label: str
    x: Numbers
    y: Numbers
    steps: bool = False
    dashed: bool = False

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.x):
            raise InputError(
                f"series {self.label!r}: expected as many x as y and at least one, "
                f"got {len(self.x)} and {len(self.y)}"
            )


def line_plot(
    name: str,
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    caption: str,
    alt: str,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = False,
    xlim: Ends | None = None,
    ylim: Ends | None = None,
) -> Plot:
    """Draw lines: CMC, rejection, EDC, PRR, reliability and the like.

    Args:
        name: unique on the page.
        series: at least one; NaN breaks a line.
        xlabel: of the horizontal axis, with its unit.
        ylabel: of the vertical axis.
        caption: below the plot: what it shows, which direction is better.
        alt: the same in words and numbers, for those who do not see it.
        log_x: logarithmic horizontal axis.
        log_y: logarithmic vertical axis.
        markers: show the points.
        xlim: ends of the horizontal axis; default: those of the points.
        ylim: ends of the vertical axis.

    Raises:
        InputError: no series.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> plot = line_plot(
        ...     "cmc",
        ...     [Series("cosine", [1, 2], [0.9, 1.0])],
        ...     xlabel="rank",
        ...     ylabel="identified",
        ...     caption="CMC",
        ...     alt="rank 1: 0.9",
        ... )
        >>> plot.svg.startswith("<svg")
        True
    """
    _some(name, series)
    with drawing(name, f"{caption} {alt}") as (axes, drawn):
        _draw(axes, series, markers)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=xlim, ylim=ylim)
    return Plot(drawn.svg, caption, alt)


def det_lines(
    name: str,
    series: Sequence[Series],
    *,
    caption: str,
    alt: str,
    low: float,
    xlabel: str = "FMR (FAR)",
    ylabel: str = "FNMR (1 - TAR)",
) -> Plot:
    """Draw two error rates against each other on normal-deviate axes (DET).

    Args:
        name: unique on the page.
        series: x and y are rates, 0 .. 1; for open-set search x is FPIR and y FNIR.
        caption: below the plot.
        alt: the same in words and numbers.
        low: the axes' lower end, e.g. half of the smallest rate that the counts can show; smaller rates
            lie on the edge.
        xlabel: of the horizontal axis.
        ylabel: of the vertical axis.

    Raises:
        InputError: no series, a rate outside 0 .. 1, or ``low`` outside 0 .. 0.5.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> line = Series("cosine", [1e-3, 1e-2, 1e-1], [0.2, 0.1, 0.02])
        >>> det_lines("det", [line], caption="DET", alt="FNMR at 0.01: 0.1", low=5e-4).alt
        'FNMR at 0.01: 0.1'
    """
    _some(name, series)
    if not 0 < low < 0.5:
        raise InputError(f"plot {name!r}: low: expected 0 < low < 0.5, got {low}")
    moved = []
    for line in series:
        x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
        if not ((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)).all():
            raise InputError(f"plot {name!r}: series {line.label!r}: expected rates within 0 .. 1")
        at = [deviate(v, low) for v in x.tolist()], [deviate(v, low) for v in y.tolist()]
        moved.append(Series(line.label, *at, line.steps, line.dashed))
    with drawing(name, f"{caption} {alt}") as (axes, drawn):
        _draw(axes, moved, markers=False)
        det_axes(axes, low, xlabel, ylabel)
    return Plot(drawn.svg, caption, alt)


@dataclass(frozen=True, eq=False)
class Histogram:
    """One outline: its name in the legend, counts per bin, and one edge more than counts.

    Raises:
        InputError: edges and counts do not fit together.
    """

    label: str
    counts: Numbers
    edges: Numbers

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1 or not len(self.counts):
            raise InputError(
                f"histogram {self.label!r}: {len(self.counts)} counts need {len(self.counts) + 1} edges, "
                f"got {len(self.edges)}"
            )


def histogram_plot(
    name: str,
    histograms: Sequence[Histogram],
    *,
    xlabel: str,
    caption: str,
    alt: str,
    ylabel: str = "share",
    log_x: bool = False,
) -> Plot:
    """Draw distributions as outlines, each as shares of its own total.

    Args:
        name: unique on the page.
        histograms: at least one.
        xlabel: of the horizontal axis.
        caption: below the plot.
        alt: the same in words and numbers.
        ylabel: of the vertical axis.
        log_x: logarithmic horizontal axis.

    Raises:
        InputError: no histogram.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> found = Histogram("mated", [1, 3], [0.0, 0.5, 1.0])
        >>> histogram_plot("scores", [found], xlabel="score", caption="Scores", alt="mostly high").caption
        'Scores'
    """
    _some(name, histograms)
    labels = [one.label for one in histograms]
    with drawing(name, f"{caption} {alt}") as (axes, drawn):
        for one in histograms:
            counts = np.asarray(one.counts, np.float64)
            share = counts / max(float(counts.sum()), 1.0)
            axes.stairs(share, one.edges, label=one.label, linewidth=1.6, **line_style(one.label, labels))
        if log_x:
            axes.set_xscale("log")
        axes.set(xlabel=xlabel, ylabel=ylabel)
    return Plot(drawn.svg, caption, alt)


def _some(name: str, lines: Sequence[Any]) -> None:
    if not lines:
        raise InputError(f"plot {name!r}: nothing to draw, expected at least one line")


def _draw(axes: Any, series: Sequence[Series], markers: bool) -> None:
    labels = [line.label for line in series]
    for line in series:
        style = line_style(line.label, labels)
        if line.dashed:
            style["linestyle"] = "--"
        if line.steps:
            style["drawstyle"] = "steps-post"
        if markers:
            style |= {"marker": "o", "markersize": 3}
        axes.plot(line.x, line.y, label=line.label, linewidth=1.7, **style)

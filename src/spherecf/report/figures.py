"""Plots of any lines and histograms as inline SVG, in one style."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.errors import InputError, MissingDependencyError
from spherecf.report.parts import Plot

INK = "#010203"  # stands for the colour of the page's text
GREY = "#8a8f98"
PALETTE = ("#0b84d8", "#e07b00", "#2a9d5c", "#9b59d0", "#d64545", "#b08900")
NAMED = {"kappa": PALETTE[0], "norm": PALETTE[1], "detector_score": PALETTE[2], "sharpness": PALETTE[3]}
_PLAIN = {"cosine": (GREY, "-"), "random": (GREY, "--"), "oracle": (INK, ":"), "perfect": (INK, ":")}
_DASHES = ("-", "--", "-.", ":")
_DET_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5)


def require_matplotlib() -> None:
    """Raise early, before long work, if plots cannot be drawn.

    Raises:
        MissingDependencyError: with the command that installs it.

    Example:
        >>> require_matplotlib()
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "the report draws plots with matplotlib, which is not installed: pip install 'spherecf[report]'"
        ) from error


def line_style(label: str, among: list[str]) -> dict[str, Any]:
    """Colour and dash of a line: known names always have theirs, others by their place among the unknown.

    >>> line_style("kappa", ["kappa"])["color"] == line_style("kappa", ["x", "kappa"])["color"]
    True
    """
    if label in _PLAIN:
        colour, dash = _PLAIN[label]
        return {"color": colour, "linestyle": dash}
    if label in NAMED:
        return {"color": NAMED[label], "linestyle": "-"}
    taken = [NAMED[name] for name in among if name in NAMED]
    free = [colour for colour in PALETTE if colour not in taken]
    place = [name for name in among if name not in NAMED and name not in _PLAIN].index(label)
    return {"color": free[place % len(free)], "linestyle": _DASHES[place // len(free) % len(_DASHES)]}


@dataclass
class Drawn:
    """Where `drawing` leaves its SVG."""

    svg: str = ""


@contextmanager
def drawing(name: str, alt: str) -> Iterator[tuple[Any, Drawn]]:
    """A small figure to draw into; its SVG is there when the block ends. ``name`` makes ids unique."""
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    )
    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": 9
    }  # fmt: skip
    with rc_context(settings | ink):
        figure = Figure(figsize=(4.6, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, color=GREY, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        drawn = Drawn()
        yield axes, drawn
        labels = [len(str(line.get_label())) for line in (*axes.lines, *axes.patches)]
        columns = 3 if max(labels, default=0) < 16 else 2
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8, handlelength=1.6)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True)
    drawn.svg = _inline(stream.getvalue(), alt)


def _inline(svg: str, alt: str) -> str:
    """The bare ``<svg>``: no prolog, metadata, foreign names or fixed size, ids only where referred to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', svg)
    box = view.group(1) if view else "0 0 331 252"
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="{box}" role="img" aria-label="{escape(alt)}">', svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href", "href").replace(INK, "currentColor")
    return re.sub(r"\n\s*", "\n", svg).strip()


def deviate(rate: float, low: float) -> float:
    """Where a rate lies on a normal-deviate axis that ends at ``low``."""
    return NormalDist().inv_cdf(min(max(rate, low), 1 - low))


def det_axes(axes: Any, low: float, xlabel: str, ylabel: str) -> None:
    """Normal-deviate axes of two error rates, from ``low`` to 60 %."""
    shown = [tick for tick in _DET_TICKS if tick >= low]
    places, labels = [deviate(tick, low) for tick in shown], [f"{100 * tick:g} %" for tick in shown]
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)
    ends = deviate(low, low), deviate(0.6, low)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=ends, ylim=ends)


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

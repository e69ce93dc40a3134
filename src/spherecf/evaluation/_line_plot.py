"""Any lines on two axes: what protocols other than pair lists draw."""

from collections.abc import Sequence
from dataclasses import dataclass

from spherecf.evaluation._parts import Plot
from spherecf.evaluation._plots import drawing, series_style


@dataclass(frozen=True)
class Series:
    """One line: its name in the legend, its points, and whether it is a staircase ("post") or dashed."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    steps: bool = False
    dashed: bool = False


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
) -> Plot:
    """Draw lines; the same label has the same colour in every plot of a page.

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

    Raises:
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
    with drawing(name, f"{caption} {alt}") as (axes, drawn):
        for place, line in enumerate(series):
            style = series_style(line.label, place)
            if line.dashed:
                style["linestyle"] = "--"
            if line.steps:
                style["drawstyle"] = "steps-post"
            if markers:
                style |= {"marker": "o", "markersize": 3}
            axes.plot(line.x, line.y, label=line.label, linewidth=1.7, **style)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        axes.set(xlabel=xlabel, ylabel=ylabel)
    return Plot(drawn.svg, caption, alt)

"""Line, DET and histogram plots show their data and refuse data that cannot be shown."""

import re

import numpy as np
import pytest

from spherecf.errors import InputError
from spherecf.report import Axis, Histogram, Plot, Series, det_lines, histogram_plot, line_plot
from spherecf.report.figures import GREY, NAMED, PALETTE, line_style

pytest.importorskip("matplotlib")


def plot(*series: Series, x: Axis = Axis("x"), y: Axis = Axis("y"), markers: bool = False) -> Plot:
    return line_plot("p", series, x, y, caption="c", alt="a", markers=markers)


def test_lists_arrays_and_gaps_are_drawn() -> None:
    result = plot(
        Series("one", [1, 2, 3], np.array([0.1, np.nan, 0.3])),
        Series("two", range(1, 4), [3, 2, 1], steps=True),
        x=Axis("x", log=True, limits=(1, 3)), y=Axis("y", log=True), markers=True,
    )  # fmt: skip
    assert (result.caption, result.alt) == ("c", "a")
    assert ">one<" in result.svg and ">two<" in result.svg and result.svg.count("clip-path") >= 2


def test_logarithmic_axes_have_plain_number_labels() -> None:
    for values, expected in (([1, 30, 100], {"1", "10", "100"}), ([4.1, 4.2, 4.4], {"4.1", "4.4"})):
        svg = plot(Series("one", values, values), x=Axis("x", log=True), y=Axis("y", log=True)).svg
        labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
        assert expected <= set(labels) and not any("$" in label for label in labels)


def test_names_have_fixed_colours() -> None:
    among = ["kappa", "galue", "random", "margin", "cosine"]
    styles = {name: line_style(name, among) for name in among}
    assert styles["kappa"]["color"] == NAMED["kappa"] and styles["cosine"] == {
        "color": GREY,
        "linestyle": "-",
    }
    assert styles["random"]["linestyle"] == "--"
    assert len({style["color"] for style in styles.values()}) == 4  # random and cosine are both grey
    names = [f"c{i}" for i in range(14)]
    name_styles = [line_style(name, names) for name in names]
    assert len({tuple(style.items()) for style in name_styles}) == 14
    assert name_styles[0]["color"] == PALETTE[0]
    dashed = plot(Series("one", [0, 1], [0, 1], dashed=True)).svg
    assert "stroke-dasharray" in dashed and "stroke-dasharray" not in plot(Series("one", [0, 1], [0, 1])).svg


def test_det_axes_are_scaled_in_normal_deviates() -> None:
    """Equal steps of the normal deviate have equal lengths on the page."""
    rates = [0.158655, 0.5, 1e-4]  # z = -1, 0, and below the limit z(0.0228) = -2
    result = det_lines("d", [Series("s", rates, rates)], caption="c", alt="a", low=0.02275)
    line = max(re.findall(r'd="(M [^"]*)"', result.svg), key=lambda path: path.count("L") == 2)
    x = [float(value) for value in re.findall(r"([\d.]+) [\d.]+", line)]
    assert x[1] - x[0] == pytest.approx(x[0] - x[2], rel=1e-3)
    assert "5 %" in result.svg and ">1 %<" not in result.svg


def test_histograms_show_shares() -> None:
    small = Histogram("one", [1, 3], [0.0, 1.0, 2.0])
    large = Histogram("one", [100, 300], [0.0, 1.0, 2.0])
    plots = [histogram_plot("h", [h], xlabel="x", caption="c", alt="a").svg for h in (small, large)]
    assert plots[0] == plots[1] and ">one<" in plots[0]
    empty = Histogram("none", [0, 0], [1, 10, 100])
    assert histogram_plot("h", [empty], xlabel="x", caption="c", alt="a", log_x=True).svg


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="'p': nothing to draw"):
        plot()
    with pytest.raises(
        InputError, match="'one': expected equally many x and y values, at least one, got 2 and 1"
    ):
        Series("one", [1, 2], [1])
    with pytest.raises(InputError, match="got 0 and 0"):
        Series("one", [], [])
    with pytest.raises(InputError, match="2 counts need 3 edges, got 2"):
        Histogram("one", [1, 2], [0, 1])
    with pytest.raises(InputError, match=r"'s': expected rates within 0 .. 1"):
        det_lines("d", [Series("s", [0.1], [float("nan")])], caption="c", alt="a", low=0.1)
    with pytest.raises(InputError, match=r"low: expected 0 < low < 0\.5, got 0"):
        det_lines("d", [Series("s", [0.1], [0.1])], caption="c", alt="a", low=0.0)

"""One look for all plots: inline SVG, text stays text, ink takes the colour of the page, nothing outside."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from statistics import NormalDist
from typing import Any

from spherecf.errors import MissingDependencyError

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

"""Plots as inline SVG: text stays text, ink takes the colour of the page, nothing outside is referred to."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from statistics import NormalDist
from typing import Any

from spherecf.errors import MissingDependencyError
from spherecf.evaluation._discard import Edc, RejectionCurve
from spherecf.evaluation._parts import Plot
from spherecf.evaluation._result import KappaHistogram, PairReport

_INK = "#010203"  # stands for the colour of the page's text
_SCORES = ("#0b84d8", "#e07b00", "#2a9d5c", "#9b59d0", "#d64545", "#b08900")
_CONFIDENCES = {
    "kappa": "#0b84d8",
    "norm": "#e07b00",
    "detector_score": "#2a9d5c",
    "sharpness": "#9b59d0",
}
_FURTHER = ("#d64545", "#b08900", "#5b6ee1")
_GREY = "#8a8f98"
_SEVERITY = ("#2a9d5c", "#c9a400", "#e07b00", "#d64545", "#9b59d0", "#8a8f98")
_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5)
_EDC_SHOWN = 0.5
_PREFERRED_STARTS = ("fmr<=0.001", "fnmr<=0.05", "fmr<=0.0001")


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


def det_plot(runs: Sequence[PairReport], name: str) -> Plot:
    """Detection error trade-off of all scores, on normal-deviate axes; further runs are thin."""
    alt = "; ".join(
        f"{score}: EER {result.eer.value:.4f}" for score, result in runs[0].scores.items()
    )  # fmt: skip
    with drawing(name, f"DET curves. {alt}") as (axes, drawn):
        low = min(0.5 / run.counts[kind] for run in runs for kind in ("mated", "non_mated"))
        for first, run in _first(runs):
            for score, result in run.scores.items():
                x = [_deviate(v, low) for v in result.det["fmr"]]
                y = [_deviate(v, low) for v in result.det["fnmr"]]
                axes.plot(
                    x, y, color=score_colour(score, run), label=score if first else None, **_weight(first)
                )
        shown = [tick for tick in _TICKS if tick >= low]
        places, labels = [_deviate(tick, low) for tick in shown], [_percent(tick) for tick in shown]
        axes.set_xticks(places, labels)
        axes.set_yticks(places, labels)
        ends = _deviate(low, low), _deviate(0.6, low)
        axes.set(xlabel="FMR (FAR)", ylabel="FNMR (1 - TAR)", xlim=ends, ylim=ends)
    return Plot(
        drawn.svg, "DET: what each score misses at each rate of false matches. Lower left is better.", alt
    )


def edc_plot(runs: Sequence[PairReport], score: str, name: str) -> Plot | None:
    """Error versus discard of all confidences for one score; None where there is no error to discard."""
    start = _edc_start(runs[0], score)
    if start is None:
        return None
    chosen = [[d for d in run.edc if d.score == score and d.start == start] for run in runs]
    areas = [f"{d.confidence} {d.edc.pauc_normalised.get('0.2', math.nan):.3f}" for d in chosen[0]]
    alt = f"Area up to 20 % discarded, 1 = tells nothing: {', '.join(areas)}"
    with drawing(name, f"Error versus discard for {score}. {alt}") as (axes, drawn):
        for first, found in _first(chosen):
            for item in found:
                x, y = _steps(item.edc)
                style = _confidence_style(item.confidence, [one.confidence for one in found]) | _weight(first)
                axes.plot(x, y, drawstyle="steps-post", label=item.confidence if first else None, **style)
        at = chosen[0][0].edc.start or 0.0
        ideal = [i / 200 for i in range(int(200 * _EDC_SHOWN) + 1)]
        best = [max(0.0, at - x) / (1 - x) for x in ideal]
        axes.plot(ideal, best, color=_INK, linestyle=":", linewidth=1, label="errors first")
        axes.set(xlabel="share of mated pairs discarded", ylabel="FNMR of the rest", xlim=(0, _EDC_SHOWN))
        shown = [y for found in chosen for d in found for x, y in zip(*_steps(d.edc)) if x <= _EDC_SHOWN]
        axes.set_ylim(0, 1.08 * max(shown))
    return Plot(
        drawn.svg, f"EDC, {score}, threshold at {start.replace('<=', ' ≤ ').upper()}. Lower is better.", alt
    )


def rejection_plot(runs: Sequence[PairReport], score: str, name: str) -> Plot | None:
    """TMR at FMR against the share of images rejected; None where nothing is resolved."""
    target = _rejection_target(runs[0], score)
    if target is None:
        return None
    chosen = [[r for r in run.rejection if r.score == score and r.curve.target == target] for run in runs]
    gains = [f"{r.confidence} {_at(r.curve, 0.2)}" for r in chosen[0]]
    alt = f"TMR with 20 % rejected: {', '.join(gains)}"
    with drawing(name, f"Rejection curves for {score}. {alt}") as (axes, drawn):
        for first, found in _first(chosen):
            for item in found:
                style = _confidence_style(item.confidence, [one.confidence for one in found]) | _weight(first)
                y = [math.nan if tmr is None else tmr for tmr in item.curve.tmr]
                axes.plot(item.curve.fractions, y, label=item.confidence if first else None, **style)
        axes.set(xlabel="share of images rejected", ylabel=f"TMR (TAR) at FMR ≤ {target:g}", xlim=(0, 0.95))
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.98), min(high, 1.002))
    caption = f"Rejection, {score}: TMR of what remains. Higher is better; a line ends where unresolved."
    return Plot(drawn.svg, caption, alt)


def kappa_plot(histograms: Sequence[KappaHistogram], name: str) -> Plot:
    """Distribution of kappa, one line per severity."""
    alt = "Median κ: " + ", ".join(f"{h.label} {h.quartiles[1]:.4g}" for h in histograms)
    with drawing(name, f"Histograms of kappa by severity. {alt}") as (axes, drawn):
        colours = iter(_SEVERITY)
        for histogram in histograms:
            colour = next(colours) if histogram.label.startswith("severity") else _SCORES[0]
            share = [count / histogram.images for count in histogram.counts]
            edges = [10**edge for edge in histogram.edges]
            axes.stairs(share, edges, color=colour, linewidth=1.6, label=histogram.label)
        axes.set_xscale("log")
        places = _log_ticks(10 ** histograms[0].edges[0], 10 ** histograms[0].edges[-1])
        axes.set_xticks(places, [f"{place:,g}" for place in places])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="κ (larger = surer)", ylabel="share of images")
    return Plot(drawn.svg, "κ by severity of degradation. Poorer pictures should lie further left.", alt)


def main_scores(report: PairReport) -> list[str]:
    """The cosine and the first score that is not: the two whose curves are drawn."""
    names = list(report.scores)
    others = [score for score in names if score != "cosine"]
    return [*(["cosine"] if "cosine" in names else []), *others[:1]]


def score_colour(score: str, report: PairReport) -> str:
    """Grey for the cosine, the palette in order for the others."""
    others = [name for name in report.scores if name != "cosine"]
    return _GREY if score == "cosine" else _SCORES[others.index(score) % len(_SCORES)]


@dataclass
class _Drawn:
    svg: str = ""


def series_style(label: str, place: int) -> dict[str, Any]:
    """Colour and dash of a line: by its name where that is a known one, else by place."""
    if label in ("random", "cosine"):
        return {"color": _GREY, "linestyle": "--" if label == "random" else "-"}
    return {"color": _CONFIDENCES.get(label) or _SCORES[place % len(_SCORES)]}


@contextmanager
def drawing(name: str, alt: str) -> Iterator[tuple[Any, _Drawn]]:
    """A small figure to draw into; its SVG is there when the block ends. ``name`` makes ids unique."""
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK
    )
    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": 9
    }  # fmt: skip
    with rc_context(settings | ink):
        figure = Figure(figsize=(4.6, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.grid(True, color=_GREY, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        drawn = _Drawn()
        yield axes, drawn
        labels = [len(str(line.get_label())) for line in (*axes.lines, *axes.patches)]
        columns = 3 if max(labels) < 16 else 2
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
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("xlink:href", "href").replace(_INK, "currentColor")
    return re.sub(r"\n\s*", "\n", svg).strip()


def _first(items: Sequence[Any]) -> Iterator[tuple[bool, Any]]:
    """The others first, so that the first one lies on top."""
    for place in range(len(items) - 1, -1, -1):
        yield place == 0, items[place]


def _weight(first: bool) -> dict[str, Any]:
    return {"linewidth": 1.7, "alpha": 1.0} if first else {"linewidth": 0.8, "alpha": 0.5}


def _confidence_style(name: str, among: Sequence[str]) -> dict[str, Any]:
    if name == "random":
        return {"color": _GREY, "linestyle": "--"}
    unknown = [other for other in among if other not in _CONFIDENCES]
    return {"color": _CONFIDENCES.get(name) or _FURTHER[unknown.index(name) % len(_FURTHER)]}


def _deviate(rate: float, low: float) -> float:
    return NormalDist().inv_cdf(min(max(rate, low), 1 - low))


def _log_ticks(low: float, high: float) -> list[float]:
    """At most eight round numbers within the range: 1, 2, 5, 10, ..., or whole decades of a wide one."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= 8:
            return found
    return found[:: math.ceil(len(found) / 8)]


def _percent(rate: float) -> str:
    return f"{100 * rate:g} %"


def _steps(edc: Edc) -> tuple[list[float], list[float]]:
    """At most 200 of the steps, each exact where it is read, closed at the right end."""
    stride = max(1, math.ceil(len(edc.fnmr) / 200))
    return [*edc.discard_fraction[::stride], 1.0], [*edc.fnmr[::stride], edc.fnmr[-1]]


def _edc_start(report: PairReport, score: str) -> str | None:
    found = {d.start: d.edc for d in report.edc if d.score == score}
    for start in [*_PREFERRED_STARTS, *found]:
        if start in found and found[start].start:
            return start
    return None


def _rejection_target(report: PairReport, score: str) -> float | None:
    """The smallest target that stays resolved over half of the curve, else the one resolved longest."""
    points = {
        r.curve.target: sum(tmr is not None for tmr in r.curve.tmr)
        for r in report.rejection
        if r.score == score
    }
    long = [target for target, count in points.items() if count >= 10]
    if long:
        return min(long)
    best = max(points, key=lambda target: points[target], default=None)
    return best if best is not None and points[best] else None


def _at(curve: RejectionCurve, fraction: float) -> str:
    found = [tmr for at, tmr in zip(curve.fractions, curve.tmr) if math.isclose(at, fraction)]
    return f"{found[0]:.3f}" if found and found[0] is not None else "unresolved"

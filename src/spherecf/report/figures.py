"""Plots as inline SVG in one style, and strips of faces."""

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError, MissingDependencyError
from spherecf.evaluation import Edc, KappaHistogram, Mistake, PairReport, RejectionCurve

INK = "#010203"  # stands for the colour of the page's text
GREY = "#8a8f98"
PALETTE = ("#0b84d8", "#e07b00", "#2a9d5c", "#9b59d0", "#d64545", "#b08900")
NAMED = {"kappa": PALETTE[0], "norm": PALETTE[1], "detector_score": PALETTE[2], "sharpness": PALETTE[3]}
_DOTTED = (INK, ":")
_PLAIN = {
    "cosine": (GREY, "-"), "random": (GREY, "--"),
    "oracle": _DOTTED, "perfect": _DOTTED, "errors first": _DOTTED,
}  # fmt: skip
_DASHES = ("-", "--", "-.", ":")
_SEVERITY = ("#2a9d5c", "#c9a400", "#e07b00", "#d64545", "#9b59d0", "#8a8f98")
_DET_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5)
_EDC_SHOWN = 0.5
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_PREFERRED_STARTS = ("fmr<=0.001", "fnmr<=0.05", "fmr<=0.0001")

Numbers = Sequence[float | int] | NDArray[Any]
Ends = tuple[float | int, float | int]


@dataclass(frozen=True)
class Plot:
    """A plot as inline SVG, its caption, and a text alternative."""

    svg: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Attributes:
        label: what is measured, with its unit.
        log: logarithmic.
        limits: both ends; default: those of the points.
    """

    label: str
    log: bool = False
    limits: Ends | None = None


@dataclass(frozen=True, eq=False)
class Series:
    """One line: its name in the legend, its points, and whether it is a staircase ("post") or dashed.

    Some names have a fixed style: the confidences "kappa", "norm", "detector_score" and
    "sharpness", the grey "cosine" and "random", and the dotted "oracle" and "perfect" (a diagonal, say).

    Args:
        label: in the legend.
        x: of the points.
        y: as many as x.
        steps: draw a staircase: each y holds until the next x.
        dashed: draw it dashed.
        thin: draw it thin and leave it out of the legend: another run of a line that is shown.
        colour: instead of that of its name.

    Raises:
        InputError: x and y differ in length, or there is no point.
    """

    label: str
    x: Numbers
    y: Numbers
    steps: bool = False
    dashed: bool = False
    thin: bool = False
    colour: str = ""

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not len(self.x):
            raise InputError(
                f"series {self.label!r}: expected as many x as y and at least one, "
                f"got {len(self.x)} and {len(self.y)}"
            )


@dataclass(frozen=True, eq=False)
class Histogram:
    """One outline: its name in the legend, counts per bin, one edge more than counts, and its colour.

    Raises:
        InputError: edges and counts do not fit together.
    """

    label: str
    counts: Numbers
    edges: Numbers
    colour: str = ""

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1 or not len(self.counts):
            raise InputError(
                f"histogram {self.label!r}: {len(self.counts)} counts need {len(self.counts) + 1} edges, "
                f"got {len(self.edges)}"
            )


def require_matplotlib() -> None:
    """Fail before long work if plots cannot be drawn.

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


def line_plot(
    name: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    caption: str,
    alt: str,
    markers: bool = False,
) -> Plot:
    """Draw lines: CMC, rejection, EDC, PRR, reliability and the like.

    Args:
        name: unique on the page.
        series: at least one; NaN breaks a line.
        x: horizontal axis.
        y: vertical axis.
        caption: below the plot: what it shows, and which direction is better.
        alt: text alternative: the same in words and numbers.
        markers: show the points.

    Raises:
        InputError: no series.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> plot = line_plot(
        ...     "cmc",
        ...     [Series("cosine", [1, 2], [0.9, 1.0])],
        ...     Axis("rank"),
        ...     Axis("identified"),
        ...     caption="CMC",
        ...     alt="rank 1: 0.9",
        ... )
        >>> plot.svg.startswith("<svg")
        True
    """
    with _axes(name, series) as (axes, saved):
        _draw(axes, series, markers)
        if x.log:
            axes.set_xscale("log")
            _log_ticks_on(axes.xaxis, [line.x for line in series])
        if y.log:
            axes.set_yscale("log")
            _log_ticks_on(axes.yaxis, [line.y for line in series])
        axes.set(xlabel=x.label, ylabel=y.label, xlim=x.limits, ylim=y.limits)
    return Plot(saved.getvalue(), caption, alt)


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
        alt: text alternative.
        low: the axes' lower end, e.g. half of the smallest rate that the counts can show; smaller rates
            are drawn on the edge.
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
    if not 0 < low < 0.5:
        raise InputError(f"plot {name!r}: low: expected 0 < low < 0.5, got {low}")
    moved = []
    for line in series:
        rates = np.asarray([line.x, line.y], np.float64)
        if not ((rates >= 0) & (rates <= 1)).all():
            raise InputError(f"plot {name!r}: series {line.label!r}: expected rates within 0 .. 1")
        x, y = ([_deviate(rate, low) for rate in side] for side in rates.tolist())
        moved.append(replace(line, x=x, y=y))
    with _axes(name, series) as (axes, saved):
        _draw(axes, moved)
        shown = [tick for tick in _DET_TICKS if tick >= low]
        places, labels = [_deviate(tick, low) for tick in shown], [f"{100 * tick:g} %" for tick in shown]
        axes.set_xticks(places, labels)
        axes.set_yticks(places, labels)
        ends = _deviate(low, low), _deviate(0.6, low)
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=ends, ylim=ends)
    return Plot(saved.getvalue(), caption, alt)


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
        alt: text alternative.
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
    labels = [one.label for one in histograms]
    with _axes(name, histograms) as (axes, saved):
        for one in histograms:
            counts = np.asarray(one.counts, np.float64)
            share = counts / max(float(counts.sum()), 1.0)
            style = {"color": one.colour} if one.colour else line_style(one.label, labels)
            axes.stairs(share, one.edges, label=one.label, linewidth=1.6, **style)
        if log_x:
            axes.set_xscale("log")
            _log_ticks_on(axes.xaxis, [one.edges for one in histograms])
        axes.set(xlabel=xlabel, ylabel=ylabel)
    return Plot(saved.getvalue(), caption, alt)


def line_style(label: str, among: list[str]) -> dict[str, Any]:
    """Colour and dash of a line: fixed for known names, for others by their order.

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


@contextmanager
def _axes(name: str, lines: Sequence[Any]) -> Iterator[tuple[Any, io.StringIO]]:
    """Axes to draw into; the stream holds their SVG when the block ends.

    Inline SVG needs three things that matplotlib has no setting for: no XML prolog; no ids of groups, which
    it numbers from 1 in each figure, while ids must be unique on a page; and ``currentColor``, which it does
    not accept as a colour. ``name`` seeds the ids of clip paths, so these differ between plots.
    """
    if not lines:
        raise InputError(f"plot {name!r}: nothing to draw, expected at least one line")
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": 9,
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK,
        "xtick.color": INK, "ytick.color": INK,
        "axes.grid": True, "grid.color": GREY, "grid.alpha": 0.25, "grid.linewidth": 0.6,
        "axes.spines.top": False, "axes.spines.right": False,
        "legend.frameon": False, "legend.fontsize": 8, "legend.handlelength": 1.6,
    }  # fmt: skip
    saved = io.StringIO()
    with rc_context(settings):
        figure = Figure(figsize=(4.6, 3.5), layout="constrained")
        axes = figure.subplots()
        yield axes, saved
        shortest = (
            max((len(line.label) for line in lines if not getattr(line, "thin", False)), default=0) < 16
        )
        figure.legend(loc="outside lower center", ncols=3 if shortest else 2)
        whole = io.StringIO()
        figure.savefig(whole, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = whole.getvalue()[whole.getvalue().index("<svg") :]
    saved.write(re.sub(r'<g id="[^"]*"', "<g", svg).replace(INK, "currentColor"))


def _draw(axes: Any, series: Sequence[Series], markers: bool = False) -> None:
    labels = [line.label for line in series]
    for line in series:
        style = {"color": line.colour} if line.colour else line_style(line.label, labels)
        if line.dashed:
            style["linestyle"] = "--"
        if line.steps:
            style["drawstyle"] = "steps-post"
        if markers:
            style |= {"marker": "o", "markersize": 3}
        # A label with an underscore stays out of the legend.
        style |= {"linewidth": 0.8, "alpha": 0.5, "label": "_"} if line.thin else {"linewidth": 1.7}
        axes.plot(line.x, line.y, **{"label": line.label} | style)


def _deviate(rate: float, low: float) -> float:
    """Where a rate stands on a normal-deviate axis that ends at ``low``."""
    return NormalDist().inv_cdf(min(max(rate, low), 1 - low))


def _log_ticks_on(axis: Any, values: Sequence[Numbers]) -> None:
    """Plain numbers on a logarithmic axis; those of matplotlib are written in TeX."""
    every = np.concatenate([np.asarray(some, np.float64) for some in values])
    positive = every[every > 0]
    if positive.size:
        low, high = float(positive.min()), float(positive.max())
        places = _log_ticks(low, high) or [low, high]
        axis.set_ticks(places, [f"{place:,g}" for place in places])
        axis.set_ticks([], minor=True)


def condition_plots(runs: Sequence[PairReport], where: str) -> list[Plot]:
    """All plots of one condition: DET, rejection and EDC of the main scores, and kappa of the first run."""
    scores = list(enumerate(main_scores(runs[0])))
    plots: list[Plot | None] = [det_plot(runs, f"{where}-det")]
    plots += [rejection_plot(runs, score, f"{where}-rejection-{place}") for place, score in scores]
    plots += [edc_plot(runs, score, f"{where}-edc-{place}") for place, score in scores]
    plots.append(kappa_plot(runs[0].kappa_histograms, f"{where}-kappa"))
    return [plot for plot in plots if plot is not None]


def det_plot(runs: Sequence[PairReport], name: str) -> Plot:
    """Detection error trade-off of all scores, on normal-deviate axes; further runs are thin."""
    series = [
        Series(score, result.det["fmr"], result.det["fnmr"], thin=thin, colour=score_colour(score, run))
        for thin, run in _first_on_top(runs)
        for score, result in run.scores.items()
    ]
    return det_lines(
        name, series, low=min(0.5 / run.counts[kind] for run in runs for kind in ("mated", "non_mated")),
        caption="DET: FNMR against FMR of each score. Lower left is better.",
        alt="; ".join(f"{s}: EER {result.eer.value:.4f}" for s, result in runs[0].scores.items()),
    )  # fmt: skip


def edc_plot(runs: Sequence[PairReport], score: str, name: str) -> Plot | None:
    """Error versus discard of all confidences for one score; None where there is no error to discard."""
    start = _edc_start(runs[0], score)
    if start is None:
        return None
    chosen = [[d for d in run.edc if d.score == score and d.start == start] for run in runs]
    series = [
        Series(item.confidence, *_steps(item.edc), steps=True, thin=thin)
        for thin, found in _first_on_top(chosen)
        for item in found
    ]
    highest = max(y for line in series for x, y in zip(line.x, line.y) if x <= _EDC_SHOWN)
    at, ideal = chosen[0][0].edc.start or 0.0, np.linspace(0, _EDC_SHOWN, 101)
    series.append(Series("errors first", ideal, np.maximum(0, at - ideal) / (1 - ideal)))
    areas = [f"{d.confidence} {d.edc.pauc_normalised.get('0.2', math.nan):.3f}" for d in chosen[0]]
    return line_plot(
        name,
        series,
        Axis("share of mated pairs discarded", limits=(0, _EDC_SHOWN)),
        Axis("FNMR of the rest", limits=(0, 1.08 * highest)),
        caption=f"EDC, {score}, threshold at {start.replace('<=', ' ≤ ').upper()}. Lower is better.",
        alt=f"Area up to 20 % discarded (1 is uninformative): {', '.join(areas)}",
    )


def rejection_plot(runs: Sequence[PairReport], score: str, name: str) -> Plot | None:
    """TMR at FMR against the share of images rejected; None where nothing is resolved."""
    target = _rejection_target(runs[0], score)
    if target is None:
        return None
    chosen = [[r for r in run.rejection if r.score == score and r.curve.target == target] for run in runs]
    series = [
        Series(
            r.confidence, r.curve.fractions, [math.nan if y is None else y for y in r.curve.tmr], thin=thin
        )
        for thin, found in _first_on_top(chosen)
        for r in found
    ]
    tmr = [y for found in chosen for r in found for y in r.curve.tmr if y is not None]
    margin = 0.05 * (max(tmr) - min(tmr))
    return line_plot(
        name,
        series,
        Axis("share of images rejected", limits=(0, 0.95)),
        Axis(
            f"TMR (TAR) at FMR ≤ {target:g}",
            limits=(min(min(tmr) - margin, 0.98), min(max(tmr) + margin, 1.002)),
        ),
        caption=f"Rejection, {score}: TMR of the pairs that remain. A line ends where unresolved.",
        alt=f"TMR with 20 % rejected: {', '.join(f'{r.confidence} {_at(r.curve, 0.2)}' for r in chosen[0])}",
    )


def kappa_plot(histograms: Sequence[KappaHistogram], name: str) -> Plot:
    """Distribution of kappa, one line per severity."""
    colours = iter(_SEVERITY)
    outlines = [
        Histogram(
            h.label, h.counts, [10**edge for edge in h.edges],
            next(colours) if h.label.startswith("severity") else PALETTE[0],
        )
        for h in histograms
    ]  # fmt: skip
    return histogram_plot(
        name, outlines, xlabel="κ (larger: more confident)", ylabel="share of images", log_x=True,
        caption="κ by severity of degradation. Poorer images should have smaller κ.",
        alt="Median κ: " + ", ".join(f"{h.label} {h.quartiles[1]:.4g}" for h in histograms),
    )  # fmt: skip


def _first_on_top(runs: Sequence[Any]) -> Iterator[tuple[bool, Any]]:
    """The first run last, so that it is drawn over the others, which are thin."""
    for place in range(len(runs) - 1, -1, -1):
        yield place > 0, runs[place]


def main_scores(report: PairReport) -> list[str]:
    """The cosine and the first score that is not: the two whose curves are drawn."""
    names = list(report.scores)
    others = [score for score in names if score != "cosine"]
    return [*(["cosine"] if "cosine" in names else []), *others[:1]]


def score_colour(score: str, report: PairReport) -> str:
    """Grey for the cosine, the palette in order for the others."""
    others = [name for name in report.scores if name != "cosine"]
    return GREY if score == "cosine" else PALETTE[others.index(score) % len(PALETTE)]


def _log_ticks(low: float, high: float) -> list[float]:
    """At most eight round numbers within the range: 1, 2, 5, 10, ..., or whole decades of a wide one."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= 8:
            return found
    return found[:: math.ceil(len(found) / 8)]


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


@dataclass(frozen=True)
class Strip:
    """A row of pictures with a line under each.

    Args:
        title: what they are and how they are sorted.
        images: encoded PNG or JPEG, as bytes.
        captions: one per image, e.g. "κ 512".
        beside: of pairs, the second picture of each, shown to the right of the first.

    Raises:
        InputError: numbers differ, or an image is neither PNG nor JPEG.
    """

    title: str
    images: Sequence[bytes]
    captions: Sequence[str]
    beside: Sequence[bytes] = ()

    def __post_init__(self) -> None:
        if len(self.images) != len(self.captions) or len(self.beside) not in (0, len(self.images)):
            raise InputError(
                f"strip {self.title!r}: {len(self.images)} images, {len(self.captions)} captions, "
                f"{len(self.beside)} images beside"
            )
        for place, image in enumerate([*self.images, *self.beside]):
            media_type(image, f"strip {self.title!r}, image {place}")

    def to_dict(self) -> dict[str, Any]:
        """Title and captions; pictures stay in the page."""
        return {"title": self.title, "captions": list(self.captions)}


def media_type(image: bytes, where: str) -> str:
    """Of an encoded picture, by its first bytes."""
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    if image[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    raise InputError(f"{where}: expected an encoded PNG or JPEG, got bytes starting {bytes(image[:8])!r}")


_KINDS = {True: "mated pairs with the lowest", False: "non-mated pairs with the highest"}


def strip_by_kappa(
    title: str,
    embeddings: Embeddings,
    picture: Callable[[str], bytes],
    *,
    keys: Sequence[str] | None = None,
    count: int = 14,
) -> Strip:
    """Faces by increasing kappa, evenly spaced by rank, with kappa below each.

    Args:
        title: of the strip.
        embeddings: gives kappa.
        picture: the encoded PNG or JPEG of a key.
        keys: those to choose from; default: all. Keys without an embedding are skipped.
        count: number of faces.

    Raises:
        InputError: nothing to show, or pictures that are neither PNG nor JPEG.

    Example:
        >>> e = Embeddings(np.eye(3), np.log([30.0, 10.0, 20.0]), ["a", "b", "c"])
        >>> strip_by_kappa("faces", e, lambda key: b"\\xff\\xd8\\xff", count=2).captions
        ['κ 10', 'κ 30']
    """
    known = set(embeddings.keys)
    chosen = embeddings.keys if keys is None else [key for key in dict.fromkeys(keys) if key in known]
    if not chosen or count < 1:
        raise InputError(f"strip {title!r}: nothing to show ({len(chosen)} embedded images, {count} wanted)")
    rows = embeddings.rows(chosen)
    rows = rows[np.argsort(embeddings.log_kappa[rows], kind="stable")]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    captions = [_kappa(kappa) for kappa in embeddings.kappa[rows].tolist()]
    return Strip(title, [picture(embeddings.keys[row]) for row in rows], captions)


def strips_of_mistakes(
    mistakes: Sequence[Mistake],
    picture: Callable[[str], bytes],
    picture_right: Callable[[str], bytes] | None = None,
    *,
    title: str = "",
) -> list[Strip]:
    """The worst mistakes as pairs of faces, one strip per score and kind, with score, kappas and names.

    Args:
        mistakes: from `worst_mistakes`, or ``mistakes`` of a `PairReport`.
        picture: the encoded PNG or JPEG of a left key (of any key without ``picture_right``).
        picture_right: of a right key.
        title: in front of the strips' titles.

    Raises:
        InputError: pictures that are neither PNG nor JPEG.

    Example:
        >>> found = [Mistake("mls", True, -3.2, "a", "b", (50.0, 12.0), ("ann", "ann"))]
        >>> strips = strips_of_mistakes(found, lambda key: b"\\xff\\xd8\\xff")
        >>> strips[0].title, strips[0].captions
        ('mls: the mated pairs with the lowest scores', ['-3.2\\nκ 50 | 12\\nann'])
    """
    groups: dict[tuple[str, bool], list[Mistake]] = {}
    for one in mistakes:
        groups.setdefault((one.score, one.mated), []).append(one)
    return [
        Strip(
            f"{title}{': ' * bool(title)}{score}: the {_KINDS[mated]} scores",
            [picture(one.left) for one in found],
            [_mistake_caption(one) for one in found],
            [(picture_right or picture)(one.right) for one in found],
        )
        for (score, mated), found in groups.items()
    ]


def _mistake_caption(one: Mistake) -> str:
    lines = [f"{one.value:.4g}", " | ".join([_kappa(one.kappa[0]), _kappa(one.kappa[1]).removeprefix("κ ")])]
    return "\n".join([*lines, *filter(None, dict.fromkeys(one.subjects))])


def _kappa(kappa: float) -> str:
    return f"κ {kappa:.3g}" if kappa < 100 else f"κ {kappa:,.0f}"

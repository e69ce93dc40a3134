"""Plots as inline SVG in a common style, and strips of faces."""

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

INK = "#010203"  # placeholder, replaced by the text colour of the page
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
_MAX_DISCARDED = 0.5  # right end of EDC plots
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_PREFERRED_STARTS = ("fmr<=0.001", "fnmr<=0.05", "fmr<=0.0001")

Numbers = Sequence[float | int] | NDArray[Any]
Limits = tuple[float | int, float | int]


@dataclass(frozen=True)
class Plot:
    """A plot as inline SVG, with its caption and text alternative."""

    svg: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Attributes:
        label: quantity, with its unit.
        log: whether the axis is logarithmic.
        limits: both ends; default: the range of the points.
    """

    label: str
    log: bool = False
    limits: Limits | None = None


@dataclass(frozen=True, eq=False)
class Series:
    """One line of a plot: label, points and style.

    Some labels have a fixed style: the confidences "kappa", "norm", "detector_score" and "sharpness" have a
    colour each, "cosine" and "random" are grey, "oracle", "perfect" and "errors first" are dotted.

    Args:
        label: name in the legend.
        x: x coordinates of the points.
        y: y coordinates, as many as ``x``.
        steps: draw a step function: each y holds until the next x.
        dashed: draw a dashed line.
        thin: draw a thin line without legend entry, e.g. for further runs of the same score.
        colour: CSS colour, instead of the one chosen by the label.

    Raises:
        InputError: x and y differ in length, or are empty.
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
                f"series {self.label!r}: expected equally many x and y values, at least one, "
                f"got {len(self.x)} and {len(self.y)}"
            )


@dataclass(frozen=True, eq=False)
class Histogram:
    """One distribution of a histogram plot.

    Args:
        label: name in the legend.
        counts: (k,) counts per bin.
        edges: (k + 1,) bin edges, ascending.
        colour: CSS colour, instead of the one chosen by the label.

    Raises:
        InputError: there are no counts, or the number of edges is not one more than that of counts.
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
    """Check that matplotlib is installed; call it before a long computation that ends with plots.

    Raises:
        MissingDependencyError: matplotlib is not installed; the message has the command that installs it.

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
    """Plot lines, e.g. CMC, rejection, EDC, PRR or reliability curves.

    Args:
        name: identifier, unique on the page.
        series: at least one line; a line is interrupted at NaN.
        x: horizontal axis.
        y: vertical axis.
        caption: text below the plot: what it shows, and which direction is better.
        alt: text alternative that states the same in words and numbers.
        markers: whether to mark the points.

    Raises:
        InputError: there is no series.
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
    with _axes(name, series) as (axes, svg):
        _draw(axes, series, markers)
        if x.log:
            axes.set_xscale("log")
            _set_log_ticks(axes.xaxis, [line.x for line in series])
        if y.log:
            axes.set_yscale("log")
            _set_log_ticks(axes.yaxis, [line.y for line in series])
        axes.set(xlabel=x.label, ylabel=y.label, xlim=x.limits, ylim=y.limits)
    return Plot(svg.getvalue(), caption, alt)


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
    """Plot two error rates against each other on normal-deviate axes (DET curve).

    Args:
        name: identifier, unique on the page.
        series: at least one line; x and y are rates within 0 .. 1, for open-set search FPIR and FNIR.
        caption: text below the plot.
        alt: text alternative.
        low: lower end of both axes, e.g. half of the smallest rate that the counts can resolve; smaller rates
            are drawn on the edge.
        xlabel: label of the horizontal axis.
        ylabel: label of the vertical axis.

    Raises:
        InputError: there is no series, a rate is outside 0 .. 1, or ``low`` is outside 0 .. 0.5.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> line = Series("cosine", [1e-3, 1e-2, 1e-1], [0.2, 0.1, 0.02])
        >>> det_lines("det", [line], caption="DET", alt="FNMR at 0.01: 0.1", low=5e-4).alt
        'FNMR at 0.01: 0.1'
    """
    if not 0 < low < 0.5:
        raise InputError(f"plot {name!r}: low: expected 0 < low < 0.5, got {low}")
    transformed = []
    for line in series:
        rates = np.asarray([line.x, line.y], np.float64)
        if not ((rates >= 0) & (rates <= 1)).all():
            raise InputError(f"plot {name!r}: series {line.label!r}: expected rates within 0 .. 1")
        x, y = ([_normal_deviate(rate, low) for rate in coordinate] for coordinate in rates.tolist())
        transformed.append(replace(line, x=x, y=y))
    with _axes(name, series) as (axes, svg):
        _draw(axes, transformed)
        ticks = [tick for tick in _DET_TICKS if tick >= low]
        positions, labels = [_normal_deviate(tick, low) for tick in ticks], [f"{100 * t:g} %" for t in ticks]
        axes.set_xticks(positions, labels)
        axes.set_yticks(positions, labels)
        limits = _normal_deviate(low, low), _normal_deviate(0.6, low)
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=limits, ylim=limits)
    return Plot(svg.getvalue(), caption, alt)


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
    """Plot distributions as outlines; each histogram is normalised to shares of its total count.

    Args:
        name: identifier, unique on the page.
        histograms: at least one histogram.
        xlabel: label of the horizontal axis.
        caption: text below the plot.
        alt: text alternative.
        ylabel: label of the vertical axis.
        log_x: whether the horizontal axis is logarithmic.

    Raises:
        InputError: there is no histogram.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> mated = Histogram("mated", [1, 3], [0.0, 0.5, 1.0])
        >>> histogram_plot("scores", [mated], xlabel="score", caption="Scores", alt="mostly high").caption
        'Scores'
    """
    labels = [histogram.label for histogram in histograms]
    with _axes(name, histograms) as (axes, svg):
        for histogram in histograms:
            counts = np.asarray(histogram.counts, np.float64)
            shares = counts / max(float(counts.sum()), 1.0)
            style = {"color": histogram.colour} if histogram.colour else line_style(histogram.label, labels)
            axes.stairs(shares, histogram.edges, label=histogram.label, linewidth=1.6, **style)
        if log_x:
            axes.set_xscale("log")
            _set_log_ticks(axes.xaxis, [histogram.edges for histogram in histograms])
        axes.set(xlabel=xlabel, ylabel=ylabel)
    return Plot(svg.getvalue(), caption, alt)


def line_style(label: str, labels: list[str]) -> dict[str, Any]:
    """Colour and dash pattern of a line: fixed for some labels, by position among the others.

    >>> line_style("kappa", ["kappa"])["color"] == line_style("kappa", ["x", "kappa"])["color"]
    True
    """
    if label in _PLAIN:
        colour, dash = _PLAIN[label]
        return {"color": colour, "linestyle": dash}
    if label in NAMED:
        return {"color": NAMED[label], "linestyle": "-"}
    used = [NAMED[name] for name in labels if name in NAMED]
    free = [colour for colour in PALETTE if colour not in used]
    index = [name for name in labels if name not in NAMED and name not in _PLAIN].index(label)
    return {"color": free[index % len(free)], "linestyle": _DASHES[index // len(free) % len(_DASHES)]}


@contextmanager
def _axes(name: str, lines: Sequence[Any]) -> Iterator[tuple[Any, io.StringIO]]:
    """Yield axes to draw on and a stream that receives their SVG at the end of the block.

    Matplotlib's SVG is adapted for inline use in three ways for which there are no settings: the XML prolog
    is removed; group ids are removed, because ids must be unique on a page and matplotlib numbers them from 1
    in each figure; and the placeholder `INK` is replaced by ``currentColor``, which matplotlib does not
    accept as a colour. ``name`` seeds the ids of clip paths, so that they differ between plots.
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
    output = io.StringIO()
    with rc_context(settings):
        figure = Figure(figsize=(4.6, 3.5), layout="constrained")
        axes = figure.subplots()
        yield axes, output
        labels = [line.label for line in lines if not getattr(line, "thin", False)]
        short_labels = max(map(len, labels), default=0) < 16
        figure.legend(loc="outside lower center", ncols=3 if short_labels else 2)
        document = io.StringIO()
        figure.savefig(document, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = document.getvalue()[document.getvalue().index("<svg") :]
    output.write(re.sub(r'<g id="[^"]*"', "<g", svg).replace(INK, "currentColor"))


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
        # Matplotlib leaves labels that start with an underscore out of the legend.
        style |= {"linewidth": 0.8, "alpha": 0.5, "label": "_"} if line.thin else {"linewidth": 1.7}
        axes.plot(line.x, line.y, **{"label": line.label} | style)


def _normal_deviate(rate: float, low: float) -> float:
    """Position of a rate on a normal-deviate axis from ``low`` to ``1 - low``."""
    return NormalDist().inv_cdf(min(max(rate, low), 1 - low))


def _set_log_ticks(axis: Any, values: Sequence[Numbers]) -> None:
    """Label a logarithmic axis with plain numbers; matplotlib's own labels are in TeX."""
    numbers = np.concatenate([np.asarray(array, np.float64) for array in values])
    positive = numbers[numbers > 0]
    if positive.size:
        low, high = float(positive.min()), float(positive.max())
        ticks = _log_ticks(low, high) or [low, high]
        axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
        axis.set_ticks([], minor=True)


def condition_plots(runs: Sequence[PairReport], prefix: str) -> list[Plot]:
    """All plots of one condition: DET, rejection and EDC of the main scores, and kappa of the first run."""
    scores = list(enumerate(main_scores(runs[0])))
    plots: list[Plot | None] = [det_plot(runs, f"{prefix}-det")]
    plots += [rejection_plot(runs, score, f"{prefix}-rejection-{i}") for i, score in scores]
    plots += [edc_plot(runs, score, f"{prefix}-edc-{i}") for i, score in scores]
    plots.append(kappa_plot(runs[0].kappa_histograms, f"{prefix}-kappa"))
    return [plot for plot in plots if plot is not None]


def det_plot(runs: Sequence[PairReport], name: str) -> Plot:
    """Detection error trade-off of all scores on normal-deviate axes; all runs but the first are thin."""
    series = [
        Series(score, result.det["fmr"], result.det["fnmr"], thin=thin, colour=score_colour(score, run))
        for thin, run in _first_run_last(runs)
        for score, result in run.scores.items()
    ]
    return det_lines(
        name, series, low=min(0.5 / run.counts[kind] for run in runs for kind in ("mated", "non_mated")),
        caption="DET: FNMR against FMR of each score. Lower left is better.",
        alt="; ".join(f"{s}: EER {result.eer.value:.4f}" for s, result in runs[0].scores.items()),
    )  # fmt: skip


def edc_plot(runs: Sequence[PairReport], score: str, name: str) -> Plot | None:
    """Error versus discard of all confidences for one score; None if there is no error to discard."""
    start = _edc_start(runs[0], score)
    if start is None:
        return None
    curves_by_run = [[d for d in run.edc if d.score == score and d.start == start] for run in runs]
    series = [
        Series(item.confidence, *_edc_steps(item.edc), steps=True, thin=thin)
        for thin, curves in _first_run_last(curves_by_run)
        for item in curves
    ]
    max_fnmr = max(y for line in series for x, y in zip(line.x, line.y) if x <= _MAX_DISCARDED)
    start_fnmr, discarded = curves_by_run[0][0].edc.start or 0.0, np.linspace(0, _MAX_DISCARDED, 101)
    series.append(Series("errors first", discarded, np.maximum(0, start_fnmr - discarded) / (1 - discarded)))
    areas = [f"{d.confidence} {d.edc.pauc_normalised.get('0.2', math.nan):.3f}" for d in curves_by_run[0]]
    return line_plot(
        name,
        series,
        Axis("share of mated pairs discarded", limits=(0, _MAX_DISCARDED)),
        Axis("FNMR of the remaining pairs", limits=(0, 1.08 * max_fnmr)),
        caption=f"EDC, {score}, threshold at {start.replace('<=', ' ≤ ').upper()}. Lower is better.",
        alt=f"Area up to 20 % discarded (1 is uninformative): {', '.join(areas)}",
    )


def rejection_plot(runs: Sequence[PairReport], score: str, name: str) -> Plot | None:
    """TMR at FMR against the share of images rejected; None if every target is unresolved."""
    target = _rejection_target(runs[0], score)
    if target is None:
        return None
    curves_by_run = [
        [r for r in run.rejection if r.score == score and r.curve.target == target] for run in runs
    ]
    series = [
        Series(
            r.confidence, r.curve.fractions, [math.nan if y is None else y for y in r.curve.tmr], thin=thin
        )
        for thin, curves in _first_run_last(curves_by_run)
        for r in curves
    ]
    tmr = [y for curves in curves_by_run for r in curves for y in r.curve.tmr if y is not None]
    margin = 0.05 * (max(tmr) - min(tmr))
    tmr_texts = [f"{r.confidence} {_tmr_text(r.curve, 0.2)}" for r in curves_by_run[0]]
    return line_plot(
        name,
        series,
        Axis("share of images rejected", limits=(0, 0.95)),
        Axis(
            f"TMR (TAR) at FMR ≤ {target:g}",
            limits=(min(min(tmr) - margin, 0.98), min(max(tmr) + margin, 1.002)),
        ),
        caption=f"Rejection, {score}: TMR of the remaining pairs. Lines end where the target is unresolved.",
        alt=f"TMR with 20 % rejected: {', '.join(tmr_texts)}",
    )


def kappa_plot(histograms: Sequence[KappaHistogram], name: str) -> Plot:
    """Distribution of kappa, one line per severity of degradation."""
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
        caption="κ by severity of degradation. Images of lower quality should have a smaller κ.",
        alt="Median κ: " + ", ".join(f"{h.label} {h.quartiles[1]:.4g}" for h in histograms),
    )  # fmt: skip


def _first_run_last(runs: Sequence[Any]) -> Iterator[tuple[bool, Any]]:
    """(whether its lines are thin, run) in reverse order, so that the first run is drawn on top."""
    for index in range(len(runs) - 1, -1, -1):
        yield index > 0, runs[index]


def main_scores(report: PairReport) -> list[str]:
    """The scores whose rejection and EDC curves are plotted: the cosine and the first other score."""
    names = list(report.scores)
    others = [score for score in names if score != "cosine"]
    return [*(["cosine"] if "cosine" in names else []), *others[:1]]


def score_colour(score: str, report: PairReport) -> str:
    """Colour of a score's line: grey for the cosine, palette colours in order for the other scores."""
    others = [name for name in report.scores if name != "cosine"]
    return GREY if score == "cosine" else PALETTE[others.index(score) % len(PALETTE)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Up to eight round numbers within the range: 1, 2, 5, 10, ..., or whole decades of a wide range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 8)]


def _edc_steps(edc: Edc) -> tuple[list[float], list[float]]:
    """Points of the step function, thinned to about 200 and extended to the right end."""
    stride = max(1, math.ceil(len(edc.fnmr) / 200))
    return [*edc.discard_fraction[::stride], 1.0], [*edc.fnmr[::stride], edc.fnmr[-1]]


def _edc_start(report: PairReport, score: str) -> str | None:
    """The starting point whose EDC curves are plotted: the first, in order of preference, with errors."""
    curves = {d.start: d.edc for d in report.edc if d.score == score}
    for start in [*_PREFERRED_STARTS, *curves]:
        if start in curves and curves[start].start:
            return start
    return None


def _rejection_target(report: PairReport, score: str) -> float | None:
    """The smallest FMR target resolved on at least ten points of the curve, else the one with most points."""
    n_resolved = {
        r.curve.target: sum(tmr is not None for tmr in r.curve.tmr)
        for r in report.rejection
        if r.score == score
    }
    well_resolved = [target for target, count in n_resolved.items() if count >= 10]
    if well_resolved:
        return min(well_resolved)
    best = max(n_resolved, key=lambda target: n_resolved[target], default=None)
    return best if best is not None and n_resolved[best] else None


def _tmr_text(curve: RejectionCurve, fraction: float) -> str:
    values = [tmr for x, tmr in zip(curve.fractions, curve.tmr) if math.isclose(x, fraction)]
    return f"{values[0]:.3f}" if values and values[0] is not None else "unresolved"


@dataclass(frozen=True)
class Strip:
    """A row of face images with a caption under each.

    Args:
        title: what the images are and how they are sorted.
        images: encoded PNG or JPEG files, as bytes.
        captions: one per image, e.g. "κ 512".
        beside: for pairs, the second image of each, shown to the right of the first.

    Raises:
        InputError: the numbers of images and captions differ, or an image is neither PNG nor JPEG.
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
        for index, image in enumerate([*self.images, *self.beside]):
            media_type(image, f"strip {self.title!r}, image {index}")

    def to_dict(self) -> dict[str, Any]:
        """Title and captions, without the images."""
        return {"title": self.title, "captions": list(self.captions)}


def media_type(image: bytes, name: str) -> str:
    """MIME type of an encoded image, detected from its first bytes; ``name`` is used in the error message."""
    if image[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    if image[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    raise InputError(
        f"{name}: expected an encoded PNG or JPEG, got bytes that start with {bytes(image[:8])!r}"
    )


_KINDS = {True: "mated pairs with the lowest", False: "non-mated pairs with the highest"}


def strip_by_kappa(
    title: str,
    embeddings: Embeddings,
    picture: Callable[[str], bytes],
    *,
    keys: Sequence[str] | None = None,
    count: int = 14,
) -> Strip:
    """Faces by increasing kappa, at evenly spaced ranks, each with its kappa below.

    Args:
        title: title of the strip.
        embeddings: embeddings with the kappa of each image.
        picture: function that returns the encoded PNG or JPEG of a key.
        keys: images to choose from; default: all. Keys without an embedding are skipped.
        count: number of faces to show.

    Raises:
        InputError: there is nothing to show, or an image is neither PNG nor JPEG.

    Example:
        >>> from spherecf.embeddings import Embeddings
        >>> e = Embeddings(np.eye(3), np.log([30.0, 10.0, 20.0]), ["a", "b", "c"])
        >>> strip_by_kappa("faces", e, lambda key: b"\\xff\\xd8\\xff", count=2).captions
        ['κ 10', 'κ 30']
    """
    embedded = set(embeddings.keys)
    candidates = embeddings.keys if keys is None else [key for key in dict.fromkeys(keys) if key in embedded]
    if not candidates or count < 1:
        raise InputError(
            f"strip {title!r}: nothing to show ({len(candidates)} embedded images, {count} requested)"
        )
    rows = embeddings.rows(candidates)
    rows = rows[np.argsort(embeddings.log_kappa[rows], kind="stable")]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    captions = [_kappa_text(kappa) for kappa in embeddings.kappa[rows].tolist()]
    return Strip(title, [picture(embeddings.keys[row]) for row in rows], captions)


def strips_of_mistakes(
    mistakes: Sequence[Mistake],
    picture: Callable[[str], bytes],
    picture_right: Callable[[str], bytes] | None = None,
    *,
    title: str = "",
) -> list[Strip]:
    """Pairs of faces with the worst mistakes, one strip per score and kind of pair.

    Each pair has its score, both kappas and the names below it.

    Args:
        mistakes: from `worst_mistakes`, or ``mistakes`` of a `PairReport`.
        picture: function that returns the encoded PNG or JPEG of a left key, and of a right key if
            ``picture_right`` is None.
        picture_right: the same for right keys.
        title: prefix of the strips' titles.

    Raises:
        InputError: an image is neither PNG nor JPEG.

    Example:
        >>> from spherecf.evaluation import worst_mistakes
        >>> keys, kappas = (["a", "c"], ["b", "d"]), ([50.0, 40.0], [12.0, 41.0])
        >>> people = ["ann", "bob"], ["ann", "eve"]
        >>> mistakes = worst_mistakes("mls", [-3.2, 7.0], [True, False], keys, kappas, people)
        >>> strips = strips_of_mistakes(mistakes, lambda key: b"\\xff\\xd8\\xff")
        >>> strips[0].title, strips[0].captions
        ('mls: the mated pairs with the lowest scores', ['-3.2\\nκ 50 | 12\\nann'])
    """
    groups: dict[tuple[str, bool], list[Mistake]] = {}
    for mistake in mistakes:
        groups.setdefault((mistake.score, mistake.mated), []).append(mistake)
    return [
        Strip(
            f"{title}{': ' * bool(title)}{score}: the {_KINDS[mated]} scores",
            [picture(mistake.left) for mistake in group],
            [_mistake_caption(mistake) for mistake in group],
            [(picture_right or picture)(mistake.right) for mistake in group],
        )
        for (score, mated), group in groups.items()
    ]


def _mistake_caption(mistake: Mistake) -> str:
    left, right = map(_kappa_text, mistake.kappa)
    lines = [f"{mistake.value:.4g}", f"{left} | {right.removeprefix('κ ')}"]
    return "\n".join([*lines, *filter(None, dict.fromkeys(mistake.subjects))])


def _kappa_text(kappa: float) -> str:
    return f"κ {kappa:.3g}" if kappa < 100 else f"κ {kappa:,.0f}"

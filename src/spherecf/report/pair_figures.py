"""Plots and strips of faces of a pair list: DET, rejection, EDC, kappa by severity, the worst mistakes."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import Edc, KappaHistogram, Mistake, PairReport, RejectionCurve
from spherecf.report.figures import GREY, INK, PALETTE, det_axes, deviate, drawing, line_style
from spherecf.report.parts import Plot, Strip

_SEVERITY = ("#2a9d5c", "#c9a400", "#e07b00", "#d64545", "#9b59d0", "#8a8f98")
_EDC_SHOWN = 0.5
_PREFERRED_STARTS = ("fmr<=0.001", "fnmr<=0.05", "fmr<=0.0001")


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
    alt = "; ".join(
        f"{score}: EER {result.eer.value:.4f}" for score, result in runs[0].scores.items()
    )  # fmt: skip
    with drawing(name, f"DET curves. {alt}") as (axes, drawn):
        low = min(0.5 / run.counts[kind] for run in runs for kind in ("mated", "non_mated"))
        for first, run in _first(runs):
            for score, result in run.scores.items():
                x = [deviate(v, low) for v in result.det["fmr"]]
                y = [deviate(v, low) for v in result.det["fnmr"]]
                axes.plot(
                    x, y, color=score_colour(score, run), label=score if first else None, **_weight(first)
                )
        det_axes(axes, low, "FMR (FAR)", "FNMR (1 - TAR)")
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
                style = line_style(item.confidence, [one.confidence for one in found]) | _weight(first)
                axes.plot(x, y, drawstyle="steps-post", label=item.confidence if first else None, **style)
        at = chosen[0][0].edc.start or 0.0
        ideal = [i / 200 for i in range(int(200 * _EDC_SHOWN) + 1)]
        best = [max(0.0, at - x) / (1 - x) for x in ideal]
        axes.plot(ideal, best, color=INK, linestyle=":", linewidth=1, label="errors first")
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
                style = line_style(item.confidence, [one.confidence for one in found]) | _weight(first)
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
            colour = next(colours) if histogram.label.startswith("severity") else PALETTE[0]
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
    return GREY if score == "cosine" else PALETTE[others.index(score) % len(PALETTE)]


def _first(items: Sequence[Any]) -> Iterator[tuple[bool, Any]]:
    """The others first, so that the first one lies on top."""
    for place in range(len(items) - 1, -1, -1):
        yield place == 0, items[place]


def _weight(first: bool) -> dict[str, Any]:
    return {"linewidth": 1.7, "alpha": 1.0} if first else {"linewidth": 0.8, "alpha": 0.5}


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


_KINDS = {True: "mated pairs with the lowest", False: "non-mated pairs with the highest"}


def strip_by_kappa(
    title: str,
    embeddings: Embeddings,
    picture: Callable[[str], bytes],
    *,
    keys: Sequence[str] | None = None,
    count: int = 14,
) -> Strip:
    """Faces from the least to the most sure, evenly spaced by rank, with kappa under each.

    Args:
        title: of the strip.
        embeddings: gives kappa.
        picture: the encoded PNG or JPEG of a key.
        keys: those to choose from; default: all. Keys without an embedding are passed over.
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
    """The worst mistakes as pairs of faces, one strip per score and kind, with who they are and how sure.

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

"""Tables and report of the shipped confidence head."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from spherecf.calibration import ErrorCount
from spherecf.common.version import environment
from spherecf.report import ReportFiles, Section, Table, write_report
from spherecf.vmf import mean_resultant_length
from studies.shipped import ALPHAS, PERCENTS, DecisionCount, Shipped

_RIVALS = ("mls", "cosine", "cosine, all grades")
_DECISIONS_NOTE = (
    "A/B: one image of each grade. Rates are shares of all mated or all non-mated pairs, including undecided "
    "ones, with 95 % intervals over people. These people had no part in the calibration. A star: FMR above "
    "the guaranteed bound. mls: one threshold of the mutual likelihood score for all grades. cosine: the "
    "threshold at this rate on good images of the calibration people, without undecided pairs; all grades: "
    "made like the rule, on all grades."
)


def shipped_tables(result: Shipped) -> list[Table]:
    """Rules, decisions by grade, thresholds, kappa, likelihood ratios, groups and other data sets."""
    kinds = [("image", "Image against image"), ("template", "Template of 2 to 5 images against image"),
             ("templates", "Templates of 2 to 5 images against each other")]  # fmt: skip
    return [
        _rules(result),
        *(
            _decisions(f"{title}, FMR at most {alpha:g}", counts)
            for kind, title in kinds
            for alpha in ALPHAS
            if (counts := [c for c in result.decisions if (c.pairs, c.alpha) == (kind, alpha)])
        ),
        _thresholds(result),
        _kappas(result),
        _costs(result),
        _elsewhere(result),
    ]


def present_shipped(result: Shipped, folder: str | Path, provenance: dict[str, Any]) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``report.json``."""
    first, *others = shipped_tables(result)
    return write_report(
        folder,
        title="The shipped confidence head",
        sections=[Section("On other people", tables=others)],
        results={
            "decisions": [asdict(count) for count in result.decisions],
            "costs": [asdict(cost) for cost in result.costs],
            "kappas": result.kappas,
            "elsewhere": [asdict(data_set) for data_set in result.foreign],
            "facts": result.facts,
        },
        summary=[first],
        provenance={
            "environment": environment(),
            "fingerprint": result.model.fingerprint(),
            "record": result.model.record,
            **provenance,
        },
    )


def _rules(result: Shipped) -> Table:
    rows = []
    for rule in result.model.calibration.decisions if result.model.calibration else ():
        false_match, false_non_match = rule.counts
        rows.append([
            rule.score, f"{rule.alpha:g}", f"{rule.accept:.2f}", f"{rule.reject:.2f}",
            f"{rule.min_confidence:.1f}",
            _count(false_match) if rule.extrapolated is None
            else f"extrapolated{_interval(rule.extrapolated)}",
            _count(false_non_match),
        ])  # fmt: skip
    return Table(
        "Rules",
        ["score", "FMR bound", "match from", "non-match below", "min kappa", "false matches",
         "false non-matches"],
        rows,
        "Counts for the worst grade on the calibration people, with their upper bounds.",
    )  # fmt: skip


def _count(count: ErrorCount) -> str:
    return f"{count.errors} of {count.trials} (< {count.upper:.1e})"


def _decisions(title: str, counts: Sequence[DecisionCount]) -> Table:
    rows = []
    for condition in dict.fromkeys(count.condition for count in counts):
        by_method = {count.method: count for count in counts if count.condition == condition}
        rule = by_method.get("rule")
        row = [condition]
        if rule is None:
            row += ["-"] * 5
        else:
            row += [
                _false_matches(rule), f"{rule.matches / rule.mated:.3f}",
                f"{rule.false_non_match_rate:.4f}{_interval(rule.wrong_non_match_ends)}",
                f"{rule.undecided_mated:.3f}", f"{rule.undecided_non_mated:.3f}",
            ]  # fmt: skip
        for method in _RIVALS:
            count = by_method.get(method)
            row += (
                ["-", "-"] if count is None else [_false_matches(count), f"{count.matches / count.mated:.3f}"]
            )
        rows.append(row)
    header = ["grade", "FMR (false matches)", "TMR", "false non-matches", "undecided, mated",
              "undecided, non-mated"]  # fmt: skip
    for name in _RIVALS:
        header += [f"{name}: FMR (false matches)", "TMR"]
    return Table(title, header, rows, _DECISIONS_NOTE)


def _false_matches(count: DecisionCount) -> str:
    star = "" if count.kept else " *"
    interval = _interval(count.wrong_match_ends)
    return f"{count.false_match_rate:.1e} ({count.wrong_matches}){interval}{star}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" [{ends[0]:.1e}, {ends[1]:.1e}]"


def _thresholds(result: Shipped) -> Table:
    tables = result.model.calibration.thresholds if result.model.calibration else {}
    rows = []
    for score, table in tables.items():
        test_rates = [rates for _, rates in result.thresholds.get(score, [])] or [None] * len(table.entries)
        for entry, rates in zip(table.entries, test_rates):
            if entry.threshold is None or entry.fmr is None or entry.tmr is None:
                rows.append([score, f"{entry.target:g}", "unresolved", "-", "-", "-"])
                continue
            on_test_people = "-"
            if rates is not None:
                interval = _interval(rates.interval(0)) if len(rates.drawn) else ""
                on_test_people = f"{rates.rates[0]:.1e} ({rates.reached[0]}){interval}"
            rows.append([
                score, f"{entry.target:g}", f"{entry.threshold:.4g}",
                f"{entry.fmr:.1e} ({entry.false_matches}){_interval(entry.fmr_subjects)}",
                f"{entry.tmr:.3f}" + ("" if entry.tmr_subjects is None
                                      else " [{:.3f}, {:.3f}]".format(*entry.tmr_subjects)),
                on_test_people,
            ])  # fmt: skip
    return Table(
        "Thresholds",
        ["score", "FMR target", "threshold", "FMR", "TMR", "FMR, other people"],
        rows,
        "mls and cosine: on images without added degradation; templates: the strictest over all grades.",
    )


def _kappas(result: Shipped) -> Table:
    calibration = result.model.calibration
    rows = []
    for name, values in result.kappas.items():
        median = values[PERCENTS.index(50)]
        scale = calibration.kappa if calibration else None
        quality = "-" if scale is None else str(int(scale.iso(median)))
        expected = float(
            mean_resultant_length(torch.tensor(median, dtype=torch.float64), result.model.backbone.dim)
        )
        rows.append([name, *(f"{value:.0f}" for value in values), quality, f"{expected:.2f}"])
    return Table(
        "Kappa",
        ["degradation", *(f"{percent} %" for percent in PERCENTS), "quality of the median", "its A_d"],
        rows,
        "Percentiles on the people who had no part in the calibration.",
    )


def _costs(result: Shipped) -> Table:
    rows = [[cost.pairs, cost.condition, cost.score, f"{cost.cllr:.3f}"] for cost in result.costs]
    return Table(
        "Likelihood ratios",
        ["pairs", "grade", "score", "Cllr"],
        rows,
        "0 is perfect, 1 carries no information.",
    )


def _elsewhere(result: Shipped) -> Table:
    rows = []
    for data_set in result.foreign:
        kappa = " / ".join(f"{value:.0f}" for value in data_set.kappa) or "-"
        ratio = " / ".join(f"{value:.2f}" for value in data_set.ratio) or "-"
        quality = "-" if data_set.percentile is None else f"{data_set.percentile:.0f}"
        for count in data_set.decisions:
            rows.append([
                data_set.name, str(data_set.images), str(data_set.skipped), kappa, quality, ratio,
                f"{count.alpha:g}",
                f"{_false_matches(count)} of {count.non_mated}", f"{count.matches / count.mated:.3f}",
                f"{count.wrong_non_matches} of {count.mated}",
                f"{count.undecided_mated:.3f}", f"{count.undecided_non_mated:.3f}",
            ])  # fmt: skip
    return Table(
        "Groups, other data sets, and crops detected again",
        ["set", "images or pairs", "no face", "kappa 5 / 50 / 95 %", "percentile of the median",
         "kappa after / before", "FMR bound", "FMR (false matches)", "TMR", "false non-matches",
         "undecided, mated", "undecided, non-mated"],
        rows,
        "Images without added degradation, image against image, by the shipped rules.",
    )  # fmt: skip

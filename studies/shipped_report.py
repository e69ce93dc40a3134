"""The tables and the report of the shipped head."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from spherecf.common.version import environment
from spherecf.report import ReportFiles, Section, Table, write_report
from spherecf.vmf import mean_resultant_length
from studies.shipped import ALPHAS, PERCENTS, DecisionCount, Shipped

_RIVALS = ("mls", "cosine", "cosine, all grades")
_HOW = (
    "A/B: left images of grade A, right images of grade B. Rates are shares of all pairs of their kind, "
    "undecided pairs included. 95 % intervals over people, none of whom were used to fit the rule. A star "
    "marks a false match rate above the bound. mls: one threshold of the mutual likelihood score for every "
    "grade. cosine: its threshold for this rate on good images of the calibration people, with no pair "
    "undecided; all grades: fitted like the rule, on every grade."
)


def shipped_tables(result: Shipped) -> list[Table]:
    """Rules, decisions by grade, thresholds, kappa, likelihood ratios, groups and other sets."""
    kinds = [("image", "Image against image"), ("template", "Template of 2 to 5 images against image"),
             ("templates", "Templates of 2 to 5 images against each other")]  # fmt: skip
    return [
        _rules(result),
        *(
            _decisions(f"{title}, false matches at most {alpha:g}", counts)
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
        title="The confidence head that ships",
        sections=[Section("On other people", tables=others)],
        results={
            "decisions": [asdict(count) for count in result.decisions],
            "costs": [asdict(cost) for cost in result.costs],
            "kappas": result.kappas,
            "elsewhere": [asdict(foreign) for foreign in result.foreign],
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
        match, miss = rule.counts
        rows.append([
            rule.score, f"{rule.alpha:g}", f"{rule.accept:.2f}", f"{rule.reject:.2f}",
            f"{rule.min_confidence:.1f}",
            f"{match.errors} of {match.trials} (< {match.upper:.1e})" if rule.extrapolated is None
            else f"extrapolated{_around(rule.extrapolated)}",
            f"{miss.errors} of {miss.trials} (< {miss.upper:.1e})",
        ])  # fmt: skip
    return Table(
        "Rules",
        ["score", "FMR bound", "match from", "non-match below", "minimum kappa", "false matches",
         "false non-matches"],
        rows,
        "Counts of the worst grade on the calibration people, with the upper bound from the test.",
    )  # fmt: skip


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
                _wrong(rule), f"{rule.matches / rule.mated:.3f}",
                f"{rule.false_non_match_rate:.4f}{_around(rule.wrong_non_match_ends)}",
                f"{rule.undecided_mated:.3f}", f"{rule.undecided_non_mated:.3f}",
            ]  # fmt: skip
        for method in _RIVALS:
            count = by_method.get(method)
            row += ["-", "-"] if count is None else [_wrong(count), f"{count.matches / count.mated:.3f}"]
        rows.append(row)
    header = ["grade", "false matches", "correct matches", "false non-matches", "undecided, mated",
              "undecided, non-mated"]  # fmt: skip
    for name in _RIVALS:
        header += [f"{name}: false matches", "correct matches"]
    return Table(title, header, rows, _HOW)


def _wrong(count: DecisionCount) -> str:
    star = "" if count.kept else " *"
    ends = _around(count.wrong_match_ends)
    return f"{count.false_match_rate:.1e} ({count.wrong_matches}){ends}{star}"


def _around(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" [{ends[0]:.1e}, {ends[1]:.1e}]"


def _thresholds(result: Shipped) -> Table:
    tables = result.model.calibration.thresholds if result.model.calibration else {}
    rows = []
    for score, table in tables.items():
        others = [rates for _, rates in result.thresholds.get(score, [])] or [None] * len(table.entries)
        for entry, rates in zip(table.entries, others):
            if entry.threshold is None or entry.fmr is None or entry.tmr is None:
                rows.append([score, f"{entry.target:g}", "unresolved", "-", "-", "-"])
                continue
            elsewhere = "-"
            if rates is not None:
                ends = _around(rates.interval(0)) if len(rates.drawn) else ""
                elsewhere = f"{rates.rates[0]:.1e} ({rates.reached[0]}){ends}"
            rows.append([
                score, f"{entry.target:g}", f"{entry.threshold:.4g}",
                f"{entry.fmr:.1e} ({entry.false_matches}){_around(entry.fmr_subjects)}",
                f"{entry.tmr:.3f}" + ("" if entry.tmr_subjects is None
                                      else " [{:.3f}, {:.3f}]".format(*entry.tmr_subjects)),
                elsewhere,
            ])  # fmt: skip
    return Table(
        "Thresholds",
        ["score", "FMR target", "threshold", "FMR", "TMR", "FMR, other people"],
        rows,
        "Thresholds of mls and cosine are for undamaged images; those of templates are the strictest of "
        "all grades.",
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
        ["images", *(f"{percent} %" for percent in PERCENTS), "quality of the median", "A_d of the median"],
        rows,
        "Percentiles over the people that were not used for calibration.",
    )


def _costs(result: Shipped) -> Table:
    rows = [[cost.pairs, cost.condition, cost.score, f"{cost.cllr:.3f}"] for cost in result.costs]
    return Table(
        "Likelihood ratios", ["pairs", "grade", "score", "Cllr"], rows, "0 is perfect, 1 is uninformative."
    )


def _elsewhere(result: Shipped) -> Table:
    rows = []
    for foreign in result.foreign:
        kappa = " / ".join(f"{value:.0f}" for value in foreign.kappa) or "-"
        ratio = " / ".join(f"{value:.2f}" for value in foreign.ratio) or "-"
        quality = "-" if foreign.percentile is None else f"{foreign.percentile:.0f}"
        for count in foreign.decisions:
            rows.append([
                foreign.name, str(foreign.images), str(foreign.skipped), kappa, quality, ratio,
                f"{count.alpha:g}",
                f"{_wrong(count)} of {count.non_mated}", f"{count.matches / count.mated:.3f}",
                f"{count.wrong_non_matches} of {count.mated}",
                f"{count.undecided_mated:.3f}", f"{count.undecided_non_mated:.3f}",
            ])  # fmt: skip
    return Table(
        "Groups, other sets, and crops detected again",
        ["set", "images or pairs", "no face", "kappa 5 / 50 / 95 %", "percentile of the median",
         "kappa after / before", "FMR bound", "false matches", "correct matches", "false non-matches",
         "undecided, mated", "undecided, non-mated"],
        rows,
        "Undamaged images, image against image, decided by the shipped rules.",
    )  # fmt: skip

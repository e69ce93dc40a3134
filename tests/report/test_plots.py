"""Plots show the numbers they are given; what cannot be shown is left out."""

import dataclasses
import re

import pytest
from tests.evaluation.conftest import Toy

from spherecf.evaluation import PairReport
from spherecf.report.figures import (
    _edc_steps,
    _log_ticks,
    det_plot,
    edc_plot,
    kappa_plot,
    main_scores,
    rejection_plot,
)

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def report(toy: Toy) -> PairReport:
    return toy.report(right=toy.degraded, targets=(0.05, 0.01))


def test_svg_is_bare_and_takes_the_colour_of_the_page(report: PairReport) -> None:
    svg = det_plot([report], "here").svg
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert "currentColor" in svg and "#010203" not in svg and "metadata" not in svg
    assert ">FMR (FAR)<" in svg and ">mls<" in svg  # text is text


def test_ids_differ_between_plots(report: PairReport) -> None:
    ids = [set(re.findall(r'id="([^"]+)"', det_plot([report], name).svg)) for name in ("a", "b")]
    assert ids[0] and not ids[0] & ids[1]


def test_words_say_what_the_lines_show(report: PairReport) -> None:
    assert f"mls: EER {report.scores['mls'].eer.value:.4f}" in det_plot([report], "x").alt
    edc = edc_plot([report], "mls", "x")
    first = next(
        d for d in report.edc if d.score == "mls" and d.start == "fnmr<=0.05" and d.confidence == "kappa"
    )
    assert edc is not None and f"kappa {first.edc.pauc_normalised['0.2']:.3f}" in edc.alt
    rejected = rejection_plot([report], "mls", "x")
    assert rejected is not None and re.search(r"kappa \d\.\d{3}", rejected.alt)
    assert f"{report.kappa_histograms[0].quartiles[1]:.4g}" in kappa_plot(report.kappa_histograms, "x").alt


def test_nothing_to_show_is_no_plot(report: PairReport) -> None:
    flawless = dataclasses.replace(report, edc=[
        dataclasses.replace(d, edc=dataclasses.replace(d.edc, start=0.0)) for d in report.edc
    ])  # fmt: skip
    assert edc_plot([flawless], "mls", "x") is None
    unresolved = dataclasses.replace(report, rejection=[
        dataclasses.replace(r, curve=dataclasses.replace(r.curve, tmr=[None] * len(r.curve.tmr)))
        for r in report.rejection
    ])  # fmt: skip
    assert rejection_plot([unresolved], "mls", "x") is None
    assert rejection_plot([report], "unheard of", "x") is None


def test_cosine_and_the_first_other_score_are_drawn(report: PairReport) -> None:
    swapped = dict.fromkeys(("released", "cosine", "mls"), report.scores["mls"])
    assert main_scores(dataclasses.replace(report, scores=swapped)) == ["cosine", "released"]
    assert main_scores(dataclasses.replace(report, scores={"mls": report.scores["mls"]})) == ["mls"]


def test_drawn_steps_are_steps_of_the_curve(report: PairReport) -> None:
    curve = report.edc[0].edc
    x, y = _edc_steps(curve)
    assert x[0] == 0 and x[-1] == 1 and len(x) == len(y) <= 202
    held = dict(zip(curve.discard_fraction, curve.fnmr))
    assert all(held[a] == b for a, b in zip(x[:-1], y[:-1]))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(15.0, 600.0, [20, 50, 100, 200, 500]), (1e-3, 1e9, None), (4.1, 4.4, [])],
)
def test_round_ticks(low: float, high: float, ticks: list[float] | None) -> None:
    found = _log_ticks(low, high)
    assert len(found) <= 8 and all(low <= tick <= high for tick in found)
    assert ticks is None or found == pytest.approx(ticks)

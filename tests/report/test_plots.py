"""Plots show the numbers they are given; empty plots are omitted."""

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


def test_svg_is_minimal_and_inherits_the_text_colour(report: PairReport) -> None:
    svg = det_plot([report], "here").svg
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert "currentColor" in svg and "#010203" not in svg and "metadata" not in svg
    assert ">FMR (FAR)<" in svg and ">mls<" in svg  # text is not converted to paths


def test_ids_differ_between_plots(report: PairReport) -> None:
    ids = [set(re.findall(r'id="([^"]+)"', det_plot([report], name).svg)) for name in ("a", "b")]
    assert ids[0] and not ids[0] & ids[1]


def test_alternative_texts_state_the_main_numbers(report: PairReport) -> None:
    assert f"mls: EER {report.scores['mls'].eer.value:.4f}" in det_plot([report], "x").alt
    edc = edc_plot([report], "mls", "x")
    kappa_edc = next(
        d for d in report.edc if d.score == "mls" and d.start == "fnmr<=0.05" and d.confidence == "kappa"
    )
    assert edc is not None and f"kappa {kappa_edc.edc.pauc_normalised['0.2']:.3f}" in edc.alt
    rejected = rejection_plot([report], "mls", "x")
    assert rejected is not None and re.search(r"kappa \d\.\d{3}", rejected.alt)
    assert f"{report.kappa_histograms[0].quartiles[1]:.4g}" in kappa_plot(report.kappa_histograms, "x").alt


def test_plots_without_data_are_omitted(report: PairReport) -> None:
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


def test_the_cosine_and_the_first_other_score_are_plotted(report: PairReport) -> None:
    swapped = dict.fromkeys(("released", "cosine", "mls"), report.scores["mls"])
    assert main_scores(dataclasses.replace(report, scores=swapped)) == ["cosine", "released"]
    assert main_scores(dataclasses.replace(report, scores={"mls": report.scores["mls"]})) == ["mls"]


def test_plotted_steps_are_points_of_the_curve(report: PairReport) -> None:
    curve = report.edc[0].edc
    x, y = _edc_steps(curve)
    assert x[0] == 0 and x[-1] == 1 and len(x) == len(y) <= 202
    fnmr_at = dict(zip(curve.discard_fraction, curve.fnmr))
    assert all(fnmr_at[a] == b for a, b in zip(x[:-1], y[:-1]))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(15.0, 600.0, [20, 50, 100, 200, 500]), (1e-3, 1e9, None), (4.1, 4.4, [])],
)
def test_logarithmic_ticks_are_round_and_few(low: float, high: float, ticks: list[float] | None) -> None:
    actual = _log_ticks(low, high)
    assert len(actual) <= 8 and all(low <= tick <= high for tick in actual)
    assert ticks is None or actual == pytest.approx(ticks)

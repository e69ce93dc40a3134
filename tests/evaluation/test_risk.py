"""Risk-controlled recognition on data drawn from the model, where the truth is known."""

import dataclasses
import json

import numpy as np
import pytest
from tests.reference.open_world import open_world
from tests.reference.openset_slow import outcomes, prr as slow_prr

from spherecf.errors import InputError
from spherecf.evaluation import OpenSet, RejectionOptions, RejectionReport, evaluate_rejection
from spherecf.evaluation.open_set import PROBE_CONFIDENCES

FPIRS = (0.05, 0.1, 0.2)


@pytest.fixture(scope="module")
def world() -> tuple:
    return open_world(enrolled=160, strangers=160, each=8)


@pytest.fixture(scope="module")
def report(world: tuple) -> RejectionReport:
    return evaluate_rejection(OpenSet(*world), RejectionOptions(draws=60, trials=200), name="sim")


def value(report: RejectionReport, name: str, fpir: float) -> float:
    return report.at(name, fpir).prr.value


@pytest.mark.parametrize("fpir", FPIRS)
def test_methods_rank_as_in_the_paper(report: RejectionReport, fpir: float) -> None:
    """With varying probe kappa, MPRisk beats kappa alone, and probe plus gallery information beats either."""
    mprisk, kappa = value(report, "mprisk", fpir), value(report, "kappa", fpir)
    assert mprisk > kappa + 0.02 and report.at("mprisk", fpir).minus_kappa.interval.below_zero < 0.1
    for blind in ("threshold_distance", "margin", "max_posterior", "galue", "random"):
        assert mprisk > value(report, blind, fpir)
        assert value(report, "holue", fpir) > value(report, blind, fpir)
    assert value(report, "mutual_risk", fpir) > mprisk  # the error probability itself
    assert value(report, "oracle", fpir) == pytest.approx(1) and abs(value(report, "random", fpir)) < 0.1
    assert value(report, "mean_resultant", fpir) == pytest.approx(kappa)


def test_error_probabilities_are_calibrated(world: tuple) -> None:
    data = OpenSet(*world)
    result = data.search((20.0, 150.0), 0.5, 0)  # 150 is the true kappa; half of the probes are non-mated
    q, truth = result.mutual, data.truth
    confidence = np.exp(np.maximum(q.log_best, q.log_unknown))
    is_right = np.where(q.log_best > q.log_unknown, q.best, -1) == truth
    for low, high in ((0.3, 0.6), (0.6, 0.9), (0.9, 0.99)):
        inside = (confidence >= low) & (confidence < high)
        deviation = np.sqrt((confidence[inside] * (1 - confidence[inside])).sum())
        assert abs(is_right[inside].sum() - confidence[inside].sum()) < 3.5 * deviation


def test_the_gallery_kappa_is_recovered(report: RejectionReport) -> None:
    assert report.kappa_gallery["mutual"] == pytest.approx(150, rel=0.2)


def test_counts_f1_and_prr_equal_a_slow_loop() -> None:
    gallery, names, probes, probe_subjects = data = open_world(enrolled=25, strangers=25, each=4)
    validation_data = open_world(5, enrolled=25, strangers=25, each=4, first=1000)
    report = evaluate_rejection(
        OpenSet(*data),
        RejectionOptions([0.1], kappa_gallery=50.0, draws=0, trials=4),
        name="sim",
        validation=OpenSet(*validation_data),
    )
    cosines = probes.mu @ gallery.mu.T
    best_rows, top = cosines.argmax(1), cosines.max(1)
    point = report.points[0]
    kinds = outcomes(top, names[best_rows] == probe_subjects, np.isin(probe_subjects, names), point.threshold)
    assert point.fpir <= 0.1 and report.counts["probes"] == 200 == sum(point.counts.values())
    assert point.counts["identified"] == kinds.count("tp") and point.counts["true_rejects"] == kinds.count(
        "tn"
    )
    tp, wrong = kinds.count("tp"), kinds.count("wrong")
    assert point.f1 == pytest.approx(2 * tp / (2 * tp + wrong)) == report.at("kappa", 0.1).f1[0]
    for name, confidence in (("threshold_distance", np.abs(top - point.threshold)), ("kappa", probes.kappa)):
        expected = slow_prr(confidence.tolist(), kinds, 0.5)
        assert value(report, name, 0.1) == pytest.approx(expected, abs=1e-6)


def test_tied_identities_do_not_count_as_identified() -> None:
    gallery, names, probes, probe_subjects = open_world(enrolled=25, strangers=25, each=4)
    options = RejectionOptions([0.1], kappa_gallery=50.0, draws=0, trials=4)
    validation = OpenSet(*open_world(5, enrolled=25, strangers=25, each=4, first=1000))
    twin = dataclasses.replace(gallery, mu=gallery.mu.copy())
    twin.mu[1] = twin.mu[0]  # people 0 and 1 tie, so neither is identified
    report = evaluate_rejection(
        OpenSet(twin, names, probes, probe_subjects), options, name="sim", validation=validation
    )
    is_other = ~np.isin(probe_subjects, names[:2])
    is_best = np.array(names)[(probes.mu @ twin.mu.T).argmax(1)] == probe_subjects
    is_accepted = (probes.mu @ twin.mu.T).max(1) >= report.points[0].threshold
    assert (
        report.points[0].counts["identified"]
        == (is_best & is_accepted & is_other).sum()
        < (is_best & is_accepted).sum()
    )


def test_equal_seeds_give_equal_reports_and_valid_json(world: tuple, report: RejectionReport) -> None:
    repeated = evaluate_rejection(OpenSet(*world), RejectionOptions(draws=60, trials=200), name="sim")
    assert repeated == report
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["points"][0]["log_weights"].keys() == {
        "false_accept", "misidentification", "false_reject", "non_specificity",
    }  # fmt: skip
    short = report.to_dict(curves=False)
    assert "f1" not in short["prr"][0] and "shares" not in short


def test_signatures_contain_every_setting_and_are_unique(report: RejectionReport) -> None:
    line = report.at("mprisk", 0.05).signature
    for part in ("sim/open-set|", "|kappa-g:likelihood|", "|fit:subjects-0.5/0|", "|fpir:at-most-0.05|",
                 "|ci:subject-60/0|", "|confidence:mprisk|", "|rejected:0-0.5|"):  # fmt: skip
        assert part in line
    assert len({entry.signature for entry in report.prr}) == len(report.prr)
    assert report.counts["gallery"] == report.counts["validation_gallery"] == 80
    assert set(report.absent_confidences) == {*PROBE_CONFIDENCES} - {"kappa", "mean_resultant", "random"}


def test_intervals_contain_their_values(world: tuple, report: RejectionReport) -> None:
    for entry in report.prr:
        assert entry.prr.interval.low - 0.02 <= entry.prr.value <= entry.prr.interval.high + 0.02
    kappa = report.at("kappa", 0.1)
    assert kappa.minus_kappa.value == kappa.minus_kappa.interval.low == kappa.minus_kappa.interval.high == 0
    probe_subjects = world[3]
    test = OpenSet(*world, {"norm": np.arange(len(probe_subjects))})
    extra = evaluate_rejection(test, RejectionOptions(draws=0, trials=4), name="sim")
    assert extra.at("norm", 0.1).prr.interval is None and "norm" not in extra.absent_confidences


def test_unresolved_operating_points_state_the_reason() -> None:
    few_non_mated = open_world(enrolled=30, strangers=4, each=2)
    report = evaluate_rejection(
        OpenSet(*few_non_mated), RejectionOptions([0.05], draws=0, trials=4), name="few"
    )
    assert "needs at least 20 non-mated probes" in report.points[0].unresolved and report.prr == []
    perfect = open_world(dim=64, enrolled=30, strangers=30, each=3, spread=1e5, kappas=(1e4, 1e5))
    report = evaluate_rejection(OpenSet(*perfect), RejectionOptions([0.2], draws=0, trials=4), name="perfect")
    assert report.points[0].f1 > 0.8 and report.at("oracle", 0.2) is not None  # false accepts always remain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": -1}, "draws: expected 0 or more, got -1"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"trials": 1}, "trials: expected 2 or more, got 1"),
        ({"fpirs": [0.0]}, "0 < fpir < 1"),
        ({"beta": 0.0}, "0 < beta < 1"),
        ({"limit": 1.0}, "0 < limit < 1"),
        ({"kappa_gallery": -3.0}, "0 < kappa_gallery"),
        ({"validation_share": 0.0}, "0 < share < 1"),
        ({"confidences": {"norm": np.zeros(3)}}, "confidence 'norm'"),
    ],
)
def test_bad_input_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        confidences = options.pop("confidences", None)
        test = OpenSet(*open_world(enrolled=20, strangers=20, each=2), confidences)
        evaluate_rejection(test, RejectionOptions(**{"draws": 0} | options), name="x")


def test_validation_with_test_subjects_is_refused() -> None:
    data = open_world(enrolled=20, strangers=20, each=2)
    with pytest.raises(InputError, match="40 subjects are also in the test set, first 0"):
        evaluate_rejection(OpenSet(*data), RejectionOptions(draws=0), name="x", validation=OpenSet(*data))

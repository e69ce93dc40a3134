"""Risk-controlled recognition in a world drawn from the model, where the right answers are known."""

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
def test_the_order_of_the_methods_is_the_papers(report: RejectionReport, fpir: float) -> None:
    """Probes differ in kappa: MPRisk beats kappa alone, and knowing both picture and gallery beats either."""
    mprisk, kappa = value(report, "mprisk", fpir), value(report, "kappa", fpir)
    assert mprisk > kappa + 0.02 and report.at("mprisk", fpir).minus_kappa.interval.below_zero < 0.1
    for blind in ("threshold_distance", "margin", "max_posterior", "galue", "random"):
        assert mprisk > value(report, blind, fpir)
        assert value(report, "holue", fpir) > value(report, blind, fpir)
    assert value(report, "mutual_risk", fpir) > mprisk  # the chance of an error itself
    assert value(report, "oracle", fpir) == pytest.approx(1) and abs(value(report, "random", fpir)) < 0.1
    assert value(report, "mean_resultant", fpir) == pytest.approx(kappa)


def test_the_chance_of_an_error_is_calibrated(world: tuple) -> None:
    data = OpenSet(*world)
    found = data.search((20.0, 150.0), 0.5, 0)  # 150 is the truth, half of the probes are strangers
    q, truth = found.mutual, data.truth
    sure = np.exp(np.maximum(q.log_best, q.log_unknown))
    right = np.where(q.log_best > q.log_unknown, q.best, -1) == truth
    for low, high in ((0.3, 0.6), (0.6, 0.9), (0.9, 0.99)):
        inside = (sure >= low) & (sure < high)
        deviation = np.sqrt((sure[inside] * (1 - sure[inside])).sum())
        assert abs(right[inside].sum() - sure[inside].sum()) < 3.5 * deviation


def test_kappa_of_the_gallery_is_found(report: RejectionReport) -> None:
    assert report.kappa_gallery["mutual"] == pytest.approx(150, rel=0.2)


def test_numbers_against_loops() -> None:
    gallery, names, probes, who = data = open_world(enrolled=25, strangers=25, each=4)
    others = open_world(5, enrolled=25, strangers=25, each=4, first=1000)
    report = evaluate_rejection(
        OpenSet(*data),
        RejectionOptions([0.1], kappa_gallery=50.0, draws=0, trials=4),
        name="sim",
        validation=OpenSet(*others),
    )
    cosines = probes.mu @ gallery.mu.T
    best, top = cosines.argmax(1), cosines.max(1)
    point = report.points[0]
    kinds = outcomes(top, names[best] == who, np.isin(who, names), point.threshold)
    assert point.fpir <= 0.1 and report.counts["probes"] == 200 == sum(point.counts.values())
    assert point.counts["identified"] == kinds.count("tp") and point.counts["true_rejects"] == kinds.count(
        "tn"
    )
    tp, wrong = kinds.count("tp"), kinds.count("wrong")
    assert point.f1 == pytest.approx(2 * tp / (2 * tp + wrong)) == report.at("kappa", 0.1).f1[0]
    for name, confidence in (("threshold_distance", np.abs(top - point.threshold)), ("kappa", probes.kappa)):
        expected = slow_prr(confidence.tolist(), kinds, 0.5)
        assert value(report, name, 0.1) == pytest.approx(expected, abs=1e-6)


def test_two_identities_that_tie_are_no_identification() -> None:
    gallery, names, probes, who = open_world(enrolled=25, strangers=25, each=4)
    options = RejectionOptions([0.1], kappa_gallery=50.0, draws=0, trials=4)
    validation = OpenSet(*open_world(5, enrolled=25, strangers=25, each=4, first=1000))
    twin = dataclasses.replace(gallery, mu=gallery.mu.copy())
    twin.mu[1] = twin.mu[0]  # persons 0 and 1 look alike: neither is found, wherever in the list it stands
    report = evaluate_rejection(OpenSet(twin, names, probes, who), options, name="sim", validation=validation)
    rest = ~np.isin(who, names[:2])
    found = np.array(names)[(probes.mu @ twin.mu.T).argmax(1)] == who
    over = (probes.mu @ twin.mu.T).max(1) >= report.points[0].threshold
    assert report.points[0].counts["identified"] == (found & over & rest).sum() < (found & over).sum()


def test_the_same_seed_the_same_report_and_json(world: tuple, report: RejectionReport) -> None:
    again = evaluate_rejection(OpenSet(*world), RejectionOptions(draws=60, trials=200), name="sim")
    assert again == report
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["points"][0]["log_weights"].keys() == {
        "false_accept", "misidentification", "false_reject", "non_specificity",
    }  # fmt: skip
    short = report.to_dict(curves=False)
    assert "f1" not in short["prr"][0] and "shares" not in short


def test_signatures_and_counts(report: RejectionReport) -> None:
    line = report.at("mprisk", 0.05).signature
    for part in ("sim/open-set|", "|kappa-g:likelihood|", "|fit:subjects-0.5/0|", "|fpir:at-most-0.05|",
                 "|ci:subject-60/0|", "|confidence:mprisk|", "|rejected:0-0.5|"):  # fmt: skip
        assert part in line
    assert len({entry.signature for entry in report.prr}) == len(report.prr)
    assert report.counts["gallery"] == report.counts["validation_gallery"] == 80
    assert set(report.absent_confidences) == {*PROBE_CONFIDENCES} - {"kappa", "mean_resultant", "random"}


def test_intervals_hold_their_value_and_draw_people(world: tuple, report: RejectionReport) -> None:
    for entry in report.prr:
        assert entry.prr.interval.low - 0.02 <= entry.prr.value <= entry.prr.interval.high + 0.02
    kappa = report.at("kappa", 0.1)
    assert kappa.minus_kappa.value == kappa.minus_kappa.interval.low == kappa.minus_kappa.interval.high == 0
    who = world[3]
    test = OpenSet(*world, {"norm": np.arange(len(who))})
    extra = evaluate_rejection(test, RejectionOptions(draws=0, trials=4), name="sim")
    assert extra.at("norm", 0.1).prr.interval is None and "norm" not in extra.absent_confidences


def test_operating_points_that_cannot_be_say_why() -> None:
    few = open_world(enrolled=30, strangers=4, each=2)
    report = evaluate_rejection(OpenSet(*few), RejectionOptions([0.05], draws=0, trials=4), name="few")
    assert "needs at least 20 non-mated probes" in report.points[0].unresolved and report.prr == []
    perfect = open_world(dim=64, enrolled=30, strangers=30, each=3, spread=1e5, kappas=(1e4, 1e5))
    report = evaluate_rejection(OpenSet(*perfect), RejectionOptions([0.2], draws=0, trials=4), name="perfect")
    assert (
        report.points[0].f1 > 0.8 and report.at("oracle", 0.2) is not None
    )  # false accepts there always are


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": -1}, "draws >= 0"),
        ({"trials": 1}, "trials >= 2"),
        ({"fpirs": [0.0]}, "0 < fpir < 1"),
        ({"beta": 0.0}, "0 < beta < 1"),
        ({"limit": 1.0}, "0 < limit < 1"),
        ({"kappa_gallery": -3.0}, "0 < kappa_gallery"),
        ({"validation_share": 0.0}, "0 < share < 1"),
        ({"confidences": {"norm": np.zeros(3)}}, "confidence 'norm'"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        confidences = options.pop("confidences", None)
        test = OpenSet(*open_world(enrolled=20, strangers=20, each=2), confidences)
        evaluate_rejection(test, RejectionOptions(**{"draws": 0} | options), name="x")


def test_validation_with_the_same_people_is_refused() -> None:
    data = open_world(enrolled=20, strangers=20, each=2)
    with pytest.raises(InputError, match="40 subjects are also in the test set, first 0"):
        evaluate_rejection(OpenSet(*data), RejectionOptions(draws=0), name="x", validation=OpenSet(*data))

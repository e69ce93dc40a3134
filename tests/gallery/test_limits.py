"""Choice of thresholds for a required false match rate from the rules and tables of a calibration."""

import math
from dataclasses import replace

import pytest
from tests.gallery.conftest import MODEL, RADIUS, calibration

from spherecf.calibration import Calibration, ConditionalCalibrator, ThresholdTable
from spherecf.gallery.identification import Candidate, decide, limit_for, limits_for, weigh


def table(score: str = "mls", radius: float = RADIUS) -> ThresholdTable:
    scores = [float(i) for i in range(1000)] + [2000.0] * 10
    return ThresholdTable.fit(scores, [0] * 1000 + [1] * 10, [1e-1, 1e-3], score=score, radius=radius)


def test_the_least_strict_sufficient_rule_is_chosen() -> None:
    calibrated = calibration()
    limit = limit_for(calibrated, "mls", 5e-3)
    assert limit is not None and (limit.fmr, limit.accept, limit.reject) == (1e-4, 10.0, -20.0)
    assert limit.strict_enough and limit.min_kappa == 50.0
    loose = limit_for(calibrated, "mls", 0.5)
    assert loose is not None and loose.accept == 0.0
    strictest = limit_for(calibrated, "mls", 1e-9)
    assert strictest is not None and strictest.accept == 15.0 and not strictest.strict_enough
    assert limit_for(calibrated, "cosine", 0.5) is None


def test_the_table_is_used_only_without_rules() -> None:
    rules = calibration().decisions
    with_rules = Calibration(MODEL, "d" * 64, decisions=rules, thresholds={"mls": table()})
    finest = min(rule.alpha for rule in rules if rule.score == "mls")
    limit = limit_for(with_rules, "mls", finest / 10)  # its rates hold for good images only
    assert limit is not None and (limit.fmr, limit.strict_enough) == (finest, False)
    tables_only = Calibration(MODEL, "d" * 64, thresholds={"mls": table()})
    limit = limit_for(tables_only, "mls", 1e-3)
    assert limit is not None and (limit.accept, limit.reject, limit.min_kappa) == (999.0, 999.0, -math.inf)
    assert limit.strict_enough


def test_the_table_does_not_replace_rules_that_the_data_do_not_support() -> None:
    """`compare` is undecided then, and an identification would state a guarantee that nobody tested."""
    (first, *_) = calibration().decisions
    failed = replace(first, accept=None, reject=None)
    calibrated = Calibration(MODEL, "d" * 64, decisions=(failed,), thresholds={"mls": table()})
    assert limit_for(calibrated, "mls", 1e-3) is None and limits_for(calibrated, 1e-3, None, RADIUS) is None
    candidate = Candidate("anna", "t1", 2000.0, 0.9, 100.0)
    assert decide([candidate], None, 100.0, 0.01)[0] == "undecided"


def test_a_stricter_rate_never_has_a_lower_threshold() -> None:
    first = calibration().decisions[0]
    rules = (replace(first, alpha=1e-2, accept=5000.0), replace(first, alpha=1e-3, accept=10.0))
    limit = limit_for(Calibration(MODEL, "d" * 64, decisions=rules), "mls", 1e-3)
    assert limit is not None and (limit.fmr, limit.accept) == (1e-3, 5000.0)


def test_templates_use_their_own_table_if_there_is_one() -> None:
    calibrated = calibration()
    assert limits_for(calibrated, 1e-2, None, RADIUS) == (limit_for(calibrated, "mls", 1e-2),) * 2
    with_templates = replace(calibrated, thresholds={"mls-template": table("mls-template")})
    limits = limits_for(with_templates, 1e-2, None, RADIUS)
    assert limits is not None and limits[0].accept == 0.0 and limits[1].accept == 999.0


def test_a_given_threshold_keeps_min_kappa_and_another_radius_has_no_limits() -> None:
    limits = limits_for(calibration(), 1e-2, 7.0, RADIUS)
    assert limits is not None and {limit.accept for limit in limits} == {7.0} and limits[0].min_kappa == 50.0
    assert limits_for(calibration(), 1e-2, None, 64.0) is None
    assert limits_for(None, 1e-2, None, RADIUS) is None
    uncalibrated = limits_for(None, 1e-2, 7.0, RADIUS)
    assert uncalibrated is not None and uncalibrated[0].min_kappa == -math.inf


@pytest.mark.parametrize("fmr", [1e-2, 1e-4])
def test_a_rate_of_the_calibration_uses_its_own_rule(fmr: float) -> None:
    limit = limit_for(calibration(), "mls", fmr)
    assert limit is not None and limit.fmr == fmr and limit.strict_enough


def test_evidence_is_preferred_and_its_extrapolation_reported() -> None:
    rule = replace(calibration().decisions[0], score="evidence", accept=4.0, reject=-1.0, alpha=1e-8)
    calibrator = evidence()
    calibrated = replace(
        calibration(),
        likelihood={"evidence": calibrator},
        decisions=(replace(rule, extrapolated=(1e-10, 1e-8)), *calibration().decisions),
    )
    limits = limits_for(calibrated, 0.01 / 1e6, None, RADIUS)
    assert limits is not None and limits[0].score == "evidence" and limits[0].strict_enough
    assert limits[1].score == "mls" or limits[1] == limits[0]
    scores = limits_for(calibration(), 0.01 / 1e6, None, RADIUS)
    assert scores is not None and {limit.score for limit in scores} == {"mls"}
    candidate = Candidate("anna", "t1", 12.0, 0.8, 100.0, accept=4.0, reject=-1.0)
    (weighed,) = weigh([candidate], limits[:1], calibrated, 60.0)
    assert weighed.evidence == calibrator.evidence(12.0, 0.8, (100.0, 60.0)) == weighed.measure
    assert weighed.llr == calibrator.llr(12.0, (100.0, 60.0)) and candidate.measure == 12.0
    answer, identity, reason = decide([weighed], limits[:1], 60.0, 0.01)
    assert (answer, identity) == (
        "identified",
        "anna",
    ) and "extrapolated false match rate: 1.0e-10 to 1.0e-08" in reason
    assert weigh([candidate], scores[:1], calibrated, 60.0) == (candidate,)


def evidence() -> ConditionalCalibrator:
    return ConditionalCalibrator(
        "evidence", RADIUS, 0.0, False, (2.0, 6.0), (2.0, 6.0), (-2.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0),
        (0.2, 0.0, 0.0, 0.0), (-3.0, 0.0, 0.0), -0.05, 0.05, 1000, 1000,
    )  # fmt: skip

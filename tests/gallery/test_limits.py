import math
from dataclasses import replace

import pytest
from tests.gallery.conftest import MODEL, RADIUS, calibration

from spherecf.calibration import Calibration, ConditionalCalibrator, ThresholdTable
from spherecf.gallery.identification import Candidate, decide, limit_for, limits_for, weigh


def table(score: str = "mls", radius: float = RADIUS) -> ThresholdTable:
    scores = [float(i) for i in range(1000)] + [2000.0] * 10
    return ThresholdTable.fit(scores, [0] * 1000 + [1] * 10, [1e-1, 1e-3], score=score, radius=radius)


def test_the_least_strict_rule_that_keeps_the_rate() -> None:
    known = calibration()
    found = limit_for(known, "mls", 5e-3)
    assert found is not None and (found.fmr, found.accept, found.reject) == (1e-4, 10.0, -20.0)
    assert found.strict_enough and found.min_kappa == 50.0
    loose = limit_for(known, "mls", 0.5)
    assert loose is not None and loose.accept == 0.0
    strictest = limit_for(known, "mls", 1e-9)
    assert strictest is not None and strictest.accept == 15.0 and not strictest.strict_enough
    assert limit_for(known, "cosine", 0.5) is None


def test_the_table_serves_only_where_there_is_no_rule() -> None:
    rules = calibration().decisions
    known = Calibration(MODEL, "d" * 64, decisions=rules, thresholds={"mls": table()})
    finest = min(rule.alpha for rule in rules if rule.score == "mls")
    found = limit_for(known, "mls", finest / 10)  # what holds for good pictures is no promise for others
    assert found is not None and (found.fmr, found.strict_enough) == (finest, False)
    bare = Calibration(MODEL, "d" * 64, thresholds={"mls": table()})
    found = limit_for(bare, "mls", 1e-3)
    assert found is not None and (found.accept, found.reject, found.min_kappa) == (999.0, 999.0, -math.inf)
    assert found.strict_enough


def test_a_rarer_error_never_gets_a_lower_threshold() -> None:
    first = calibration().decisions[0]
    rules = (replace(first, alpha=1e-2, accept=5000.0), replace(first, alpha=1e-3, accept=10.0))
    found = limit_for(Calibration(MODEL, "d" * 64, decisions=rules), "mls", 1e-3)
    assert found is not None and (found.fmr, found.accept) == (1e-3, 5000.0)


def test_templates_have_limits_of_their_own_where_there_are_some() -> None:
    known = calibration()
    assert limits_for(known, 1e-2, None, RADIUS) == (limit_for(known, "mls", 1e-2),) * 2
    both = replace(known, thresholds={"mls-template": table("mls-template")})
    limits = limits_for(both, 1e-2, None, RADIUS)
    assert limits is not None and limits[0].accept == 0.0 and limits[1].accept == 999.0


def test_a_given_threshold_keeps_the_min_kappa_and_another_radius_says_nothing() -> None:
    limits = limits_for(calibration(), 1e-2, 7.0, RADIUS)
    assert limits is not None and {limit.accept for limit in limits} == {7.0} and limits[0].min_kappa == 50.0
    assert limits_for(calibration(), 1e-2, None, 64.0) is None
    assert limits_for(None, 1e-2, None, RADIUS) is None
    free = limits_for(None, 1e-2, 7.0, RADIUS)
    assert free is not None and free[0].min_kappa == -math.inf


@pytest.mark.parametrize("fmr", [1e-2, 1e-4])
def test_a_rate_of_the_calibration_is_met_by_itself(fmr: float) -> None:
    found = limit_for(calibration(), "mls", fmr)
    assert found is not None and found.fmr == fmr and found.strict_enough


def test_evidence_goes_before_scores_and_says_what_is_extrapolated() -> None:
    rule = replace(calibration().decisions[0], score="evidence", accept=4.0, reject=-1.0, alpha=1e-8)
    known = evidence()
    both = replace(
        calibration(),
        likelihood={"evidence": known},
        decisions=(replace(rule, extrapolated=(1e-10, 1e-8)), *calibration().decisions),
    )
    limits = limits_for(both, 0.01 / 1e6, None, RADIUS)
    assert limits is not None and limits[0].score == "evidence" and limits[0].strict_enough
    assert limits[1].score == "mls" or limits[1] == limits[0]
    scores = limits_for(both, 0.01 / 1e6, None, RADIUS, evidence=False)
    assert scores is not None and {limit.score for limit in scores} == {"mls"}
    bare = Candidate("anna", "t1", 12.0, 0.8, 100.0, accept=4.0, reject=-1.0)
    (found,) = weigh([bare], limits[:1], both, 60.0)
    assert found.evidence == known.evidence(12.0, 0.8, (100.0, 60.0)) == found.measure
    assert found.llr == known.llr(12.0, (100.0, 60.0)) and bare.measure == 12.0
    answer, identity, why = decide([found], limits[:1], 60.0, 0.01)
    assert (answer, identity) == (
        "identified",
        "anna",
    ) and "extrapolated false match rate: 1.0e-10 to 1.0e-08" in why
    assert weigh([bare], scores[:1], both, 60.0) == (bare,)


def evidence() -> ConditionalCalibrator:
    return ConditionalCalibrator(
        "evidence", RADIUS, 0.0, False, (2.0, 6.0), (2.0, 6.0), (-2.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0),
        (0.2, 0.0, 0.0, 0.0), (-3.0, 0.0, 0.0), -0.05, 0.05, 1000, 1000,
    )  # fmt: skip
